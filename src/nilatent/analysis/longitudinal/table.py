"""The table of rates, differences, repeatability and errors of forecasts; and the curves a figure needs."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from nilatent.analysis import stats
from nilatent.analysis.longitudinal.change import Change, degrees
from nilatent.analysis.longitudinal.drawn import Courses, regional_means
from nilatent.analysis.longitudinal.forecast import OF_LATENTS, REGIONAL, VOXEL, Forecasts, mean_errors
from nilatent.analysis.longitudinal.repeat import MIN_PAIRS, icc, icc_of_model, repeats
from nilatent.analysis.longitudinal.visits import LongitudinalConfig, Visits
from nilatent.atlas import RegionWeights

COLUMNS = (
    "what", "kind", "measure", "group", "value", "low", "high", "percent", "p", "p_permutation", "p_fwe", "q", "drawn",
    "drawn_low", "drawn_high", "random", "n_subjects", "n_scans",
)  # fmt: skip
DRAWN = ("drawn", "drawn_low", "drawn_high")
DIFFERENCE, RATE, REPEATABILITY, RETEST = "difference in rate", "rate", "repeatability", "repeatability, close visits"
ERROR, ERROR_LESS_FIRST = "error of forecast", "error less that of the first scan"
ERROR_LESS_BEST = "error less that of the best without latents"
REGIONS, DECODED, DIRECTIONS, LATENTS, VOXELS = "regions", "decoded regions", "directions", "latents", "voxels"


@dataclass(frozen=True, eq=False)
class Block:
    """Measures of one kind, on visits of their own.

    Parameters
    ----------
    kind : str
        ``REGIONS``, ``DECODED``, ``DIRECTIONS`` or ``LATENTS``.
    names : tuple[str, ...]
        Of the measures.
    values : ndarray
        (visit, measure).
    visits : Visits
        Of these rows.
    change : Change
        Found in them.
    percent : bool
        Whether 0 is none of it, so that a change is a share of the mean.
    """

    kind: str
    names: tuple[str, ...]
    values: np.ndarray
    visits: Visits
    change: Change
    percent: bool


@dataclass(frozen=True, eq=False)
class DrawnRates:
    """Change per year of regions in the drawn courses, with 95 % intervals by Student's t; NaN where nothing was redrawn.

    Parameters
    ----------
    rate : ndarray
        (region, group, 3).
    difference : ndarray
        (region, contrast, 3) the first group less the second.
    """

    rate: np.ndarray
    difference: np.ndarray

    @classmethod
    def of(cls, found: Courses, weights: RegionWeights, block: Block) -> "DrawnRates":
        """From the courses and the courses drawn again.

        Parameters
        ----------
        found : Courses
            Of all groups of the visits of `block`.
        weights : RegionWeights
            The atlas in the mask in which decoders draw.
        block : Block
            The regions as measured, for the contrasts and the degrees of freedom.
        """
        visits, wide = block.visits, float(student_t.ppf(0.975, degrees(block.visits)))
        pairs = [[visits.groups.index(group) for group in pair] for pair in visits.contrasts]
        rate, again = regional_means([found.rate], weights).T, np.moveaxis(found.redrawn, 0, 2).swapaxes(0, 1)

        def estimates(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
            error = draws.std(axis=2, ddof=1) * wide if draws.shape[2] else np.full(values.shape, np.nan)
            return np.stack([values, values - error, values + error], axis=2)

        one, other = ([pair[side] for pair in pairs] for side in (0, 1))
        return cls(estimates(rate, again), estimates(rate[:, one] - rate[:, other], again[:, one] - again[:, other]))


def change_rows(block: Block, drawn: DrawnRates | None = None) -> pd.DataFrame:
    """Differences between groups, then rates of each, best first.

    Parameters
    ----------
    block : Block
        What was found.
    drawn : DrawnRates, optional
        What the same measures do in the drawn courses.
    """
    found, visits = block.change, block.visits
    size = np.where(block.percent, found.level, np.nan)
    size = np.where(np.abs(size) > 0, size, np.nan)
    tables, blank = [], np.full((len(block.names), 3), np.nan)
    for number, pair in enumerate(visits.contrasts):
        case, reference = (visits.groups.index(group) for group in pair)
        shown = blank if drawn is None else drawn.difference[:, number]
        share = found.rate[:, :, 0] / size * 100
        rows = _rows(block, DIFFERENCE, ":".join(pair), found.difference[:, number], found.p_ratio[:, number])
        tables.append(
            rows.assign(
                percent=share[:, case] - share[:, reference],
                p_permutation=found.p_permutation[:, number],
                p_fwe=found.p_fwe[:, number],
                q=_q(found.p_permutation[:, number]),
                **dict(zip(DRAWN, shown.T, strict=True)),
                n_subjects=sum(visits.n_repeated(group) for group in pair),
                n_scans=int(np.isin(visits.group, pair).sum()),
            )
        )
    for number, group in enumerate(visits.groups):
        rows = _rows(block, RATE, group, found.rate[:, number], found.p_rate[:, number])
        shown = blank if drawn is None else drawn.rate[:, number]
        tables.append(
            rows.assign(
                percent=found.rate[:, number, 0] / size[:, number] * 100,
                q=_q(found.p_rate[:, number]),
                **dict(zip(DRAWN, shown.T, strict=True)),
                n_subjects=visits.n_repeated(group),
                n_scans=int((visits.group == group).sum()),
            )
        )
    kept = [rows[rows["value"].notna()] for rows in tables]
    by = ["p_fwe", "p_permutation", "p", "measure"]
    return pd.concat([rows.sort_values(by, kind="stable") for rows in kept], ignore_index=True)


def repeat_rows(block: Block, config: LongitudinalConfig, *, seed: int) -> pd.DataFrame:
    """Intraclass correlation of every measure by its mixed model and, where there are enough, of visits close together."""
    values = [np.nan if fit is None else icc_of_model(fit) for fit in block.change.fits]
    blank = np.full(len(values), np.nan)
    rows = _rows(block, REPEATABILITY, "", np.column_stack([values, blank, blank]), blank)
    counted = rows.assign(n_subjects=int(block.visits.first.sum()), n_scans=len(block.visits.rows))
    tables = [counted[counted["value"].notna()]]
    pairs = repeats(block.visits, within_days=config.retest_days) if config.step == "year" else np.empty((0, 2), int)
    if len(pairs) >= MIN_PAIRS:
        near = icc(block.values[pairs[:, 0]], block.values[pairs[:, 1]], seed=seed)
        rows = _rows(block, RETEST, "", near, blank).assign(n_subjects=len(pairs), n_scans=2 * len(pairs), random="")
        tables.append(rows[rows["value"].notna()])
    by = ["value", "measure"]
    return pd.concat([rows.sort_values(by, ascending=[False, True], kind="stable") for rows in tables])


def forecast_rows(found: Forecasts, *, seed: int) -> pd.DataFrame:
    """Mean error of every forecast, smallest first, and less that of the first scan and of the best without latents."""
    tables = []
    for kind, methods, errors in ((REGIONS, REGIONAL, found.regional), (VOXELS, VOXEL, found.voxel)):
        if errors.shape[1] == 0:
            continue
        plain = [number for number, method in enumerate(methods) if method not in OF_LATENTS]
        best = plain[int(np.argmin([errors[number].mean() for number in plain]))]
        less = {ERROR: 0.0, ERROR_LESS_FIRST: errors[0], ERROR_LESS_BEST: errors[best]}
        for what, other in less.items():
            table = pd.DataFrame(
                mean_errors(errors - other, found.subject, seed=seed), columns=["value", "low", "high"]
            )
            table = table.assign(what=what, kind=kind, measure=methods, percent=table["value"] / np.mean(other) * 100)
            shown = [
                number for number in np.argsort(errors.mean(axis=1), kind="stable") if np.any(errors[number] != other)
            ]
            tables.append(table.assign(percent=np.nan if what == ERROR else table["percent"]).iloc[shown])
    n = len(found.subject)
    return _complete(pd.concat(tables, ignore_index=True).assign(group="", random="", n_subjects=n, n_scans=2 * n))


def joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of all rows: differences first, then rates, repeatability and forecasts, the order within kept."""
    table = pd.concat([_complete(one) for one in tables], ignore_index=True)
    first = [DIFFERENCE, RATE, REPEATABILITY, RETEST, ERROR, ERROR_LESS_FIRST, ERROR_LESS_BEST]
    return table.sort_values("what", key=lambda what: what.map(first.index), kind="stable", ignore_index=True)


def _rows(block: Block, what: str, group: str, estimates: np.ndarray, p: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame(estimates, columns=["value", "low", "high"])
    random = "intercept and slope" if block.visits.slopes else "intercept"
    return _complete(table.assign(what=what, kind=block.kind, measure=block.names, group=group, p=p, random=random))


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    return table.reindex(columns=list(COLUMNS))


def _q(p: np.ndarray) -> np.ndarray:
    known = np.isfinite(p)
    q = np.full(len(p), np.nan)
    if known.any():
        q[known] = stats.fdr(p[known])
    return q
