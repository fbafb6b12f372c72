"""What is searched: which settings a model has, between which values, and how a draw becomes settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nilatent.errors import SettingError
from nilatent.models import ModelConfig
from nilatent.models.blocks import CHANNELS_PER_GROUP
from nilatent.models.config import CONCERNS
from nilatent.search.config import WIDTHS, SearchConfig
from nilatent.training.config import TrainConfig

SIZES = ("n_latent", "latent_channels")
LOGARITHMIC = ("learning_rate", "beta", "info_lambda")
SETTINGS = ("learning_rate", "beta", *SIZES, "channels", "kl_warmup_epochs", "info_alpha", "info_lambda")
"""What may be searched, by the names of the settings of model and training."""
COLUMNS = {"width": "channels", "kl_warmup": "kl_warmup_epochs"}
"""Searched name to the setting it becomes, where the two differ."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, drawn evenly or, with `log`, evenly in their logarithm; `given` is the one set."""

    low: float
    high: float
    log: bool
    given: float


@dataclass(frozen=True)
class Choice:
    """One of several values; `given` is the one set."""

    values: tuple[Any, ...]
    given: Any


Space = dict[str, Range | Choice]


def space(model_config: ModelConfig, train_config: TrainConfig, config: SearchConfig, *, n_train: int) -> Space:
    """Settings that are searched for a model, and the values they may take.

    Parameters
    ----------
    model_config, train_config
        The settings as given; each lies among the values that are tried.
    config : SearchConfig
        Ranges and choices.
    n_train : int
        Scans in the training part; a latent vector is shorter.

    Returns
    -------
    dict
        Name to values. A setting is left out when it does not concern the model (no beta for an autoencoder), when the
        model's term or cycles fix it, and when a single value is left.

    Raises
    ------
    SettingError
        When the value given is outside its range, or a range is set that would be ignored.
    """
    drawn: Space = {}
    for name, given in _given(model_config, train_config).items():
        low, high = getattr(config, name)
        if not low <= given <= high:
            raise SettingError(
                f"search.{name} is {low:g} to {high:g}, and the settings as given have {given:g}. They are the first trial: "
                "widen the range, or change the setting."
            )
        drawn[name] = Range(low, high, name in LOGARITHMIC, given)
    for name in SIZES:
        if _concerned(name, model_config):
            drawn[name] = _sizes(name, getattr(model_config, name), config, n_train=n_train)
    drawn["width"] = Choice(_widths(model_config, config), "given")
    for name in ("beta", "kl_warmup", "info_alpha", "info_lambda", *SIZES):
        if name not in drawn and config.is_set(name):
            raise SettingError(
                f"search.{name} is set, and the {model_config.name} given does not let it vary. Leave it out, or change "
                "model.name, model.term or training.kl_cycles."
            )
    return {name: values for name, values in drawn.items() if not _single(values)}


def _given(model_config: ModelConfig, train_config: TrainConfig) -> dict[str, float]:
    """Numbers that are drawn from a range, as they were given."""
    given = {"learning_rate": train_config.learning_rate}
    if _concerned("beta", model_config):
        given["beta"] = model_config.beta
    if model_config.variational and train_config.kl_cycles == 1:
        given["kl_warmup"] = _share(train_config)
    if _concerned("info_alpha", model_config) and model_config.term == "kl":
        given |= {"info_alpha": model_config.info_alpha, "info_lambda": model_config.info_lambda}
    return given


def _concerned(name: str, model_config: ModelConfig) -> bool:
    return model_config.name in CONCERNS[name]


def _share(train_config: TrainConfig) -> float:
    return train_config.kl_warmup_epochs / train_config.n_epochs if train_config.n_epochs else 0.0


def _sizes(name: str, given: int, config: SearchConfig, *, n_train: int) -> Choice:
    highest = n_train - 1 if name == "n_latent" else None
    asked: tuple[int, ...] = getattr(config, name)
    most = max(given, *asked, 0)
    if highest is not None and most > highest:
        raise SettingError(
            f"{most} latents are asked for (model.n_latent, search.n_latent), and {n_train} training scans carry at most "
            f"{highest}. Lower them, or bring more scans."
        )
    wanted = {given, *(asked or (given // 2, 2 * given))}
    return Choice(tuple(sorted(n for n in wanted if n >= 1 and (highest is None or n <= highest))), given)


def _widths(model_config: ModelConfig, config: SearchConfig) -> tuple[str, ...]:
    """Names of different widths, in the order of :data:`WIDTHS`."""
    named = {name: _channels(model_config.channels, name) for name in WIDTHS if name in config.width}
    return tuple(name for name, made in named.items() if name == "given" or made != model_config.channels)


def _channels(channels: tuple[int, ...], width: str) -> tuple[int, ...]:
    groups = [max(1, round(WIDTHS[width] * number / CHANNELS_PER_GROUP)) for number in channels]
    return tuple(CHANNELS_PER_GROUP * number for number in groups)


def _single(values: Range | Choice) -> bool:
    return values.low == values.high if isinstance(values, Range) else len(values.values) == 1


def given(searched: Space) -> dict[str, Any]:
    """The draw that leaves every setting as it was given."""
    return {name: values.given for name, values in searched.items()}


def settings(
    drawn: Mapping[str, Any], model_config: ModelConfig, train_config: TrainConfig, config: SearchConfig
) -> tuple[ModelConfig, TrainConfig]:
    """Settings of a trial.

    Parameters
    ----------
    drawn : Mapping
        Name to value, of the names in :func:`space`; what is not in it stays as given.
    model_config, train_config
        The settings as given.
    config : SearchConfig
        Names the epochs of a trial. The rise of the KL keeps its share of them.

    Returns
    -------
    tuple
        Of the model and of its training.
    """
    changed = {name: drawn[name] for name in drawn if name in CONCERNS}
    if "width" in drawn:
        changed["channels"] = _channels(model_config.channels, drawn["width"])
    n_epochs = train_config.n_epochs if config.n_epochs is None else config.n_epochs
    share = drawn.get("kl_warmup", _share(train_config))
    training = replace(
        train_config,
        n_epochs=n_epochs,
        learning_rate=drawn.get("learning_rate", train_config.learning_rate),
        # Rounded: a rise that ends a hair after an epoch would spoil the epoch that follows.
        kl_warmup_epochs=round(share * n_epochs, 6),
    )
    return replace(model_config, **changed), training


def shown(drawn: Mapping[str, Any], model_config: ModelConfig, train_config: TrainConfig) -> dict[str, Any]:
    """What was searched, as the settings it became: name to value, channels as text.

    Parameters
    ----------
    drawn : Mapping
        Of a trial; only its names count.
    model_config, train_config
        Of the same trial.
    """
    values = {}
    for name in drawn:
        column = COLUMNS.get(name, name)
        value = getattr(model_config, column) if hasattr(model_config, column) else getattr(train_config, column)
        values[column] = "-".join(map(str, value)) if column == "channels" else value
    return values
