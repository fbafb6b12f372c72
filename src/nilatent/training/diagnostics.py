"""What goes wrong in training, measured on the validation scans and said in words."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nilatent.models.losses import LOG_VAR_RANGE
from nilatent.training.prior import PriorDistance

# Below this share PCA itself explains next to nothing, and failing to follow it is no failure.
NOTHING_ATTAINABLE = 0.01
ATTAINABLE_SHARE = 0.5
SAME_BRAIN_CORRELATION = 0.999
ACTIVE_VARIANCE = 0.01
COLLAPSED_KL = 0.01
MEAN_MINIMUM_REMEDIES = (
    "overfit eight scans as a check; lower the learning rate and warm up longer; start from the PCA anchor; smooth the "
    "maps or use a coarser grid when there are few scans; raise n_latent; change the seed"
)
# Of the variance: how much wider than PCA's the gap between training and validation may be, and how much may be lost again.
MAX_EXTRA_GAP = 0.1
MIN_SCANS_FOR_MOMENTS = 10
MAX_MEAN_OFF = 0.5
# Of what PCA loses when scans swap latents: below this share the decoder does not listen, unless PCA loses next to nothing.
HEARD_SHARE, MIN_PCA_LOSS = 0.1, 0.02
# A latent grid holds more than a cohort can fill; it has collapsed only where next to none of its values say anything.
MIN_GRID_SHARE = 0.01
# Share of the validation scans, beyond PCA's, that are drawn more like a training scan than like themselves.
MAX_EXTRA_COPIES = 0.25
CLAMPED_SHARE = 0.01
MAX_CLAMP_DISTANCE = 1e-3
# Of the fine detail of the scans, and of what PCA of equal size leaves of it.
MIN_DETAIL, MIN_DETAIL_OF_PCA = 0.5, 0.8
OVERFITTING_REMEDIES = (
    "stop earlier; augmentation (training.augment); more weight decay; more noise on scans and latents; fewer latents; more "
    "scans"
)
MISMATCH_REMEDIES = (
    "train longer; raise beta or, of a vector, info_lambda; sample from a density fitted to the latents instead"
)
COLLAPSE_REMEDIES = (
    "warm the KL up (training.kl_warmup_epochs); leave sigma out, so that each batch uses its optimal value; lower beta; "
    "free bits; Info-VAE (model.info_alpha)"
)
DIVERGENCE_REMEDIES = (
    "a third of training.learning_rate and a longer warm-up; leave sigma out; look for scans unlike all others"
)
BLUR_REMEDIES = (
    "a spatial latent (model.name = spatial_vae) with the perceptual and the late adversarial term; a finer latent_grid or "
    "a larger n_latent; a lower beta"
)


@dataclass(frozen=True)
class Fit:
    """How a reconstruction does on a set of scans.

    Parameters
    ----------
    mse : float
        Mean squared error per voxel inside the mask.
    variance : float
        Variance of the reconstructions across scans, mean over voxels.
    correlation : float
        Mean correlation between the reconstructions of two scans, over voxels; NaN for a single scan.
    """

    mse: float
    variance: float
    correlation: float


@dataclass(frozen=True)
class Verdict:
    """One possible failure, judged.

    Parameters
    ----------
    failure : str
        ``"mean local minimum"``, ``"posterior collapse"``, ``"prior mismatch"``, ``"divergence"``, ``"over-fitting"``,
        ``"blur"`` or ``"nuisance latents"``.
    state : str
        ``"found"``, ``"absent"``, ``"noted"`` (no fault of the training, and worth knowing), ``"nothing attainable"``,
        ``"stopped"`` or ``"not assessed"``.
    sentence : str
        The same in words, with numbers and, when found, what to try in which order.
    """

    failure: str
    state: str
    sentence: str


def fit(pairs: Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]) -> Fit:
    """Summarise scans and their reconstructions, chunk by chunk.

    Parameters
    ----------
    pairs : Iterable
        Chunks of (scans, reconstructions), each (scan, voxel) inside the mask.

    Returns
    -------
    Fit
        Over all chunks.
    """
    n_scans, n_voxels, error, power = 0, 0, 0.0, 0.0
    total: npt.NDArray[np.float64] | float = 0.0
    direction: npt.NDArray[np.float64] | float = 0.0
    for scans, reconstructions in pairs:
        n_scans, n_voxels = n_scans + len(scans), scans.shape[1]
        error += float(np.square(scans - reconstructions, dtype=np.float64).sum())
        made = reconstructions.astype(np.float64)
        power += float(np.square(made).sum())
        total = total + made.sum(axis=0)
        made -= made.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(made, axis=1, keepdims=True)
        direction = direction + (made / np.where(norm > 0, norm, 1.0)).sum(axis=0)
    if n_scans < 2:
        return Fit(error / max(n_scans * n_voxels, 1), 0.0, float("nan"))
    # Both sums over pairs of scans follow from one sum over scans, so nothing quadratic is held.
    variance = (power - float(np.square(total).sum()) / n_scans) / (n_scans - 1) / n_voxels
    correlation = (float(np.square(direction).sum()) - n_scans) / (n_scans * (n_scans - 1))
    return Fit(error / (n_scans * n_voxels), max(variance, 0.0), correlation)


def fvu(model: Fit, mean_image: Fit) -> float:
    """Fraction of variance unexplained: the model's squared error relative to that of the mean image.

    Returns
    -------
    float
        0 is perfect, 1 as good as the mean image of the training scans, above 1 worse.
    """
    return model.mse / mean_image.mse if mean_image.mse > 0 else float("nan")


def attainable_share(model: float, pca: float) -> float:
    """Explained share relative to what PCA of equal size attains.

    Parameters
    ----------
    model, pca : float
        FVU of each on the same scans.

    Returns
    -------
    float
        (1 - model) / (1 - pca): 1 is as good as PCA; NaN where PCA explains nothing.
    """
    return (1.0 - model) / (1.0 - pca) if pca < 1.0 else float("nan")


def mean_local_minimum(model: Fit, pca: Fit, mean_image: Fit, *, swap: "Swap | None" = None) -> Verdict:
    """Judge whether the model draws the same brain for everybody although more is attainable.

    Parameters
    ----------
    model, pca, mean_image : Fit
        Of the same validation scans; PCA has as many components as the model has latents.
    swap : Swap, optional
        Of a model that is told conditions: these alone can explain a part, with one brain for all who share them.

    Returns
    -------
    Verdict
        Found when the share of what PCA attains is below one half, when the reconstructions vary less than half as much
        as PCA's, when they are all alike (correlation above .999) while PCA's are not, or when the latents go unheard.
    """
    name = "mean local minimum"
    model_fvu, pca_fvu = fvu(model, mean_image), fvu(pca, mean_image)
    if not 1.0 - pca_fvu >= NOTHING_ATTAINABLE:
        sentence = (
            f"Nothing attainable: PCA of equal size explains {100 * (1 - pca_fvu):.1f} % of the validation variance, "
            "so this says nothing about the model. Smooth the maps, use a coarser grid or bring more scans."
        )
        return Verdict(name, "nothing attainable", sentence)
    share = attainable_share(model_fvu, pca_fvu)
    told = (
        f"the model explains {100 * (1 - model_fvu):.1f} % of the validation variance, PCA {100 * (1 - pca_fvu):.1f} %"
    )
    alike = model.correlation > SAME_BRAIN_CORRELATION and not pca.correlation > SAME_BRAIN_CORRELATION
    if swap is not None:
        told += f", and with another scan's latents the error is {swap.model:.3f} times as large (PCA's {swap.pca:.3f})"
    unheard = swap is not None and swap.unheard
    if share < ATTAINABLE_SHARE or model.variance < 0.5 * pca.variance or alike or unheard:
        return Verdict(name, "found", f"Mean local minimum: {told}. Try, in this order: {MEAN_MINIMUM_REMEDIES}.")
    return Verdict(name, "absent", f"No mean local minimum: {told}.")


@dataclass(frozen=True)
class Swap:
    """What reconstructions lose when scans swap their latents.

    Parameters
    ----------
    model, pca : float
        Mean squared error with another scan's latents, relative to that with a scan's own; 1 says that latents do not
        matter. PCA has as many components as the model has latents.
    """

    model: float
    pca: float

    @property
    def unheard(self) -> bool:
        """Whether the decoder ignores its latents although those of PCA matter."""
        return self.pca > 1.0 + MIN_PCA_LOSS and self.model - 1.0 < HEARD_SHARE * (self.pca - 1.0)


def posterior_collapse(
    means: npt.NDArray[np.float32], kl: npt.NDArray[np.float32], *, swap: Swap | None = None, grid: bool = False
) -> Verdict:
    """Judge whether latents of a variational model carry nothing.

    Parameters
    ----------
    means : ndarray
        (scan, latent) posterior means.
    kl : ndarray
        (scan, latent) KL to the prior, in nats.
    swap : Swap, optional
        What the reconstructions lose when scans swap their latents.
    grid : bool
        Whether the latents are the values of a grid, of cells with a voxel of the mask. There are more of them than a
        cohort can fill, so that most may be inactive in a sound model.

    Returns
    -------
    Verdict
        Found when the decoder does not listen (a swap costs less than a tenth of what it costs PCA), when at least half of
        the latents of a vector are inactive, or when no more than a hundredth of those of a grid are active.

    References
    ----------
    Burda, Grosse & Salakhutdinov 2016, Importance weighted autoencoders. doi:10.48550/arXiv.1509.00519
    """
    name, n_latent = "posterior collapse", means.shape[1]
    n_active = int(active(means, kl).sum())
    told = (
        f"{n_active} of {n_latent} latents are active (variance of the mean above {ACTIVE_VARIANCE}, KL above it too)"
    )
    if swap is not None:
        told += f", and with another scan's latents the error is {swap.model:.3f} times as large (PCA's {swap.pca:.3f})"
    silent = n_active <= MIN_GRID_SHARE * n_latent if grid else 2 * n_active <= n_latent
    if silent or (swap is not None and swap.unheard):
        return Verdict(name, "found", f"Posterior collapse: {told}. Try, in this order: {COLLAPSE_REMEDIES}.")
    return Verdict(name, "absent", f"No posterior collapse: {told}.")


def overfitting(
    model: tuple[float, float], pca: tuple[float, float], *, last: float, copies: tuple[float, float] | None = None
) -> Verdict:
    """Judge whether the model knows the training scans by heart.

    Parameters
    ----------
    model, pca : tuple[float, float]
        FVU on training scans and on validation scans; PCA of equal size, whose own gap is what the number of scans costs.
    last : float
        FVU on validation scans after the last epoch, whose weights are not kept when an earlier epoch was better.
    copies : tuple[float, float], optional
        Share of the validation scans that are drawn more like some training scan than like themselves, by the model and by
        PCA; NaN where there are too few scans.

    Returns
    -------
    Verdict
        Found when the gap is wider than PCA's by more than a tenth of the variance (and the model is better than the mean
        image on training scans), or when half of the validation scans are drawn as copies, and a quarter more than by PCA;
        noted when such a gap costs nothing, validation scans being explained at least as well as by PCA;
        stopped when the kept weights are sound and later epochs lost more than a tenth of the variance on validation scans.
    """
    gap, usual = model[1] - model[0], pca[1] - pca[0]
    told = (
        f"fraction of variance unexplained {model[0]:.3f} on training and {model[1]:.3f} on validation scans, "
        f"PCA {pca[0]:.3f} and {pca[1]:.3f}"
    )
    copied = False
    if copies is not None and np.isfinite(copies).all():
        copied = copies[0] >= 0.5 and copies[0] > copies[1] + MAX_EXTRA_COPIES
        told += (
            f"; {100 * copies[0]:.0f} % of the validation scans are drawn more like a training scan than like themselves, "
            f"{100 * copies[1]:.0f} % by PCA"
        )
    # Worse than the mean image on its own training scans: whatever the gap, nothing was learned by heart.
    wide = gap > usual + MAX_EXTRA_GAP and model[0] < 1.0
    if wide and not copied and model[1] <= pca[1]:
        noted = "The model knows the training scans better than PCA does and loses nothing by it on validation scans"
        return Verdict("over-fitting", "noted", f"{noted}: {told}. Figures of training scans flatter it.")
    if wide or copied:
        return Verdict("over-fitting", "found", f"Over-fitting: {told}. Try, in this order: {OVERFITTING_REMEDIES}.")
    if last > model[1] + MAX_EXTRA_GAP:
        stopped = f"Over-fitting was stopped: it rose to {last:.3f} on validation scans after the epoch that was kept"
        return Verdict("over-fitting", "stopped", f"{stopped}; {told}.")
    return Verdict("over-fitting", "absent", f"No over-fitting beyond PCA's: {told}.")


def prior_mismatch(
    means: npt.NDArray[np.float32], log_vars: npt.NDArray[np.float32], *, distance: PriorDistance | None = None
) -> Verdict:
    """Judge whether the latents of all scans together lie where the prior says.

    Parameters
    ----------
    means, log_vars : ndarray
        (scan, latent) posteriors of training scans: the aggregate of held-out ones is narrower in any model that learned
        from few. Of a latent grid, (scan and cell, channel).
    distance : PriorDistance, optional
        Between the same latents and the prior: it sees clusters and holes, which moments do not.

    Returns
    -------
    Verdict
        Found when the typical latent has under half or over twice the variance of the prior, when the means of the latents
        are off zero by more than half a standard deviation of the prior (root mean square), or when the latents are further
        from the prior than chance and a third of the variance would put them.

    References
    ----------
    Rosca, Lakshminarayanan & Mohamed 2018, Distribution matching in variational inference. doi:10.48550/arXiv.1802.06847
    """
    name = "prior mismatch"
    if len(means) < MIN_SCANS_FOR_MOMENTS:
        return Verdict(
            name, "not assessed", f"Not assessed: {len(means)} scans, at least {MIN_SCANS_FOR_MOMENTS} needed."
        )
    spread = means.var(axis=0, ddof=1) + np.exp(log_vars).mean(axis=0)
    typical = float(np.exp(np.median(np.log(np.maximum(spread, 1e-12)))))
    # What a mean over so many scans is off by chance alone is taken away.
    off = float(np.sqrt(max(np.square(means.mean(axis=0)).mean() - spread.mean() / len(means), 0.0)))
    told = (
        f"the typical latent has {typical:.2f} times the variance of the prior, and the means are off by {off:.2f} SD"
    )
    far = False
    if distance is not None:
        limit = max(distance.by_chance, distance.tolerated)
        far = distance.value > limit
        told += (
            f"; the squared discrepancy of all latents together is {distance.value:.3f}, tolerated up to {limit:.3f}"
        )
    if 0.5 <= typical <= 2.0 and off <= MAX_MEAN_OFF and not far:
        return Verdict(name, "absent", f"No prior mismatch: {told}.")
    return Verdict(name, "found", f"Prior mismatch: {told}. Try, in this order: {MISMATCH_REMEDIES}.")


def divergence(log_vars: npt.NDArray[np.float32] | None, *, stopped: str = "") -> Verdict:
    """Judge whether the training ran off.

    Parameters
    ----------
    log_vars : ndarray or None
        (scan, latent) of the posteriors; None for a model whose latents have no width.
    stopped : str
        What stopped the training, naming epoch, batch and scans, and what to do; empty when nothing did.

    Returns
    -------
    Verdict
        Found when the loss or its gradient was not finite, or when more than a hundredth of the log-variances are at a limit
        of their range.
    """
    name = "divergence"
    if stopped:
        return Verdict(name, "found", f"Divergence: {stopped}")
    if log_vars is None:
        return Verdict(name, "absent", "No divergence: the loss and its gradient were finite in every step.")
    off = np.minimum(log_vars - LOG_VAR_RANGE[0], LOG_VAR_RANGE[1] - log_vars)
    share = float((off < MAX_CLAMP_DISTANCE).mean())
    told = f"{100 * share:.1f} % of the log-variances are at a limit of their range, {LOG_VAR_RANGE[0]:g} to {LOG_VAR_RANGE[1]:g}"
    if share > CLAMPED_SHARE:
        return Verdict(name, "found", f"Divergence: {told}. Try, in this order: {DIVERGENCE_REMEDIES}.")
    return Verdict(name, "absent", f"No divergence: the loss and its gradient were finite in every step, and {told}.")


def blur(
    detail: tuple[float, float], missed: tuple[float, float], edges: tuple[float, float], *, told_apart: bool = True
) -> Verdict:
    """Judge whether the reconstructions are smoother than they need to be.

    Parameters
    ----------
    detail, missed : tuple[float, float]
        Fine detail (energy of the finest band) of the reconstructions, and of their difference from the scans, relative to
        that of the scans; of the model and of PCA of equal size.
    edges : tuple[float, float]
        Absolute error in the strength of edges, in units of the scans, of the model and of PCA.
    told_apart : bool
        Whether the model draws people apart at all, and not one smooth brain for everybody.

    Returns
    -------
    Verdict
        Found when the model leaves less than half of the scans' fine detail and less than four fifths of what PCA leaves, and
        misses more of it than PCA: noise is fine detail too, and to leave it out misses nothing.
    """
    told = (
        f"the reconstructions hold {100 * detail[0]:.0f} % of the scans' fine detail and miss {100 * missed[0]:.0f} % of it, "
        f"PCA's {100 * detail[1]:.0f} and {100 * missed[1]:.0f} %; edges are off by {edges[0]:.3g}, PCA's by {edges[1]:.3g}"
    )
    if not told_apart:
        return Verdict("blur", "not assessed", f"Not assessed, because the model does not tell people apart: {told}.")
    if detail[0] < min(MIN_DETAIL, MIN_DETAIL_OF_PCA * detail[1]) and missed[0] > missed[1]:
        return Verdict("blur", "found", f"Blur: {told}. Try, in this order: {BLUR_REMEDIES}.")
    return Verdict("blur", "absent", f"No blur beyond PCA's: {told}.")


def active(means: npt.NDArray[np.float32], kl: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Mark the latents that vary over scans and cost something; (latent,) bool."""
    varies = means.var(axis=0) > ACTIVE_VARIANCE
    return np.asarray(varies & (kl.mean(axis=0) > COLLAPSED_KL), dtype=bool)
