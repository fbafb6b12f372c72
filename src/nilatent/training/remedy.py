"""Remedies: a training that fell into a known trap is started again with the change that its diagnosis advises."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nilatent.models import ModelConfig
from nilatent.provenance import atomic, write_json
from nilatent.training.checkpoint import FILES, TrainedModel, load_model
from nilatent.training.config import TrainConfig
from nilatent.training.loop import DivergenceError, train
from nilatent.training.nuisance import NUISANCES
from nilatent.training.start import set_up
from nilatent.training.step import Batch, step
from nilatent.training.validation import validate
from nilatent.volumes import Volumes

MAX_RESTARTS = 3
FREE_BITS = 0.1
INFO_ALPHA, INFO_LAMBDA = 0.5, 10.0

N_BY_HEART = 8
BY_HEART_STEPS, BY_HEART_LOOK = 200, 20
# It is known by heart, and there is nothing left to see.
BY_HEART_ENOUGH = 0.05
# Of the variance between the scans: a network that leaves more than this of scans it saw two hundred times cannot learn.
BY_HEART_FVU = 0.5

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

    @property
    def sound(self) -> bool:
        """Whether none of its failures is one that another training could mend."""
        return not set(self.failures) & set(REMEDIES)


def slower(model: ModelConfig, config: TrainConfig) -> Settings:
    """Lower the learning rate to a third and warm up twice as long."""
    slow = replace(config, learning_rate=config.learning_rate / 3, warmup_epochs=max(2 * config.warmup_epochs, 1.0))
    return model, slow


def anchored(model: ModelConfig, config: TrainConfig) -> Settings | None:
    """Start from what is known of the training scans: their principal components, for a latent grid those of blocks."""
    known = "local" if model.name == "spatial_vae" else "pca"
    return None if model.start == known or config.start_from else (replace(model, anchor=known), config)


def larger(model: ModelConfig, config: TrainConfig) -> Settings | None:
    """Double the latents."""
    if config.start_from:
        return None
    if model.name == "spatial_vae":
        return replace(model, latent_channels=2 * model.latent_channels), config
    return replace(model, n_latent=2 * model.n_latent), config


def other_seed(model: ModelConfig, config: TrainConfig) -> Settings:
    """Take another seed."""
    return model, replace(config, seed=config.seed + 1)


def annealed(model: ModelConfig, config: TrainConfig) -> Settings | None:
    """Let the weight of the KL rise over the first quarter of the epochs."""
    if not model.variational or config.kl_warmup_epochs >= config.n_epochs / 4:
        return None
    return model, replace(config, kl_warmup_epochs=config.n_epochs / 4, kl_cycles=1)


def freed(model: ModelConfig, config: TrainConfig) -> Settings | None:
    """Leave every latent a tenth of a nat that costs nothing."""
    if model.name != "vae" or model.term != "kl" or (model.info_alpha, model.info_lambda) != (0.0, 1.0):
        return None
    return replace(model, term="free-bits", free_bits=FREE_BITS), config


def informed(model: ModelConfig, config: TrainConfig) -> Settings | None:
    """Hold the latents of all scans together to the prior, and each scan's only half as much."""
    if model.name != "vae" or model.info_alpha >= INFO_ALPHA:
        return None
    plain = replace(model, term="kl", free_bits=0.0, capacity=0.0)
    return replace(plain, info_alpha=INFO_ALPHA, info_lambda=max(model.info_lambda, INFO_LAMBDA)), config


def optimal_noise(model: ModelConfig, config: TrainConfig) -> Settings | None:
    """Let each batch use the noise that is most likely, in place of a fixed sigma."""
    return None if model.sigma is None else (replace(model, sigma=None), config)


def lighter(model: ModelConfig, config: TrainConfig) -> Settings | None:
    """Lower beta to 1, the evidence lower bound itself."""
    return None if model.beta <= 1.0 else (replace(model, beta=1.0), config)


SLOWER = ("a third of the learning rate and twice the warm-up", slower)
ANNEALED = ("the weight of the KL rises over the first quarter of the epochs", annealed)
OPTIMAL = ("each batch uses its most likely noise in place of a fixed sigma", optimal_noise)
LIGHTER = ("beta is 1, the evidence lower bound itself", lighter)
ANCHORED = ("the model starts from what is known of the training scans, its anchor", anchored)
REMEDIES: dict[str, tuple[tuple[str, Change], ...]] = {
    "divergence": (
        SLOWER,
        OPTIMAL,
        ("a ninth of the learning rate and four times the warm-up", slower),
        ("another seed", other_seed),
    ),
    "posterior collapse": (
        OPTIMAL,
        LIGHTER,
        ANNEALED,
        (f"{FREE_BITS} nats of each latent are free", freed),
        ANCHORED,
        ("Info-VAE: all scans together are held to the prior, each scan half as much", informed),
    ),
    "mean local minimum": (
        SLOWER,
        ANCHORED,
        ANNEALED,
        ("twice as many latents", larger),
        ("another seed", other_seed),
    ),
}
"""Failure to what is tried, in order, in words and as a change; one that does not apply is passed over.

Divergence comes first, because nothing else can be judged of a training that it stopped; then collapse, because latents that
say nothing draw the same brain for everybody too.
"""


def train_with_remedies(
    volumes: Volumes,
    parts: pd.DataFrame,
    model_config: ModelConfig,
    config: TrainConfig,
    folder: Path,
    *,
    scans: pd.DataFrame | None = None,
    preparation: Mapping[str, Any] | None = None,
    nuisances: Sequence[str] = NUISANCES,
) -> TrainedModel:
    """Train, and as long as the diagnosis finds a failure with a remedy, train again with it, at most three times.

    Parameters
    ----------
    volumes, parts, model_config, config, folder, scans, preparation, nuisances
        As in :func:`nilatent.training.loop.train`. Every attempt is kept in ``folder/attempts/<number>``, resumes like any
        training, and is listed with its change and its diagnosis in ``folder/attempts.json``. Before a restart for a mean
        local minimum the network is asked to learn eight scans by heart (:func:`overfit_check`), once; what came of it is
        listed there too.

    Returns
    -------
    TrainedModel
        The first attempt without a failure that a remedy could mend; when all have one, that with the lowest validation FVU,
        and one that was stopped only when all were.

    Raises
    ------
    NilatentError
        As :func:`nilatent.training.loop.train` does; a divergence only when it stopped the chosen attempt.
    """
    job = partial(train, volumes, parts, scans=scans, preparation=preparation, nuisances=nuisances)
    settings: Settings = (model_config, config)
    change, tried = "", set[str]()
    attempts: list[Attempt] = []
    errors: dict[int, DivergenceError] = {}
    by_heart: float | None = None
    while True:
        place = folder / "attempts" / str(len(attempts))
        try:
            trained = job(*settings, place)
        except DivergenceError as error:
            errors[len(attempts)], trained = error, load_model(place)
        failures, fvu = _diagnosis(trained.result)
        attempts.append(Attempt(len(attempts), change, failures, fvu))
        if attempts[-1].sound or len(attempts) > MAX_RESTARTS:
            break
        if by_heart is None and set(failures) & set(REMEDIES) == {"mean local minimum"}:
            by_heart = overfit_check(volumes, parts, *settings, folder / "attempts" / "by-heart")
        order = partial(
            _ordered, able=by_heart is not None and by_heart < BY_HEART_FVU, last=len(attempts) == MAX_RESTARTS
        )
        # What conditions explain is taken from the scans before their components are.
        n_left = int((parts["part"] == "train").sum()) - trained.conditions.n_values
        following = _next(failures, settings, tried, order, n_left=n_left)
        if following is None:
            break
        settings, change = following
    sound = [attempt for attempt in attempts if attempt.sound]
    chosen = sound[0] if sound else min(attempts, key=lambda one: (one.number in errors, one.validation_fvu))
    record = {"chosen": chosen.number, "attempts": [asdict(one) for one in attempts]}
    write_json(folder / "attempts.json", record | ({} if by_heart is None else {"by_heart": _words(by_heart)}))
    _take(folder / "attempts" / str(chosen.number), folder)
    if chosen.number in errors:
        raise errors[chosen.number]
    return load_model(folder)


def overfit_check(
    volumes: Volumes, parts: pd.DataFrame, model_config: ModelConfig, config: TrainConfig, folder: Path
) -> float:
    """Ask whether a network can learn eight training scans by heart: without noise, weight decay or a cost of its latents.

    Parameters
    ----------
    volumes, parts, model_config, config, folder
        As in :func:`nilatent.training.loop.train`. Nothing but the network, its learning rate and its seed is taken from the
        settings; an anchor of principal components, which would know so few scans at once, becomes the mean image.

    Returns
    -------
    float
        FVU on these eight scans: 0 where they are known by heart, 1 where the mean image is all that was learned; infinite
        when the training diverged.
    """
    training = parts[parts["part"] == "train"]
    eight = training.iloc[np.unique(np.linspace(0, len(training) - 1, N_BY_HEART).round().astype(int))]
    run = set_up(
        volumes, pd.concat([eight, parts[parts["part"] == "validation"]]), *_bare(model_config, config), folder
    )
    rows, fvu = run.rows["train"], float("inf")
    x = volumes.masked(rows)
    spread = float(np.square(x - x.mean(axis=0)).mean(dtype=np.float64))
    try:
        for epoch in range(1, run.config.n_epochs + 1):
            step(run, Batch(rows, epoch, 0, 1, 0), None)
            if epoch % BY_HEART_LOOK == 0:
                fvu = validate(run.module, volumes, rows, batch_size=N_BY_HEART).fit.mse / max(spread, 1e-30)
                if fvu < BY_HEART_ENOUGH:
                    break
    except DivergenceError:
        return float("inf")
    return fvu


def _bare(model: ModelConfig, config: TrainConfig) -> Settings:
    """The network without anything that keeps it from learning by heart."""
    given = {name: getattr(model, name) for name in ("name", "channels")}
    if model.name == "spatial_vae":
        given |= {name: getattr(model, name) for name in ("latent_grid", "latent_channels", "perceptual")}
        given |= {"adversarial": 0.0}
    else:
        given |= {"n_latent": model.n_latent}
    if model.variational:
        given |= {"beta": 0.0}
    bare = ModelConfig(anchor="mean" if model.start in ("pca", "local") else model.anchor, **given)
    return bare, TrainConfig(
        n_epochs=BY_HEART_STEPS,
        batch_size=N_BY_HEART,
        learning_rate=config.learning_rate,
        warmup_epochs=0.0,
        weight_decay=0.0,
        input_noise=0.0,
        latent_noise=0.0,
        checkpointing=config.checkpointing,
        device=config.device,
        precision=config.precision,
        seed=config.seed,
    )


def _words(by_heart: float) -> dict[str, float | str]:
    told = f"FVU {by_heart:.3f} on them" if np.isfinite(by_heart) else "the training diverged"
    if by_heart < BY_HEART_FVU:
        sentence = (
            f"The network can learn {N_BY_HEART} scans by heart ({told}), so it is able: more scans or an anchor."
        )
    else:
        sentence = f"The network cannot learn {N_BY_HEART} scans by heart ({told}): lower the learning rate."
    return {"fvu": by_heart, "sentence": sentence} if np.isfinite(by_heart) else {"sentence": sentence}


def _diagnosis(result: dict[str, Any]) -> tuple[tuple[str, ...], float]:
    found = tuple(verdict["failure"] for verdict in result["verdicts"] if verdict["state"] == "found")
    return found, float(result["validation_fvu"])


def _next(
    failures: tuple[str, ...],
    settings: Settings,
    tried: set[str],
    order: Callable[[str], Sequence[tuple[str, Change]]],
    *,
    n_left: int,
) -> tuple[Settings, str] | None:
    """The next change that applies and was not tried yet, of the first failure that has one."""
    for failure in (known for known in REMEDIES if known in failures):
        for words, remedy in order(failure):
            changed = None if words in tried else remedy(*settings)
            if changed is not None and changed[0].start == "pca" and changed[0].n_latent >= n_left:
                changed = None
            tried.add(words)
            if changed is not None:
                return changed, f"{failure}: {words}"
    return None


def _ordered(failure: str, *, able: bool, last: bool) -> Sequence[tuple[str, Change]]:
    """What is tried, in order.

    A network that learns eight scans by heart needs no lower rate first. The last restart takes what holds by its making: a
    model that starts as PCA of equal size draws people apart, and its latents carry what those of PCA carry.
    """
    if failure == "divergence":
        return REMEDIES[failure]
    return sorted(REMEDIES[failure], key=lambda one: (last and one[1] is not anchored, able and one[1] is slower))


def _take(source: Path, folder: Path) -> None:
    """Copy a finished model; its configuration comes last, as in a training."""
    for name in sorted(FILES, key=lambda name: name == "config.toml"):
        with atomic(folder / name) as temporary:
            shutil.copyfile(source / name, temporary)
