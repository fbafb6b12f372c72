"""Visits of subjects over time: the settings of the analysis, the visits in order, and the design of a mixed model of them."""

from dataclasses import dataclass, replace

import numpy as np

from nilatent.analysis.contrast import NotComparableError
from nilatent.errors import SettingError

PER_YEAR = {"years": 1.0, "months": 12.0, "days": 365.25, "dates": 365.25, "visits": 1.0}
"""How many of a unit of time make a year; a visit is a unit of its own, and dates are counted in days."""
MIN_DEGREES_OF_SCANS = 4
"""Scans more than effects below which no model is fitted."""
MIN_REDRAWN = 20
"""Draws below which their spread says too little."""
# Visits closer than this, in years, are repeats of one time: they say nothing of a slope.
SAME_TIME = 1e-6


@dataclass(frozen=True)
class LongitudinalConfig:
    """Settings of :func:`nilatent.analysis.longitudinal.longitudinal`.

    Parameters
    ----------
    group : str
        Column of the groups, the same at every visit of a subject. Where it is absent or has one level, everybody is one
        group.
    contrast : str
        ``"A:B"``, or several with commas between; empty as in :func:`nilatent.analysis.contrast.contrasts_of`.
    covariates : tuple[str, ...]
        Columns that the level depends on. Age, and whatever the time is taken from, count at the first visit.
    pace : tuple[str, ...]
        Those among the columns at the first visit that the rate of change may depend on too, such as age and sex.
    site : str
        Column of the site, a covariate, and the block within which subjects are permuted; empty for none.
    time : str
        Column of the time of a visit: age, time since any event, or dates. ``"auto"`` takes age, unless that stands still or
        is in whole years and there is a column ``acq_time``, ``days``, ``months`` or ``years``. An age that stands still is
        that of the baseline.
    unit : str
        ``"years"``, ``"months"``, ``"days"``, ``"dates"`` or, where only their number is known, ``"visits"``; ``"auto"`` goes
        by the name of the column, years where that does not say.
    horizons : tuple[float, ...]
        Years after the first visit at which trajectories are drawn; those beyond the longest follow-up are left out.
    n_redrawn : int
        How often every decoder draws the courses again with other weights of the subjects, for the intervals of what it
        draws; 0 gives none.
    retest_days : float
        Two visits at most this far apart are repeats of one state; 0 looks for none.
    n_permutations : int
        Of subjects between groups.
    alpha : float
        Family-wise error over measures at which groups are said to change differently.
    """

    group: str = "group"
    contrast: str = ""
    covariates: tuple[str, ...] = ()
    pace: tuple[str, ...] = ()
    site: str = ""
    time: str = "auto"
    unit: str = "auto"
    horizons: tuple[float, ...] = (1.0, 2.0, 4.0)
    n_redrawn: int = 50
    retest_days: float = 90.0
    n_permutations: int = 5000
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        if self.unit not in (*PER_YEAR, "auto"):
            raise SettingError(f"longitudinal.unit is '{self.unit}'; it is one of auto, {', '.join(PER_YEAR)}.")
        if not self.horizons or min(self.horizons) <= 0:
            raise SettingError(f"longitudinal.horizons is {self.horizons}; give one or more, all above 0.")
        if self.n_redrawn and self.n_redrawn < MIN_REDRAWN:
            raise SettingError(
                f"longitudinal.n_redrawn is {self.n_redrawn}; it must be at least {MIN_REDRAWN}, or 0 for no intervals."
            )
        if not 0 <= self.retest_days < np.inf:
            raise SettingError(f"longitudinal.retest_days is {self.retest_days}; it must be at least 0.")
        if self.n_permutations < 1:
            raise SettingError(f"longitudinal.n_permutations is {self.n_permutations}; it must be at least 1.")
        if not 0 < self.alpha <= 1:
            raise SettingError(f"longitudinal.alpha is {self.alpha}; it must be above 0 and at most 1, usually 0.05.")

    @property
    def step(self) -> str:
        """What changes are given per: ``"year"`` or ``"visit"``."""
        return "visit" if self.unit == "visits" else "year"


@dataclass(frozen=True, eq=False)
class Visits:
    """Complete visits; every array has one row per visit, those of a subject together and in order.

    Parameters
    ----------
    rows : ndarray
        (visit,) positions in the table of scans.
    subject : ndarray
        (visit,) str.
    years : ndarray
        (visit,) since the first visit of the subject here.
    group : ndarray
        (visit,) str.
    groups : tuple[str, ...]
        Levels of `group`.
    contrasts : tuple[tuple[str, str], ...]
        Pairs of groups, the second the reference.
    level : ndarray
        (visit, covariate) what the level depends on, 0 on average over the first visits.
    pace : ndarray
        (visit, column) what the rate depends on, 0 on average over the first visits.
    block : ndarray
        (visit,) site, empty text where there is none.
    left_out : dict[str, list[str]]
        Reason to identifiers of scans.
    """

    rows: np.ndarray
    subject: np.ndarray
    years: np.ndarray
    group: np.ndarray
    groups: tuple[str, ...]
    contrasts: tuple[tuple[str, str], ...]
    level: np.ndarray
    pace: np.ndarray
    block: np.ndarray
    left_out: dict[str, list[str]]

    @property
    def first(self) -> np.ndarray:
        """(visit,) bool: the first of its subject."""
        return np.asarray(np.r_[True, self.subject[1:] != self.subject[:-1]])

    @property
    def last(self) -> np.ndarray:
        """(visit,) bool: the last of its subject."""
        return np.asarray(np.r_[self.subject[1:] != self.subject[:-1], True])

    @property
    def n_times(self) -> np.ndarray:
        """(visit,) at how many different times its subject was seen."""
        new = self.first | np.r_[True, np.diff(self.years) > SAME_TIME]
        return np.asarray(np.bincount(self.number, weights=new).astype(int)[self.number])

    @property
    def number(self) -> np.ndarray:
        """(visit,) number of the subject, from 0."""
        return np.asarray(np.cumsum(self.first) - 1)

    @property
    def repeated(self) -> np.ndarray:
        """(visit,) bool: the first visit of a subject who was seen at two times or more."""
        return np.asarray(self.first & (self.n_times > 1))

    @property
    def slopes(self) -> bool:
        """Whether a random slope can be told from noise: somebody was seen at three times."""
        return bool((self.n_times > 2).any())

    def n_repeated(self, group: str) -> int:
        """Subjects of a group who were seen at two times or more."""
        return int((self.repeated & (self.group == group)).sum())

    def design(self) -> np.ndarray:
        """(visit, fixed) a level and a slope of every group, then what else varies: `pace` by time, and covariates.

        Raises
        ------
        NotComparableError
            When a rate cannot be told from another, or scans are too few.
        """
        member = (self.group[:, None] == np.array(self.groups)).astype(np.float64)
        columns = np.hstack([member, member * self.years[:, None]])
        rates = self.pace * self.years[:, None]
        whole = np.hstack([columns, rates])
        if np.linalg.matrix_rank(whole) < whole.shape[1]:
            raise NotComparableError(
                "a column of longitudinal.pace does not vary or tells the groups apart, so their rates cannot be told from its; "
                "leave it out"
            )
        # A covariate that follows from the groups or from others says nothing new of the level, and nothing of the rate.
        for column in self.level.T:
            more = np.column_stack([whole, column])
            if np.linalg.matrix_rank(more) == more.shape[1]:
                whole = more
        if len(whole) - whole.shape[1] < MIN_DEGREES_OF_SCANS:
            raise NotComparableError(
                f"{len(whole)} scans are too few for {whole.shape[1]} effects; name fewer covariates, or a site with fewer levels"
            )
        return whole

    def take(self, kept: np.ndarray, *, least: int) -> "Visits":
        """Some of the visits; groups in which fewer than `least` subjects were seen at two times are left out.

        Parameters
        ----------
        kept : ndarray
            (visit,) bool, the same for all visits of a subject.
        least : int
            Subjects.

        Raises
        ------
        NotComparableError
            When no group is left.
        """
        part = self._of(kept)
        groups = tuple(group for group in part.groups if part.n_repeated(group) >= least)
        if not groups:
            raise NotComparableError(
                f"no group has {least} subjects who were seen at two different times ({int(part.repeated.sum())} in all)"
            )
        contrasts = tuple(pair for pair in part.contrasts if set(pair) <= set(groups))
        return replace(part._of(np.isin(part.group, groups)), groups=groups, contrasts=contrasts)

    def _of(self, kept: np.ndarray) -> "Visits":
        names = ("rows", "subject", "years", "group", "level", "pace", "block")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})
