"""Settings of a search: what is tried, how often, and what counts as better."""

from dataclasses import dataclass, fields

from nilatent.errors import SettingError
from nilatent.models import ModelConfig


@dataclass(frozen=True)
class Measure:
    """One figure of a trial that is to be low or high.

    Parameters
    ----------
    column : str
        Of the table of trials.
    sign : float
        1 where low is good, -1 where high is good: times the figure, low is always good.
    words : str
        What it is called.
    """

    column: str
    sign: float
    words: str


ELBO = Measure("validation_elbo", -1.0, "validation ELBO at beta 1")
FVU = Measure("validation_fvu", 1.0, "validation FVU")
ACTIVE = Measure("active_share", -1.0, "share of active latents")
SIZE = Measure("n_values", 1.0, "number of latent values")
OBJECTIVES: dict[str, tuple[Measure, ...]] = {"elbo": (ELBO,), "front": (FVU, ACTIVE), "size": (FVU, SIZE)}
WIDTHS = {"narrow": 0.5, "given": 1.0, "wide": 2.0}
MIN_SEEDS = 3
SMALLEST = 1e-12
LIMITS = {
    "learning_rate": (SMALLEST, 1.0),
    "beta": (SMALLEST, 1e6),
    "kl_warmup": (0.0, 1.0),
    "info_alpha": (-1e6, 1.0),
    "info_lambda": (SMALLEST, 1e9),
}
"""Within which a range may lie; what is drawn on a logarithmic scale is above 0."""


@dataclass(frozen=True)
class SearchConfig:
    """What a search tries.

    Parameters
    ----------
    objective : str
        ``"elbo"``: the highest evidence lower bound of the validation scans at beta 1, in nats per scan, whatever beta a
        trial was trained with. ``"front"``: the Pareto front of a low validation FVU and a high share of active latents (the
        share, because more latents alone raise the count of active ones, and the FVU rewards them already). ``"size"``: the
        Pareto front of a low validation FVU and few values in the latent. ``"auto"``: the first for a variational model,
        the last for an autoencoder, which has neither bound nor inactive latents.
    n_trials : int
        Trials in all, finished, stopped early and failed ones alike; the first has the settings as given. May be raised
        for a search that is done.
    n_epochs : int, optional
        Of each training of the search; left out, as many as `training.n_epochs`.
    n_seeds : int
        Further seeds with which the settings chosen and the settings given are trained, at least 3.
    learning_rate, beta, info_alpha, info_lambda : tuple[float, float]
        Lowest and highest value; learning_rate, beta and info_lambda are drawn on a logarithmic scale.
    n_latent, latent_channels : tuple[int, ...]
        Numbers to choose among, beside the one given. Empty: a half and double of the one given, as far as the training
        scans allow.
    width : tuple[str, ...]
        ``"narrow"``, ``"given"`` and ``"wide"``: half, once and twice the channels given.
    kl_warmup : tuple[float, float]
        Lowest and highest share of the epochs over which the weight of the KL rises.
    seed : int
        Of the suggestions; trials are trained with `training.seed`.
    """

    objective: str = "auto"
    n_trials: int = 30
    n_epochs: int | None = None
    n_seeds: int = 3
    learning_rate: tuple[float, float] = (1e-4, 1e-2)
    beta: tuple[float, float] = (0.1, 10.0)
    n_latent: tuple[int, ...] = ()
    latent_channels: tuple[int, ...] = ()
    width: tuple[str, ...] = ("narrow", "given", "wide")
    kl_warmup: tuple[float, float] = (0.0, 0.5)
    info_alpha: tuple[float, float] = (0.0, 0.9)
    info_lambda: tuple[float, float] = (1.0, 1000.0)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be searched.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        if self.objective not in ("auto", *OBJECTIVES):
            raise SettingError(
                f"search.objective is '{self.objective}'; choose one of {', '.join(('auto', *OBJECTIVES))}."
            )
        for name, lowest in (("n_trials", 1), ("n_seeds", MIN_SEEDS), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise SettingError(f"search.{name} is {getattr(self, name)}; it must be at least {lowest}.")
        if self.n_epochs is not None and self.n_epochs < 1:
            raise SettingError(f"search.n_epochs is {self.n_epochs}; it must be at least 1.")
        for name, (lowest_value, highest) in LIMITS.items():
            low, high = getattr(self, name)
            if not lowest_value <= low <= high <= highest:
                raise SettingError(
                    f"search.{name} is {low:g} to {high:g}; give the lower end first, both from {lowest_value:g} to {highest:g}."
                )
        if self.info_alpha[0] + self.info_lambda[0] < 1:
            raise SettingError(
                f"search.info_alpha starts at {self.info_alpha[0]:g} and search.info_lambda at {self.info_lambda[0]:g}; "
                "together they must be at least 1."
            )
        unknown = [name for name in self.width if name not in WIDTHS]
        if unknown or "given" not in self.width:
            raise SettingError(
                f"search.width is {', '.join(self.width) or 'empty'}; choose among {', '.join(WIDTHS)}, 'given' included."
            )
        for name in ("n_latent", "latent_channels"):
            if any(number < 1 for number in getattr(self, name)):
                raise SettingError(f"search.{name} holds {min(getattr(self, name))}; each must be at least 1.")

    def is_set(self, name: str) -> bool:
        """Whether a setting differs from its default."""
        default = next(entry.default for entry in fields(self) if entry.name == name)
        return bool(getattr(self, name) != default)


def measures_of(config: SearchConfig, model_config: ModelConfig) -> tuple[Measure, ...]:
    """What counts as better, the most important first.

    Raises
    ------
    SettingError
        When the objective needs a variational model and this is none.
    """
    name = config.objective
    if name == "auto":
        name = "elbo" if model_config.variational else "size"
    if name != "size" and not model_config.variational:
        raise SettingError(
            f"search.objective is '{name}' and model.name '{model_config.name}', which has no such figure. Set the objective "
            "to 'size', or search a variational model."
        )
    return OBJECTIVES[name]
