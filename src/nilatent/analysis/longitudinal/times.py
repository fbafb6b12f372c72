"""When a visit was: which column says it and in what unit, and how old the subject was then."""

from dataclasses import replace

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import NotComparableError, level_words
from nilatent.analysis.longitudinal.visits import PER_YEAR, SAME_TIME, LongitudinalConfig
from nilatent.errors import SettingError

AUTO, AGE = "auto", "age"
CLOCKS = {"acq_time": "dates", "days": "days", "months": "months", "years": "years"}
"""Columns beside age that say when a visit was, and their unit, where the settings name none."""
LONGEST = 120.0
"""Years of follow-up beyond which the unit must be wrong."""


def with_clock(scans: pd.DataFrame, config: LongitudinalConfig) -> LongitudinalConfig:
    """The settings with the column of the time and its unit named.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id; ``subject_id`` and a column of time.
    config : LongitudinalConfig
        Settings. Of ``"auto"``, the column is the one by which most subjects were seen at two times; at a draw age, unless it
        is in whole years, then those of ``CLOCKS`` in their order.

    Raises
    ------
    NotComparableError
        When the column does not exist.
    """
    time = config.time
    if time == AUTO:
        candidates = [name for name in (AGE, *CLOCKS) if name in scans]
        known = {name: numbers_of(scans[name]) for name in candidates}
        seen = {name: _n_followed(scans, values) for name, values in known.items()}
        if AGE in known and (known[AGE].dropna() % 1 == 0).all():
            candidates = [*(name for name in candidates if name != AGE), AGE]
        time = max(candidates, key=lambda name: seen[name], default=AGE)
    if time not in scans:
        raise NotComparableError(f"no column '{time}'; name that of the time of a visit as longitudinal.time")
    unit = config.unit
    if unit == AUTO:
        unit = "dates" if _are_dates(scans[time]) else CLOCKS.get(time, "years")
    return replace(config, time=time, unit=unit)


def years_of(scans: pd.DataFrame, config: LongitudinalConfig) -> np.ndarray:
    """(scan,) years on any origin, visits where only their number is known; NaN where nothing is known.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id.
    config : LongitudinalConfig
        From :func:`with_clock`.

    Raises
    ------
    SettingError
        When a cell is no number or date.
    NotComparableError
        When somebody was followed for longer than anybody lives.
    """
    numbers = numbers_of(scans[config.time])
    if config.unit != "dates" and _are_dates(scans[config.time]):
        raise SettingError(
            f"'{config.time}' holds dates, and longitudinal.unit is '{config.unit}'. Say 'dates' or 'auto'."
        )
    words = scans.loc[numbers.isna() & level_words(scans[config.time]).notna(), config.time]
    if len(words):
        raise SettingError(
            f"'{config.time}' of scan {words.index[0]} is '{words.iloc[0]}', no number ({len(words)} in all). Give the time of a "
            f"visit in {config.unit}, or write n/a."
        )
    years = numbers.to_numpy(dtype=np.float64) / PER_YEAR[config.unit]
    years = np.where(np.isfinite(years), years, np.nan)
    followed = (
        pd.Series(years).groupby(scans["subject_id"].to_numpy().astype(str)).agg(lambda one: one.max() - one.min())
    )
    if config.step == "year" and followed.max() > LONGEST:
        raise NotComparableError(
            f"by '{config.time}' in {config.unit} subject {followed.idxmax()} was followed for {followed.max():.0f} years; "
            "correct it, or name the unit of that column as longitudinal.unit: years, months, days or dates"
        )
    return years


def age_is_of_baseline(scans: pd.DataFrame, years: np.ndarray) -> bool:
    """Whether age stands still in everybody, although somebody was seen at times a year apart.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id.
    years : ndarray
        (scan,) from :func:`years_of`.
    """
    if AGE not in scans:
        return False
    table = pd.DataFrame({"age": numbers_of(scans[AGE]).to_numpy(), "years": years}).dropna()
    of_subject = table.groupby(scans["subject_id"].to_numpy().astype(str)[table.index])
    ends = of_subject.max() - of_subject.min()
    return bool((ends["age"] < SAME_TIME).all() and (ends["years"] >= 1.0).any())


def ages_at_visits(scans: pd.DataFrame, years: np.ndarray) -> np.ndarray:
    """(scan,) age at the visit: that of the table, or of the baseline plus what has gone by since.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id; ``age`` in years.
    years : ndarray
        (scan,) from :func:`years_of`. Where most subjects have a visit at 0 and none before, 0 is the baseline, also of who
        has no scan of it; otherwise it is the earliest time of a subject.
    """
    age = numbers_of(scans[AGE]).to_numpy(dtype=np.float64)
    if not age_is_of_baseline(scans, years):
        return age
    time = pd.Series(years)
    earliest = time.groupby(scans["subject_id"].to_numpy().astype(str)).transform("min").to_numpy()
    counted_from_0 = np.nanmin(years) >= 0 and np.nanmedian(earliest) < SAME_TIME
    return np.asarray(age + years - (0.0 if counted_from_0 else earliest))


def numbers_of(values: pd.Series) -> pd.Series:
    """A column as numbers, dates as days; NaN where a cell is neither."""
    if _are_dates(values):
        dates = pd.to_datetime(values.astype("string"), format="ISO8601", errors="coerce", utc=True)
        return (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)
    return pd.to_numeric(values, errors="coerce")


def _are_dates(values: pd.Series) -> bool:
    """Whether cells that say something are written as 2019-03-31 or 2019-03-31T12:00:00."""
    if pd.api.types.is_numeric_dtype(values):
        return False
    words = values.astype("string").dropna().str.strip()
    return bool(len(words)) and bool(words.str.match(r"\d{4}-\d{2}-\d{2}").all())


def _n_followed(scans: pd.DataFrame, values: pd.Series) -> int:
    """Subjects who were seen at two times."""
    of_subject = values.groupby(scans["subject_id"].to_numpy().astype(str))
    return int((of_subject.max() - of_subject.min() > SAME_TIME).sum())
