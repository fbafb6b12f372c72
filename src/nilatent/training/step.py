"""One step of a training: a batch in pieces, shared among the processes, whose gradients add up to that of the whole."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nilatent.errors import NilatentError
from nilatent.provenance import hash_values
from nilatent.training.augment import augment
from nilatent.training.config import kl_weight, learning_rate
from nilatent.training.devices import add_up
from nilatent.training.objective import Objective
from nilatent.training.spatial import SpatialObjective
from nilatent.training.start import Rival, Run
from nilatent.training.validation import Rows, read_batch, told

MAX_GRADIENT_NORM = 1.0


class DivergenceError(NilatentError):
    """The loss or its gradient is not finite; the best state so far is kept."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The scans of one step.

    Parameters
    ----------
    rows : ndarray
        Which scans.
    epoch, number : int
        Of which epoch, counted from 1, and the how manieth of it, counted from 0.
    n_batches : int
        Steps of the epoch.
    first : int
        Place of its first scan in the order of the epoch.
    """

    rows: Rows
    epoch: int
    number: int
    n_batches: int
    first: int


def step(run: Run, batch: Batch, rival: Rival | None) -> float:
    """Take one step down, with the model and then with its critic where that is on.

    Parameters
    ----------
    run : Run
        The training; its weights and the state of its optimisers are changed.
    batch : Batch
        The scans.
    rival : Rival, optional
        The critic, once it is on.

    Returns
    -------
    float
        Loss of the batch, the mean over its scans: the same in every process.

    Raises
    ------
    DivergenceError
        When the loss or a gradient is not finite; no weight has moved then.
    """
    rate = learning_rate(run.config, batch.epoch - 1 + (batch.number + 1) / batch.n_batches)
    run.optimiser.zero_grad()
    if rival is not None:
        rival.optimiser.zero_grad()
    loss = latents = judged = torch.zeros((), device=run.fabric.device)
    if isinstance(run.bare_objective, Objective):
        latents = torch.zeros(len(batch.rows), run.model_config.n_latent, device=run.fabric.device)
    weight = kl_weight(run.config, batch.epoch - 1 + batch.number / batch.n_batches)
    for place in _own_places(run, batch):
        piece = batch.rows[place : place + run.config.piece]
        generator = _generator(run, batch, place)
        share = len(piece) / len(batch.rows)
        own, of_critic = gradients(run, piece, generator, share=share, kl_weight=weight, rival=rival)
        loss, judged = loss + own, judged + of_critic
        if isinstance(run.bare_objective, Objective):
            latents[place : place + len(piece)] = run.bare_objective.latents
    modules: list[nn.Module] = [run.module] if rival is None else [run.module, rival.critic]
    loss, judged, latents = add_up(run.fabric, modules, loss, judged, latents)
    _descend(run, run.objective, run.optimiser, loss.item(), rate=rate, batch=batch)
    if rival is not None:
        _descend(run, rival.objective, rival.optimiser, judged.item(), rate=rate, batch=batch)
    if isinstance(run.bare_objective, Objective):
        run.bare_objective.remember(latents)
    return loss.item()


def _own_places(run: Run, batch: Batch) -> list[int]:
    """Where the pieces of this process begin in the batch; the processes take turns."""
    places = range(0, len(batch.rows), run.config.piece)
    return list(places[run.fabric.global_rank :: run.fabric.world_size])


def _generator(run: Run, batch: Batch, place: int) -> torch.Generator:
    # The noise follows from the seed and the place in the epoch alone, so it is the same in whatever process, and a resumed
    # run has no generator state to get wrong.
    seed = int(hash_values([run.config.seed, batch.epoch, batch.first + place])[:15], 16)
    return torch.Generator(run.fabric.device).manual_seed(seed)


def gradients(
    run: Run, piece: Rows, generator: torch.Generator, *, share: float, kl_weight: float, rival: Rival | None
) -> tuple[Tensor, Tensor]:
    """Add the gradients of some scans to those that the weights hold already.

    Parameters
    ----------
    run : Run
        The training.
    piece : ndarray
        Rows of the scans, which go through the network together.
    generator : Generator
        Source of their noise.
    share : float
        Weight of their mean: the part of the batch that they are.
    kl_weight : float
        Share of the KL's weight that is in force.
    rival : Rival, optional
        The critic, once it is on.

    Returns
    -------
    loss, judged : Tensor
        Weighed losses of the model and of the critic, which is 0 without one.
    """
    device = run.fabric.device
    x, c = read_batch(run.volumes, piece).to(device), told(run.told, piece, device)
    x = augment(x, run.module.anchor.mask, generator, names=run.config.augment, spacing_mm=run.volumes.grid.spacing_mm)
    judged = torch.zeros((), device=device)
    if isinstance(run.bare_objective, SpatialObjective):
        critic = None if rival is None else rival.critic
        loss = run.objective(x, generator, c, kl_weight=kl_weight, critic=critic) * share
        run.fabric.backward(loss)
        if rival is not None:
            judged = rival.objective(x, run.bare_objective.drawn) * share
            run.fabric.backward(judged)
    else:
        loss = run.objective(x, generator, c, told(run.score, piece, device), kl_weight=kl_weight) * share
        run.fabric.backward(loss)
    return loss.detach(), judged.detach()


def _descend(
    run: Run, objective: nn.Module, optimiser: torch.optim.Optimizer, loss: float, *, rate: float, batch: Batch
) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group.get("rate", 1.0) * rate
    norm = run.fabric.clip_gradients(objective, optimiser, max_norm=MAX_GRADIENT_NORM, error_if_nonfinite=False)
    # Looked at before the step, so that the weights are never touched by what is not finite.
    if norm is None or not math.isfinite(loss + norm.item()):
        raise _divergence(run, batch, loss)
    optimiser.step()


def _divergence(run: Run, batch: Batch, loss: float) -> DivergenceError:
    scans = ", ".join(run.volumes.scans.index[batch.rows])
    return DivergenceError(
        f"The loss or its gradient is not finite (loss {loss:g}) in epoch {batch.epoch}, batch {batch.number + 1}, with the "
        f"scans {scans}. The state after epoch {batch.epoch - 1} and the best weights so far are kept in {run.folder}. Look "
        f"at these scans, or train again with training.learning_rate below {run.config.learning_rate:g}."
    )
