"""Training: one visible loop that can be killed at any moment and goes on to the same bits."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from nilatent.models import LocalAnchor, ModelConfig, PcaAnchor
from nilatent.progress import track
from nilatent.training import diagnostics
from nilatent.training.bound import SD_BY_SCALE, bound
from nilatent.training.checkpoint import (
    Origin,
    Progress,
    TrainedModel,
    keep,
    load_model,
    resume,
    save_model,
    write_history,
)
from nilatent.training.config import TrainConfig, kl_is_whole, kl_weight, learning_rate
from nilatent.training.devices import of_all, together
from nilatent.training.judge import judge
from nilatent.training.nuisance import NUISANCES
from nilatent.training.objective import Objective
from nilatent.training.spatial import critic_is_on
from nilatent.training.start import Run, set_up
from nilatent.training.step import MAX_GRADIENT_NORM, Batch, DivergenceError, step
from nilatent.training.transfer import without_places
from nilatent.training.validation import Rows, Validation, validate
from nilatent.volumes import Volumes

__all__ = [
    "MAX_GRADIENT_NORM",
    "DivergenceError",
    "ModelConfig",
    "TrainConfig",
    "TrainedModel",
    "load_model",
    "train",
]

# An epoch counts as better only when it explains this much more of the validation variance than the best before.
MIN_GAIN = 1e-4
# With a PCA anchor an epoch must beat the start by this many standard errors of the gain over validation scans. Picking
# the best of many epochs on a handful of scans would otherwise leave PCA for a chance gain, and lose on new scans.
N_STANDARD_ERRORS = 2.0


def train(
    volumes: Volumes,
    parts: pd.DataFrame,
    model_config: ModelConfig,
    config: TrainConfig,
    folder: Path,
    *,
    scans: pd.DataFrame | None = None,
    preparation: Mapping[str, Any] | None = None,
    nuisances: Sequence[str] = NUISANCES,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> TrainedModel:
    """Train a model, or go on where a killed run stopped.

    Parameters
    ----------
    volumes : Volumes
        The scans.
    parts : DataFrame
        Index ``scan_id``, columns ``subject_id`` and ``part``, from :func:`nilatent.cohort.split`. Scans of the part
        ``"train"`` move the weights, those of ``"validation"`` choose the epoch; no other is touched.
    model_config : ModelConfig
        Which model.
    config : TrainConfig
        How it is trained.
    folder : Path
        Receives the model (see :func:`nilatent.training.checkpoint.save_model`), ``history.tsv`` after every epoch, and
        ``start.safetensors`` and ``resume.safetensors``, from which an interrupted run with the same settings and scans
        goes on to bit-identical weights on the same machine.
    scans : DataFrame, optional
        Index ``scan_id``: the columns of the cohort that `model_config` names as conditions or as the score to align to.
    preparation : Mapping, optional
        Plain values that say how the scans were made; they are kept with the model.
    nuisances : Sequence[str]
        Columns of `scans` that the latents shall not tell of, such as the scanner; one that is absent is passed over.
    on_epoch : callable, optional
        Called with the new row of the history after each epoch, once it is safe on disk; in the first process only.

    Returns
    -------
    TrainedModel
        At the epoch with the lowest validation FVU. Epoch 0, the start, is a candidate: with a PCA anchor that is PCA, and
        an epoch replaces it only with a gain of two standard errors over the validation scans.

    Raises
    ------
    SettingError
        When there are too few scans for the latents, or a part is empty.
    LeakageError
        When a subject is in both parts.
    DivergenceError
        When the loss stops being finite. The model at its best epoch so far is in `folder` by then.
    """
    job = partial(
        train,
        volumes,
        parts,
        model_config,
        config,
        Path(folder),
        scans=scans,
        preparation=preparation,
        nuisances=nuisances,
    )
    with together(job, config) as fabric:
        run = set_up(
            volumes, parts, model_config, config, Path(folder), scans=scans, nuisances=nuisances, fabric=fabric
        )
        progress = _begun(run)
        origin = Origin(volumes, parts, scans, preparation, None if run.source is None else run.source.model.seen)
        epochs = range(progress.epoch + 1, config.n_epochs + 1)
        for epoch in track(epochs, total=config.n_epochs, label="train") if fabric.is_global_zero else epochs:
            if _is_over(config, progress):
                break
            began = time.perf_counter()
            try:
                loss = _epoch(run, epoch)
            except DivergenceError as error:
                # The weights of the best epoch are sound: they are left as a model, whose verdict says what happened.
                if fabric.is_global_zero:
                    _finish(run, progress, origin, stopped=str(error))
                raise
            progress = _advance(run, progress, train_loss=loss, seconds=time.perf_counter() - began)
            if fabric.is_global_zero:
                keep(run.folder, run.key, progress, run.learners)
                if on_epoch is not None:
                    on_epoch(progress.history[-1])
        if fabric.is_global_zero:
            _finish(run, progress, origin)
        fabric.barrier()
    return load_model(run.folder)


def _begun(run: Run) -> Progress:
    """Where the training stands: after its last finished epoch, or at its start."""
    progress = resume(run.folder, run.key, run.learners)
    # Nobody writes before everybody has read.
    run.fabric.barrier()
    if progress is None:
        progress = _advance(run, Progress({}, ()), train_loss=math.nan, seconds=0.0)
        if run.fabric.is_global_zero:
            keep(run.folder, run.key, progress, run.learners)
    elif progress.past is not None and isinstance(run.bare_objective, Objective):
        run.bare_objective.past = progress.past.to(run.fabric.device)
    return progress


def _is_over(config: TrainConfig, progress: Progress) -> bool:
    # Patience counts from the last epoch that was not yet judged, too.
    rising = max((done for done in range(progress.epoch + 1) if not kl_is_whole(config, done)), default=0)
    return progress.epoch - max(progress.best_epoch, rising) >= config.patience


def _epoch(run: Run, epoch: int) -> float:
    # The order follows from seed and epoch alone.
    order = np.random.default_rng([run.config.seed, epoch]).permutation(run.rows["train"])
    firsts = range(0, len(order), run.config.batch_size)
    rival = run.rival if critic_is_on(run.model_config, run.config, epoch) else None
    total = 0.0
    for number, first in enumerate(firsts):
        rows = order[first : first + run.config.batch_size]
        total += step(run, Batch(rows, epoch, number, len(firsts), first), rival) * len(rows)
    return total / len(order)


def _advance(run: Run, progress: Progress, *, train_loss: float, seconds: float) -> Progress:
    """Judge an epoch: once, in the first process, so that all agree."""
    row = of_all(run.fabric, lambda: _judged(run, progress, train_loss=train_loss, seconds=seconds))
    history = (*progress.history, row)
    if row["best_epoch"] != row["epoch"]:
        return replace(progress, history=history, past=_past(run))
    best = {name: parameter.detach().clone() for name, parameter in run.module.named_parameters()}
    return Progress(best, history, _past(run))


def _judged(run: Run, progress: Progress, *, train_loss: float, seconds: float) -> dict[str, Any]:
    checked = _checked(run, run.rows["validation"])
    row = _row(run, len(progress.history), checked, train_loss=train_loss, seconds=seconds)
    if progress.history:
        before = progress.history[progress.best_epoch]
        better = row["validation_fvu"] < before["validation_fvu"] - MIN_GAIN and _convincing(run, checked)
        # While the latents are still free to say more than they shall, every figure flatters.
        better = better and kl_is_whole(run.config, len(progress.history))
        if not better:
            return row | {"best_epoch": before["epoch"]}
    return row | {"best_epoch": row["epoch"]}


def _past(run: Run) -> Tensor | None:
    return run.bare_objective.past if isinstance(run.bare_objective, Objective) else None


def _checked(run: Run, rows: Rows) -> Validation:
    return validate(run.module, run.volumes, rows, batch_size=run.config.piece, conditions=run.told)


def _convincing(run: Run, checked: Validation) -> bool:
    if not isinstance(run.module.anchor, (PcaAnchor, LocalAnchor)):
        return True
    # Visits of one person gain alike; people are what counts.
    person = run.volumes.scans["subject_id"].to_numpy()[run.rows["validation"]]
    gain = pd.Series(run.start_errors - checked.errors).groupby(person).mean().to_numpy()
    return len(gain) > 1 and bool(gain.mean() > N_STANDARD_ERRORS * gain.std(ddof=1) / math.sqrt(len(gain)))


def _row(run: Run, epoch: int, checked: Validation, *, train_loss: float, seconds: float) -> dict[str, Any]:
    variational = run.model_config.variational
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "validation_mse": checked.fit.mse,
        "validation_fvu": diagnostics.fvu(checked.fit, run.mean_image),
        "pca_fvu": diagnostics.fvu(run.pca, run.mean_image),
        "validation_elbo": bound(
            run.module,
            run.model_config,
            run.volumes,
            run.rows["validation"],
            batch_size=run.config.piece,
            seed=run.config.seed,
            conditions=run.told,
        ),
        "kl": float(checked.kl.sum(axis=1).mean()) if variational else math.nan,
        "beta_eff": _effective_beta(run, epoch, checked) if variational else 0.0,
        "learning_rate": learning_rate(run.config, float(epoch)),
        "seconds": round(seconds, 3),
    } | judge(run, checked, reference=run.reference, nuisances=run.nuisances).figures


def _effective_beta(run: Run, epoch: int, checked: Validation) -> float:
    """Weight of the KL relative to a likelihood whose noise is the error that is left."""
    config = run.model_config
    # Of a capacity term the target rises and the weight does not.
    risen = 1.0 if config.term == "capacity" else kl_weight(run.config, max(epoch - 1.0, 0.0))
    beta = config.beta * (1.0 - config.info_alpha) * risen
    if config.sigma is None:
        return beta
    if config.likelihood == "laplace" or config.name == "spatial_vae":
        return beta * config.sigma / SD_BY_SCALE / max(checked.absolute_error, 1e-30)
    return beta * config.sigma**2 / max(checked.fit.mse, 1e-30)


def _finish(run: Run, progress: Progress, origin: Origin, *, stopped: str = "") -> None:
    for name, parameter in run.module.named_parameters():
        parameter.data.copy_(progress.best[name])
    checked = _checked(run, run.rows["validation"])
    model, pca = diagnostics.fvu(checked.fit, run.mean_image), diagnostics.fvu(run.pca, run.mean_image)
    last = float(progress.history[-1]["validation_fvu"])
    verdicts = judge(
        run, checked, reference=run.reference, nuisances=run.nuisances, last=last, stopped=stopped, whole=True
    ).verdicts
    write_history(run.folder, progress)
    used = origin.parts[origin.parts["part"].isin(("train", "validation"))]
    save_model(
        run.folder,
        state=run.module.state_dict(),
        settings={"model": asdict(run.model_config), "training": without_places(run.config, run.source)},
        conditions=run.conditions,
        grid=run.volumes.grid,
        subjects=used.drop_duplicates("subject_id").sort_values(["part", "subject_id"]),
        origin=origin,
        result={
            "best_epoch": progress.best_epoch,
            "n_epochs": progress.epoch,
            "summary": _summary(run, progress, model, pca),
            "validation_fvu": model,
            "pca_fvu": pca,
            "attainable_share": diagnostics.attainable_share(model, pca),
            "verdicts": [asdict(verdict) for verdict in verdicts],
            "volumes_hash": run.volumes.content_hash,
        },
    )


def _yardstick(run: Run) -> str:
    fewer = len(run.rows["train"]) <= run.model_config.n_values
    return "the largest PCA that the training scans allow" if fewer else "PCA of equal size"


def _told_words(run: Run) -> str:
    told = ", ".join(run.model_config.condition)
    return f"; model and PCA were told {told} of every scan, the mean image was not" if told else ""


def _start_words(run: Run, model: float, pca: float) -> str:
    anchor = run.module.anchor
    if not isinstance(anchor, (PcaAnchor, LocalAnchor)):
        return "The untrained start"
    name = "PCA" if run.model_config.name == "autoencoder" else "Probabilistic PCA"
    if run.model_config.condition:
        name = f"{name} of what is left beside {', '.join(run.model_config.condition)}"
    if isinstance(anchor, LocalAnchor):
        return f"{name}, block by block (fraction of validation variance unexplained {model:.4f}, whole-brain PCA {pca:.4f})"
    if len(anchor.curve.images) == 0:
        return name
    return (
        f"{name} and a curve fitted to what it misses (fraction of validation variance unexplained {model:.4f}, PCA alone "
        f"{pca:.4f})"
    )


def _summary(run: Run, progress: Progress, model: float, pca: float) -> str:
    if progress.best_epoch == 0 and run.source is not None:
        return "The model that training started from; training added nothing."
    if progress.best_epoch == 0:
        return f"{_start_words(run, model, pca)}; the network added nothing."
    return (
        f"Best epoch {progress.best_epoch} of {progress.epoch}: fraction of validation variance unexplained {model:.4f}, "
        f"{_yardstick(run)} {pca:.4f}, mean image 1{_told_words(run)}."
    )
