"""Remedies: a training that fell into a known trap is started again with the change that its diagnosis advises."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from nilatent.models import ModelConfig
from nilatent.provenance import atomic, write_json
from nilatent.training.checkpoint import FILES, TrainedModel, load_model
from nilatent.training.config import TrainConfig
from nilatent.training.loop import train
from nilatent.volumes import Volumes

MAX_RESTARTS = 3
FREE_BITS = 0.1

Settings = tuple[ModelConfig, TrainConfig]
Change = Callable[[ModelConfig, TrainConfig], Settings | None]


@dataclass(frozen=True)
class Attempt:
    """One training of several.

    Parameters
    ----------
    number : int
        0 is the training as it was asked for.
    change : str
        What differs from the attempt before, in words; empty for the first.
    failures : tuple[str, ...]
        Failures that its diagnosis found.
    validation_fvu : float
        At its best epoch.
    """

    number: int
    change: str
    failures: tuple[str, ...]
    validation_fvu: float


def slower(model: ModelConfig, config: TrainConfig) -> Settings:
    """Lower the learning rate to a third and warm up twice as long."""
    slow = replace(config, learning_rate=config.learning_rate / 3, warmup_epochs=max(2 * config.warmup_epochs, 1.0))
    return model, slow


def anchored(model: ModelConfig, config: TrainConfig) -> Settings | None:
    """Start from the principal components of the training scans."""
    return None if model.start == "pca" or model.name == "spatial_vae" else (replace(model, anchor="pca"), config)


def other_seed(model: ModelConfig, config: TrainConfig) -> Settings:
    """Take another seed."""
    return model, replace(config, seed=config.seed + 1)


def annealed(model: ModelConfig, config: TrainConfig) -> Settings | None:
    """Let the weight of the KL rise over the first quarter of the epochs."""
    if model.name != "vae" or config.kl_warmup_epochs >= config.n_epochs / 4:
        return None
    return model, replace(config, kl_warmup_epochs=config.n_epochs / 4, kl_cycles=1)


def freed(model: ModelConfig, config: TrainConfig) -> Settings | None:
    """Leave every latent a tenth of a nat that costs nothing."""
    if model.term != "kl" or (model.info_alpha, model.info_lambda) != (0.0, 1.0):
        return None
    return replace(model, term="free-bits", free_bits=FREE_BITS), config


def optimal_noise(model: ModelConfig, config: TrainConfig) -> Settings | None:
    """Let each batch use the noise that is most likely, in place of a fixed sigma."""
    return None if model.sigma is None else (replace(model, sigma=None), config)


def lighter(model: ModelConfig, config: TrainConfig) -> Settings | None:
    """Lower beta to 1, the evidence lower bound itself."""
    return None if model.beta <= 1.0 else (replace(model, beta=1.0), config)


ANNEALED = ("the weight of the KL rises over the first quarter of the epochs", annealed)
REMEDIES: dict[str, tuple[tuple[str, Change], ...]] = {
    "posterior collapse": (
        ANNEALED,
        ("each batch uses its most likely noise in place of a fixed sigma", optimal_noise),
        ("beta is 1, the evidence lower bound itself", lighter),
        (f"{FREE_BITS} nats of each latent are free", freed),
    ),
    "mean local minimum": (
        ANNEALED,
        ("a third of the learning rate and twice the warm-up", slower),
        ("the model starts from the principal components of the training scans", anchored),
        ("another seed", other_seed),
    ),
}
"""Failure to what is tried, in order, in words and as a change; one that does not apply is passed over.

Collapse comes first, because latents that say nothing draw the same brain for everybody too.
"""


def train_with_remedies(
    volumes: Volumes,
    parts: pd.DataFrame,
    model_config: ModelConfig,
    config: TrainConfig,
    folder: Path,
    *,
    scans: pd.DataFrame | None = None,
) -> TrainedModel:
    """Train, and as long as the diagnosis finds a failure with a remedy, train again with it, at most three times.

    Parameters
    ----------
    volumes, parts, model_config, config, folder, scans
        As in :func:`nilatent.training.loop.train`. Every attempt is kept in ``folder/attempts/<number>``, resumes like any
        training, and is listed with its change and its diagnosis in ``folder/attempts.json``.

    Returns
    -------
    TrainedModel
        The first attempt without a failure; when all have one, that with the lowest validation FVU.

    Raises
    ------
    NilatentError
        As :func:`nilatent.training.loop.train` does.
    """
    settings: Settings = (model_config, config)
    change, tried = "", set[str]()
    attempts: list[Attempt] = []
    while True:
        place = folder / "attempts" / str(len(attempts))
        failures, fvu = _diagnosis(train(volumes, parts, *settings, place, scans=scans).result)
        attempts.append(Attempt(len(attempts), change, failures, fvu))
        following = _next(failures, settings, tried) if len(attempts) <= MAX_RESTARTS else None
        if following is None:
            break
        settings, change = following
    sound = [attempt for attempt in attempts if not attempt.failures]
    chosen = sound[0] if sound else min(attempts, key=lambda attempt: attempt.validation_fvu)
    write_json(folder / "attempts.json", {"chosen": chosen.number, "attempts": [asdict(one) for one in attempts]})
    _take(folder / "attempts" / str(chosen.number), folder)
    return load_model(folder)


def _diagnosis(result: dict[str, Any]) -> tuple[tuple[str, ...], float]:
    found = tuple(verdict["failure"] for verdict in result["verdicts"] if verdict["state"] == "found")
    return found, float(result["validation_fvu"])


def _next(failures: tuple[str, ...], settings: Settings, tried: set[str]) -> tuple[Settings, str] | None:
    """The next change that applies and was not tried yet, of the first failure that has one."""
    for failure in (known for known in REMEDIES if known in failures):
        for words, remedy in REMEDIES[failure]:
            changed = None if words in tried else remedy(*settings)
            tried.add(words)
            if changed is not None:
                return changed, f"{failure}: {words}"
    return None


def _take(source: Path, folder: Path) -> None:
    """Copy a finished model; its configuration comes last, as in a training."""
    for name in sorted(FILES, key=lambda name: name == "config.toml"):
        with atomic(folder / name) as temporary:
            shutil.copyfile(source / name, temporary)
