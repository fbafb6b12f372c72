"""Settings of the prediction."""

from dataclasses import dataclass, field
from typing import Literal

from nilatent.errors import SettingError

HeadName = Literal["linear", "svm", "trees", "network"]
HEADS: tuple[HeadName, ...] = ("linear", "svm", "trees", "network")


@dataclass(frozen=True)
class PredictionConfig:
    """Settings of :func:`nilatent.analysis.prediction.prediction`.

    Parameters
    ----------
    group : str
        Column of the groups.
    contrast : str
        ``"A:B"`` with B the reference, or several with commas between. Empty takes all groups at once.
    covariates : tuple[str, ...]
        Columns whose effect the harmonisation keeps, unless they are what is predicted.
    site : str
        Column of the site: the block within which labels are shuffled, and a target of its own. Empty for none.
    targets : tuple[str, ...]
        Columns to predict; empty for the group, the sex and the age, where the cohort knows them.
    ordinal : dict[str, str]
        Column to its levels from lowest to highest, with commas between: ``{"stage": "CN,sMCI,pMCI,AD"}``. Of two levels,
        ``"sMCI,pMCI"``, the second is the case, or the event.
    numbers : tuple[str, ...]
        Columns that are numbers although they have ten values or fewer.
    times : dict[str, str]
        Two-class target to the column of the time to the event (second level) or to the last visit without it.
    heads : tuple
        Of ``"linear"`` (L2 logistic, ridge), ``"svm"`` (linear), ``"trees"`` (boosted) and ``"network"`` (spatial latents).
    n_inner : int
        Folds inside the training part that choose penalty and threshold, at least 2.
    n_permutations : int
        Most shuffles of the labels, each with the whole nested procedure; 0 for none.
    n_stop : int
        Shuffles that must reach the observed measure until no more are drawn (Besag & Clifford); 0 draws all.
    n_bootstrap : int
        Resamples of subjects for intervals, at least 100.
    adjust_head_size : bool
        Judge every feature set a second time without head size and total grey matter.
    harmonise : bool
        Take the site out of image features by ComBat, learnt in each training part.
    alpha : float
        Error rate, above 0 and below 1.
    seed : int
        Of inner folds, permutations and resamples.
    n_jobs : int
        Threads that share the permutations of machines and trees; changes no number.
    """

    group: str = "group"
    contrast: str = ""
    covariates: tuple[str, ...] = ()
    site: str = ""
    targets: tuple[str, ...] = ()
    ordinal: dict[str, str] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    times: dict[str, str] = field(default_factory=dict)
    heads: tuple[HeadName, ...] = ("linear",)
    n_inner: int = 5
    n_permutations: int = 200
    n_stop: int = 10
    n_bootstrap: int = 2000
    adjust_head_size: bool = True
    harmonise: bool = False
    alpha: float = 0.05
    seed: int = 0
    n_jobs: int = 1

    def __post_init__(self) -> None:
        """Refuse values that would judge nothing, or judge it wrongly.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        least = {"n_inner": 2, "n_permutations": 0, "n_stop": 0, "n_bootstrap": 100, "seed": 0, "n_jobs": 1}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise SettingError(f"prediction.{name} is {getattr(self, name)}; it must be at least {lowest}.")
        if not 0 < self.alpha < 1:
            raise SettingError(f"prediction.alpha is {self.alpha}; it must be above 0 and below 1, usually 0.05.")
        if len(set(self.targets)) < len(self.targets):
            raise SettingError(f"prediction.targets is {self.targets}; name each once.")
        unknown = [head for head in self.heads if head not in HEADS]
        if unknown or not self.heads or len(set(self.heads)) < len(self.heads):
            raise SettingError(f"prediction.heads is {self.heads}; name some of {', '.join(HEADS)}, each once.")
        for column, levels in self.ordinal.items():
            names = [level.strip() for level in levels.split(",")]
            if len(names) < 2 or len(set(names)) < len(names) or "" in names:
                raise SettingError(
                    f"prediction.ordinal says '{levels}' of column '{column}'. Write at least two different levels from the "
                    "lowest to the highest, with commas between."
                )
        if self.harmonise and not self.site:
            raise SettingError(
                "prediction.harmonise is on, but no site is named. Set study.site, or harmonise = false."
            )
