"""What goes wrong in training, measured on the validation scans and said in words."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
OVERFITTING_REMEDIES = "stop earlier; more weight decay; more noise on scans and latents; fewer latents; more scans"
MISMATCH_REMEDIES = "raise info_lambda; raise beta; sample from a density fitted to the latents and not from the prior"
COLLAPSE_REMEDIES = "warm the KL up; lower beta; leave sigma out, so that each batch uses its optimal value"


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
        ``"mean local minimum"``, ``"posterior collapse"``, ``"over-fitting"`` or ``"prior mismatch"``.
    state : str
        ``"found"``, ``"absent"``, ``"nothing attainable"``, ``"stopped"`` or ``"not assessed"``.
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


def mean_local_minimum(model: Fit, pca: Fit, mean_image: Fit) -> Verdict:
    """Judge whether the model draws the same brain for everybody although more is attainable.

    Parameters
    ----------
    model, pca, mean_image : Fit
        Of the same validation scans; PCA has as many components as the model has latents.

    Returns
    -------
    Verdict
        Found when the share of what PCA attains is below one half, when the reconstructions vary less than half as much
        as PCA's, or when they are all alike (correlation above .999) while PCA's are not.
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
    if share < ATTAINABLE_SHARE or model.variance < 0.5 * pca.variance or alike:
        return Verdict(name, "found", f"Mean local minimum: {told}. Try, in this order: {MEAN_MINIMUM_REMEDIES}.")
    return Verdict(name, "absent", f"No mean local minimum: {told}.")


def posterior_collapse(means: npt.NDArray[np.float32], kl: npt.NDArray[np.float32]) -> Verdict:
    """Judge whether latents of a variational model carry nothing.

    Parameters
    ----------
    means : ndarray
        (scan, latent) posterior means.
    kl : ndarray
        (scan, latent) KL to the prior, in nats.

    Returns
    -------
    Verdict
        Found when at least half of the latents are inactive.

    References
    ----------
    Burda, Grosse & Salakhutdinov 2016, Importance weighted autoencoders. doi:10.48550/arXiv.1509.00519
    """
    n_latent = means.shape[1]
    n_active = int(active(means, kl).sum())
    told = (
        f"{n_active} of {n_latent} latents are active (variance of the mean above {ACTIVE_VARIANCE}, KL above it too)"
    )
    if 2 * n_active <= n_latent:
        return Verdict(
            "posterior collapse", "found", f"Posterior collapse: {told}. Try, in this order: {COLLAPSE_REMEDIES}."
        )
    return Verdict("posterior collapse", "absent", f"No posterior collapse: {told}.")


def overfitting(model: tuple[float, float], pca: tuple[float, float], *, last: float) -> Verdict:
    """Judge whether the model knows the training scans by heart.

    Parameters
    ----------
    model, pca : tuple[float, float]
        FVU on training scans and on validation scans; PCA of equal size, whose own gap is what the number of scans costs.
    last : float
        FVU on validation scans after the last epoch, whose weights are not kept when an earlier epoch was better.

    Returns
    -------
    Verdict
        Found when the gap between validation and training is wider than PCA's by more than a tenth of the variance;
        stopped when the kept weights are sound and later epochs lost more than a tenth of the variance on validation scans.
    """
    gap, usual = model[1] - model[0], pca[1] - pca[0]
    told = (
        f"fraction of variance unexplained {model[0]:.3f} on training and {model[1]:.3f} on validation scans, "
        f"PCA {pca[0]:.3f} and {pca[1]:.3f}"
    )
    if not gap > usual + MAX_EXTRA_GAP and last > model[1] + MAX_EXTRA_GAP:
        stopped = f"Over-fitting was stopped: it rose to {last:.3f} on validation scans after the epoch that was kept"
        return Verdict("over-fitting", "stopped", f"{stopped}; {told}.")
    if not gap > usual + MAX_EXTRA_GAP:
        return Verdict("over-fitting", "absent", f"No over-fitting beyond PCA's: {told}.")
    return Verdict("over-fitting", "found", f"Over-fitting: {told}. Try, in this order: {OVERFITTING_REMEDIES}.")


def prior_mismatch(means: npt.NDArray[np.float32], log_vars: npt.NDArray[np.float32]) -> Verdict:
    """Judge whether the latents of all scans together lie where the prior says.

    Parameters
    ----------
    means, log_vars : ndarray
        (scan, latent) posteriors of training scans: the aggregate of held-out ones is narrower in any model that learned
        from few.

    Returns
    -------
    Verdict
        Found when the typical latent has under half or over twice the variance of the prior, or the means of the latents
        are off zero by more than half a standard deviation of the prior (root mean square).

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
    if 0.5 <= typical <= 2.0 and off <= MAX_MEAN_OFF:
        return Verdict(name, "absent", f"No prior mismatch: {told}.")
    return Verdict(name, "found", f"Prior mismatch: {told}. Try, in this order: {MISMATCH_REMEDIES}.")


def active(means: npt.NDArray[np.float32], kl: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Mark the latents that vary over scans and cost something; (latent,) bool."""
    varies = means.var(axis=0) > ACTIVE_VARIANCE
    return np.asarray(varies & (kl.mean(axis=0) > COLLAPSED_KL), dtype=bool)
