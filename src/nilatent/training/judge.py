"""The diagnosis of a training: a few figures after every epoch, and a verdict in words on the weights that are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from nilatent.models import SpatialVae
from nilatent.models.losses import squared_error
from nilatent.models.perceptual import edge_error, high_frequency_energy
from nilatent.training import diagnostics, nuisance, prior
from nilatent.training.diagnostics import Swap, Verdict
from nilatent.training.reference import Reference, copies, partners, probed
from nilatent.training.start import Run, sample
from nilatent.training.validation import (
    Rows,
    Validation,
    exact,
    inside,
    posteriors,
    read_batch,
    told,
    validate,
)

MAX_PROBED_EACH_EPOCH = 8
"""Scans of each part that are looked at in detail after every epoch; fewer than half of a small validation part."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Judgement:
    """What the diagnosis says of the present weights.

    Parameters
    ----------
    verdicts : tuple[Verdict, ...]
        One per failure that the model can have.
    figures : dict
        Columns of the history: ``attainable_share``, ``gap``, ``shuffle_ratio``, ``n_active``, ``active_share``,
        ``prior_distance``, ``high_frequency``, ``nuisance_r2`` and ``failures``, the names of those found.
    """

    verdicts: tuple[Verdict, ...]
    figures: dict[str, int | float | str]


@dataclass(frozen=True, eq=False)
class Look:
    """Some validation scans in detail.

    Parameters
    ----------
    swap : Swap
        What is lost with another scan's latents.
    detail, missed, edges : tuple[float, float]
        Fine detail and what is missed of it, relative to the scans, and error in the strength of edges, of the model and of
        PCA.
    drawn, x : ndarray
        (scan, voxel) reconstructions and scans.
    """

    swap: Swap
    detail: tuple[float, float]
    missed: tuple[float, float]
    edges: tuple[float, float]
    drawn: Array
    x: Array


def judge(
    run: Run,
    checked: Validation,
    *,
    reference: Reference,
    nuisances: pd.DataFrame,
    last: float | None = None,
    stopped: str = "",
    whole: bool = False,
) -> Judgement:
    """Look for everything that usually goes wrong, in the weights as they are now.

    Parameters
    ----------
    run : Run
        The training.
    checked : Validation
        Of all validation scans with the present weights.
    reference : Reference
        PCA of equal size on the same scans.
    nuisances : DataFrame
        Columns that the latents shall not tell of, from :func:`nilatent.training.nuisance.present`; may have none.
    last : float, optional
        Validation FVU after the last epoch, where the weights are those of an earlier one.
    stopped : str
        What stopped the training; empty when nothing did.
    whole : bool
        After an epoch only a few scans are looked at in detail and nothing is permuted, so that it costs a fraction of the
        pass over the validation scans. At the end all is looked at, the latents of the training scans included.
    """
    few = len(reference.probed) if whole else max(2, min(MAX_PROBED_EACH_EPOCH, len(checked.means) // 2))
    look = _look(run, checked, reference, probed(len(reference.probed), most=few))
    sampled = sample(run.rows)
    places = probed(len(sampled), most=len(sampled) if whole else few)
    trained = _validated(run, sampled[places])
    on_training = [
        float(errors.mean() / np.asarray(reference.training_errors)[places].mean())
        for errors in (trained.errors, np.asarray(reference.training_pca_errors)[places])
    ]
    model, pca = diagnostics.fvu(checked.fit, run.mean_image), diagnostics.fvu(run.pca, run.mean_image)
    conditional = bool(run.model_config.condition)
    minimum = diagnostics.mean_local_minimum(
        checked.fit, run.pca, run.mean_image, swap=look.swap if conditional else None
    )
    # One brain for all is smooth, and nearer to some training scan than to its own; that is another failure.
    told_apart = minimum.state == "absent"
    shares = None
    if whole and told_apart:
        shares = (copies(look.x, look.drawn, run.volumes, run.rows["train"]), reference.pca_copies)
    verdicts = [
        minimum,
        diagnostics.overfitting(
            (on_training[0], model), (on_training[1], pca), last=model if last is None else last, copies=shares
        ),
        diagnostics.blur(look.detail, look.missed, look.edges, told_apart=told_apart),
    ]
    latent, told_of = _latent_verdicts(run, checked, look, nuisances, stopped=stopped, whole=whole)
    verdicts += latent
    used = _used(run)
    n_active = int(diagnostics.active(checked.means[:, used], checked.kl[:, used]).sum())
    figures: dict[str, int | float | str] = {
        "attainable_share": diagnostics.attainable_share(model, pca),
        "gap": model - on_training[0],
        "shuffle_ratio": look.swap.model,
        "n_active": n_active,
        "active_share": n_active / int(used.sum()),
        "prior_distance": _prior_distance(run, checked),
        "high_frequency": look.detail[0],
        "nuisance_r2": max((one.r2 for one in told_of), default=float("nan")),
        "failures": ", ".join(verdict.failure for verdict in verdicts if verdict.state == "found") or "none",
    }
    return Judgement(tuple(verdicts), figures)


def _latent_verdicts(
    run: Run, checked: Validation, look: Look, nuisances: pd.DataFrame, *, stopped: str, whole: bool
) -> tuple[list[Verdict], list[nuisance.Told]]:
    used, cells = _used(run), _cells(run)
    variational = run.model_config.variational
    verdicts = [diagnostics.divergence(checked.log_vars[:, used] if variational else None, stopped=stopped)]
    if variational:
        verdicts.append(
            diagnostics.posterior_collapse(
                checked.means[:, used], checked.kl[:, used], swap=look.swap, grid=cells is not None
            )
        )
    if not whole:
        return verdicts, _told(nuisances, checked.means[:, used], run, run.rows["validation"], n_permutations=0)
    rows = run.rows["train"][probed(len(run.rows["train"]), most=nuisance.MAX_SUBJECTS)]
    means, log_vars = _encoded(run, rows)
    if variational:
        shape = run.module.latent_shape
        latents = [prior.by_channel(values, shape, cells) for values in (means, log_vars)]
        enough = len(latents[0]) >= diagnostics.MIN_SCANS_FOR_MOMENTS
        far = prior.distance(latents[0], latents[1], seed=run.config.seed) if enough else None
        verdicts.append(diagnostics.prior_mismatch(latents[0], latents[1], distance=far))
    both = np.concatenate([means, checked.means])[:, used]
    found = _told(nuisances, both, run, np.concatenate([rows, run.rows["validation"]]))
    return [*verdicts, nuisance.nuisance_latents(found)], found


def _look(run: Run, checked: Validation, reference: Reference, chosen: Rows) -> Look:
    """Draw the probed scans from their own latents and from those of another."""
    module, device = run.module, run.fabric.device
    positions = np.asarray(reference.probed)[chosen]
    swapped_positions = partners(len(checked.means))[positions]
    swapped, detail, missed, edges, scans, drawn = [], [], [], [], [], []
    for start in range(0, len(positions), run.config.piece):
        part = slice(start, start + run.config.piece)
        rows = run.rows["validation"][positions[part]]
        own, other = (torch.from_numpy(checked.means[at[part]]).to(device) for at in (positions, swapped_positions))
        with exact():
            x, c, mask = read_batch(run.volumes, rows).to(device), told(run.told, rows, device), module.anchor.mask
            made = module.decode(own, c)
            swapped += squared_error(x, module.decode(other, c), mask).tolist()
            detail += high_frequency_energy(made, mask).tolist()
            missed += high_frequency_energy(x - made, mask).tolist()
            edges += edge_error(x, made, mask).tolist()
        scans.append(inside(module, x))
        drawn.append(inside(module, made))
    mean = {
        name: float(np.asarray(getattr(reference, name))[chosen].mean())
        for name in ("detail", "pca_detail", "pca_missed", "pca_edges", "pca_errors", "pca_swapped_errors")
    }
    error, there = float(checked.errors[positions].mean()), max(mean["detail"], 1e-30)
    return Look(
        swap=Swap(
            model=float(np.mean(swapped)) / scans[0].shape[1] / max(error, 1e-30),
            pca=mean["pca_swapped_errors"] / max(mean["pca_errors"], 1e-30),
        ),
        detail=(float(np.mean(detail)) / there, mean["pca_detail"] / there),
        missed=(float(np.mean(missed)) / there, mean["pca_missed"] / there),
        edges=(float(np.mean(edges)), mean["pca_edges"]),
        drawn=np.concatenate(drawn),
        x=np.concatenate(scans),
    )


def _validated(run: Run, rows: Rows) -> Validation:
    return validate(run.module, run.volumes, rows, batch_size=run.config.piece, conditions=run.told)


def _encoded(run: Run, rows: Rows) -> tuple[Array, Array]:
    """Means and log-variances of some scans."""
    found = [
        (posterior.mean.cpu().numpy(), posterior.log_var.cpu().numpy())
        for _, _, _, posterior in posteriors(
            run.module, run.volumes, rows, batch_size=run.config.piece, conditions=run.told
        )
    ]
    return np.concatenate([mean for mean, _ in found]), np.concatenate([log_var for _, log_var in found])


def _told(
    nuisances: pd.DataFrame, latents: Array, run: Run, rows: Rows, *, n_permutations: int = nuisance.N_PERMUTATIONS
) -> list[nuisance.Told]:
    scans = run.volumes.scans.iloc[rows]
    subjects: Sequence[str] = scans["subject_id"].tolist()
    found = [
        nuisance.told(
            latents, nuisances[name].loc[scans.index], subjects, n_permutations=n_permutations, seed=run.config.seed
        )
        for name in nuisances
    ]
    return [one for one in found if one is not None]


def _prior_distance(run: Run, checked: Validation) -> float:
    if not run.model_config.variational:
        return float("nan")
    shape, cells = run.module.latent_shape, _cells(run)
    means, log_vars = (prior.by_channel(values, shape, cells) for values in (checked.means, checked.log_vars))
    return prior.discrepancy(means, log_vars, seed=run.config.seed) if len(means) > 1 else float("nan")


def _cells(run: Run) -> npt.NDArray[np.bool_] | None:
    """Cells of a latent grid with a voxel of the mask; None for a vector."""
    if not isinstance(run.module, SpatialVae):
        return None
    return np.asarray(run.module.cells.cpu().numpy() > 0)


def _used(run: Run) -> npt.NDArray[np.bool_]:
    """Latents that differ from scan to scan at all, (latent,): of a grid those of cells with a voxel of the mask."""
    cells = _cells(run)
    if cells is None:
        return np.ones(run.model_config.n_values, dtype=bool)
    return np.tile(cells.reshape(-1), run.module.latent_shape[0])
