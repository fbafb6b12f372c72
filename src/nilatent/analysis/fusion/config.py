"""Settings of the fusion."""

from dataclasses import dataclass, field

from nilatent.analysis.prediction.config import PredictionConfig
from nilatent.errors import SettingError


@dataclass(frozen=True)
class FusionConfig:
    """Settings of :func:`nilatent.analysis.fusion.fusion`.

    Parameters
    ----------
    group : str
        Column of the groups.
    contrast : str
        ``"A:B"`` with B the reference, or several with commas between. Empty takes all groups at once.
    targets : tuple[str, ...]
        Columns to predict; empty for the group, the sex and the age, where the cohort knows them.
    ordinal : dict[str, str]
        Column to its levels from lowest to highest, with commas between.
    numbers : tuple[str, ...]
        Columns that are numbers although they have ten values or fewer.
    tables : dict[str, tuple[str, ...]]
        Kinds of measurement beside the latents: a name to columns of the cohort, such as
        ``{"questionnaires": ("BDI", "MADRS")}``; of a run those of ``study.tables``.
    barred : dict[str, str]
        Modality to the columns, with commas between, that it must not predict because it defines them:
        ``{"questionnaires": "group"}`` where a score is part of the diagnosis.
    n_inner : int
        Folds inside the training part that choose penalty, threshold, weights and the best single modality; at least 2.
    n_draws : int
        Draws of a modality from what the others say of it, for its importance; at least 99.
    n_bootstrap : int
        Resamples of subjects for intervals, and swaps of two predictions; at least 100.
    alpha : float
        Error rate, above 0 and below 1.
    seed : int
        Of inner folds, draws, swaps and resamples.
    """

    group: str = "group"
    contrast: str = ""
    targets: tuple[str, ...] = ()
    ordinal: dict[str, str] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    barred: dict[str, str] = field(default_factory=dict)
    n_inner: int = 5
    n_draws: int = 999
    n_bootstrap: int = 2000
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that would judge nothing, or judge it wrongly.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        least = {"n_inner": 2, "n_draws": 99, "n_bootstrap": 100, "seed": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise SettingError(f"fusion.{name} is {getattr(self, name)}; it must be at least {lowest}.")
        if not 0 < self.alpha < 1:
            raise SettingError(f"fusion.alpha is {self.alpha}; it must be above 0 and below 1, usually 0.05.")
        if len(set(self.targets)) < len(self.targets):
            raise SettingError(f"fusion.targets is {self.targets}; name each once.")

    def is_barred(self, modality: str, column: str) -> bool:
        """Whether a modality must not predict a column."""
        return column in [name.strip() for name in self.barred.get(modality, "").split(",")]

    def of_target(self, column: str) -> PredictionConfig:
        """What the prediction needs to know to make the target, or the contrasts, of one column."""
        return PredictionConfig(
            group=self.group,
            contrast=self.contrast,
            targets=(column,),
            ordinal=self.ordinal,
            numbers=self.numbers,
            n_inner=self.n_inner,
            seed=self.seed,
        )
