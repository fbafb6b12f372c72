"""Training of a joint model: one visible loop, in which modalities are hidden at random."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from nilatent.models.multimodal import MultimodalVae
from nilatent.progress import track
from nilatent.provenance import hash_values
from nilatent.training.checkpoint import Progress, keep, resume, write_history
from nilatent.training.conditions import Column
from nilatent.training.config import TrainConfig, learning_rate
from nilatent.training.multimodal.config import MultimodalConfig
from nilatent.training.multimodal.data import Joined, Modality, check_modalities, join, learn_columns
from nilatent.training.multimodal.folder import TrainedMultimodal, load_multimodal, save_multimodal
from nilatent.training.multimodal.judge import balance, bounds, crossed
from nilatent.training.multimodal.start import sized, start
from nilatent.training.step import MAX_GRADIENT_NORM, DivergenceError
from nilatent.training.validation import Rows
from nilatent.volumes import Volumes

__all__ = ["MultimodalConfig", "TrainedMultimodal", "load_multimodal", "train_multimodal"]

# Raised when resume.safetensors holds something else, so that older ones are not taken up.
RESUME_VERSION = 2
# An epoch must beat the start by this many standard errors of the gain over validation subjects.
N_STANDARD_ERRORS = 2.0


@dataclass(frozen=True, eq=False)
class Training:
    """Everything one training holds on to."""

    joined: Joined
    rows: dict[str, Rows]
    subject: npt.NDArray[Any]
    module: MultimodalVae
    config: MultimodalConfig
    weight: Tensor
    optimiser: torch.optim.Optimizer
    device: torch.device
    folder: Path
    key: str
    gain: float
    start_bounds: npt.NDArray[np.float64]


def train_multimodal(
    modalities: Mapping[str, Modality],
    parts: pd.DataFrame,
    config: MultimodalConfig,
    folder: Path,
    *,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> TrainedMultimodal:
    """Train a joint model, or go on where a killed run stopped.

    Parameters
    ----------
    modalities : Mapping[str, Volumes or DataFrame]
        By name: volumes, each on a grid and mask of its own; tables with the index ``scan_id``, of numbers and words, any cell
        of which may be missing. Any scan may lack any of them.
    parts : DataFrame
        Index ``scan_id``, columns ``subject_id`` and ``part``. Scans of the part ``"train"`` move the weights, those of
        ``"validation"`` choose the epoch; no other is touched, and scans that have no row here are left out.
    config : MultimodalConfig
        Which model, and how it is trained.
    folder : Path
        Receives the model (see :func:`nilatent.training.multimodal.folder.save_multimodal`), ``history.tsv`` and
        ``resume.safetensors``, from which an interrupted run with the same settings and scans goes on.
    on_epoch : callable, optional
        Called with the new row of the history after each epoch.

    Returns
    -------
    TrainedMultimodal
        At the epoch with the highest evidence lower bound of all that is present of the validation scans. Epoch 0, the linear
        model, is a candidate: an epoch replaces it only with a gain of two standard errors over the validation subjects, and
        where it predicts modalities from one another no worse.

    Raises
    ------
    SettingError
        When the modalities cannot be joined or are too small; see
        :func:`nilatent.training.multimodal.data.check_modalities`.
    LeakageError
        When a subject is in both parts.
    DivergenceError
        When the loss stops being finite.
    """
    check_modalities(modalities, parts)
    training = parts.index[parts["part"] == "train"]
    columns = {
        name: learn_columns(table, list(training), name=name)
        for name, table in modalities.items()
        if not isinstance(table, Volumes)
    }
    used = parts[parts["part"].isin(("train", "validation"))]
    joined = join(modalities, list(used.index), columns)
    config = sized(config, [int((places[used["part"] == "train"] >= 0).sum()) for _, places in joined.volumes.values()])
    run = _set_up(joined, columns, used, config, Path(folder))
    learners = {"model": (run.module, run.optimiser)}
    progress = resume(run.folder, run.key, learners)
    if progress is None:
        progress = _advance(run, Progress({}, ()), loss=math.nan, began=time.perf_counter())
    for epoch in track(range(progress.epoch + 1, config.n_epochs + 1), total=config.n_epochs, label="multimodal"):
        if progress.epoch - progress.best_epoch >= config.patience:
            break
        began = time.perf_counter()
        loss = _epoch(run, epoch)
        progress = _advance(run, progress, loss=loss, began=began)
        keep(run.folder, run.key, progress, learners)
        if on_epoch is not None:
            on_epoch(progress.history[-1])
    for name, parameter in run.module.named_parameters():
        parameter.data.copy_(progress.best[name])
    write_history(run.folder, progress)
    save_multimodal(
        run.folder,
        module=run.module,
        config=config,
        volumes={name: volumes for name, (volumes, _) in joined.volumes.items()},
        columns=columns,
        parts=used,
        result=_result(run, progress),
    )
    return load_multimodal(run.folder)


def _set_up(
    joined: Joined,
    columns: Mapping[str, tuple[Column, ...]],
    parts: pd.DataFrame,
    config: MultimodalConfig,
    folder: Path,
) -> Training:
    there = joined.present.any(axis=1)
    rows = {part: np.flatnonzero((parts["part"] == part).to_numpy() & there) for part in ("train", "validation")}
    subject = parts["subject_id"].to_numpy(str)
    begun = start(joined, columns, rows["train"], subject[rows["train"]], config)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    module, device = begun.module.to(name), torch.device(name)
    # A noise has no reason to be near one, and biases none to be near zero.
    decayed = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    contents = [volumes.content_hash for volumes, _ in joined.volumes.values()]
    contents += [hash_values(cells) for cells in joined.cells.values()]
    return Training(
        joined=joined,
        rows=rows,
        subject=subject,
        module=module,
        config=config,
        weight=torch.tensor([float(config.weights.get(one, 1.0)) for one in joined.names], device=device),
        optimiser=torch.optim.AdamW(groups, lr=config.learning_rate),
        device=device,
        folder=folder,
        key=hash_values(
            [RESUME_VERSION, asdict(config), joined.names, contents, parts.reset_index().astype(str).to_numpy()]
        ),
        gain=begun.choice.gain,
        start_bounds=bounds(module, joined, rows["validation"], batch_size=config.batch_size, seed=config.seed).total,
    )


def _epoch(run: Training, epoch: int) -> float:
    # Order, hidden modalities and noise follow from seed and epoch alone, so a resumed run has no state to get wrong.
    rng = np.random.default_rng([run.config.seed, epoch])
    order = rng.permutation(run.rows["train"])
    generator = torch.Generator(run.device).manual_seed(int(rng.integers(2**62)))
    firsts = range(0, len(order), run.config.batch_size)
    n_values = sum(run.module.part(name).n_values for name in run.joined.names)
    total = 0.0
    for number, first in enumerate(firsts):
        rows = order[first : first + run.config.batch_size]
        x, present = run.joined.batch(rows, run.device)
        shown = present & torch.from_numpy(shown_at_random(run.joined.present[rows], run.config.dropout, rng)).to(
            run.device
        )
        bound = run.module.bound(
            x,
            shown,
            generator,
            hidden=present & ~shown if run.config.crossing > 0 else None,
            input_noise=run.config.input_noise,
            latent_noise=run.config.latent_noise,
        )
        crossed_over = (bound.from_others * run.weight).sum(dim=1)
        loss = -(bound.total(run.weight) + run.config.crossing * crossed_over).mean() / n_values
        run.optimiser.zero_grad()
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(run.module.parameters(), MAX_GRADIENT_NORM)
        told = loss.item()
        if not math.isfinite(told + norm.item()):
            scans = ", ".join(map(str, run.joined.scans[rows]))
            raise DivergenceError(
                f"The loss or its gradient is not finite (loss {told:g}) in epoch {epoch}, batch {number + 1}, with the "
                f"scans {scans}. Look at these scans, or train again with multimodal.learning_rate below "
                f"{run.config.learning_rate:g}."
            )
        done = epoch - 1 + (number + 1) / len(firsts)
        for group in run.optimiser.param_groups:
            group["lr"] = _rate(run.config, done)
        run.optimiser.step()
        total += told * len(rows)
    return total / len(order)


def shown_at_random(present: npt.NDArray[np.bool_], dropout: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Hide modalities of some scans: of each that is chosen, any set but all and none is equally likely to be shown.

    Parameters
    ----------
    present : ndarray
        (scan, modality) what is there.
    dropout : float
        Share of the scans chosen. One with a single modality keeps it.
    rng : Generator
        Source of the draws.

    Returns
    -------
    ndarray
        (scan, modality) what is shown: at least one modality wherever there is one.
    """
    shown = present.copy()
    for row in np.flatnonzero(rng.random(len(present)) < dropout):
        there = np.flatnonzero(present[row])
        if len(there) > 1:
            number = int(rng.integers(1, 2 ** len(there) - 1))
            shown[row, there] = [bool(number >> bit & 1) for bit in range(len(there))]
    return shown


def _rate(config: MultimodalConfig, epoch: float) -> float:
    same = TrainConfig(n_epochs=config.n_epochs, warmup_epochs=config.warmup_epochs, learning_rate=config.learning_rate)
    return learning_rate(same, epoch)


def _advance(run: Training, progress: Progress, *, loss: float, began: float) -> Progress:
    rows, epoch = run.rows["validation"], len(progress.history)
    found = bounds(run.module, run.joined, rows, batch_size=run.config.batch_size, seed=run.config.seed)
    row: dict[str, Any] = {"epoch": epoch, "train_loss": loss, "validation_elbo": float(found.total.mean())}
    row |= {f"{name}_nats": float(value) for name, value in zip(run.joined.names, found.likelihood, strict=True)}
    row |= {"private_kl": found.private_kl, "shared_kl": found.shared_kl}
    from_others = crossed(run.module, run.joined, rows, batch_size=run.config.batch_size)
    row |= {f"{name}_fvu_from_others": value for name, value in from_others.items()}
    row["seconds"] = round(time.perf_counter() - began, 3)
    better = not progress.history or (
        row["validation_elbo"] > progress.history[progress.best_epoch]["validation_elbo"]
        and _convincing(run, found.total)
        and _as_joint(run.joined.names, row, progress.history[0])
    )
    row["best_epoch"] = epoch if better else progress.best_epoch
    best = (
        {name: parameter.detach().clone() for name, parameter in run.module.named_parameters()}
        if better
        else progress.best
    )
    return Progress(best, (*progress.history, row))


def _convincing(run: Training, now: npt.NDArray[np.float64]) -> bool:
    # Visits of one person gain alike; people are what counts.
    person = run.subject[run.rows["validation"]]
    gain = pd.Series(now - run.start_bounds).groupby(person).mean().to_numpy()
    return len(gain) > 1 and bool(gain.mean() > N_STANDARD_ERRORS * gain.std(ddof=1) / math.sqrt(len(gain)))


def _as_joint(modalities: Sequence[str], now: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Whether modalities are predicted from one another no worse than by the linear model, on average."""
    names = [f"{name}_fvu_from_others" for name in modalities]
    known = [name for name in names if math.isfinite(first[name])]
    return bool(sum(now[name] for name in known) <= sum(first[name] for name in known))


def _result(run: Training, progress: Progress) -> dict[str, Any]:
    best, first = progress.history[progress.best_epoch], progress.history[0]
    linear = f"The linear model ({run.module.n_shared} shared latents)"
    told = (
        f"{linear}; the networks added nothing."
        if progress.best_epoch == 0
        else f"Best epoch {progress.best_epoch} of {progress.epoch}: evidence lower bound of the validation scans "
        f"{best['validation_elbo']:.1f} nats per scan, of the linear start {first['validation_elbo']:.1f}."
    )
    if not run.gain > 0:
        told += (
            " Of left-out training subjects no modality could be predicted from the others: nothing shared is shown."
        )
    counts = {
        part: {
            name: int(count) for name, count in zip(run.joined.names, run.joined.present[rows].sum(axis=0), strict=True)
        }
        for part, rows in run.rows.items()
    }
    return {
        "summary": told,
        "best_epoch": progress.best_epoch,
        "n_epochs": progress.epoch,
        "n_shared": run.module.n_shared,
        "sharing_gain": run.gain,
        "validation_elbo": best["validation_elbo"],
        "start_elbo": first["validation_elbo"],
        "fvu_from_others": {name: best[f"{name}_fvu_from_others"] for name in run.joined.names},
        "n_scans": counts,
        "balance": balance(run.module, run.joined, run.rows["validation"], run.config.weights),
    }
