"""A curve through what principal components miss: kernel ridge regression from latents to images, in closed form."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# Weights of the components in the distance between two scans: SD to one minus this power, from scores as they are (0) to
# halfway to scores of equal variance.
POWERS = (0.0, 0.5)
# Squared width of the kernel relative to the variance of the weighted scores.
WIDTHS = (1.0, 4.0)
# Smaller ridges gained nothing and have coefficients that single precision no longer carries.
RIDGES = tuple(10.0 ** (0.5 * step) for step in range(-6, 3))
N_FOLDS = 5
# The gain must be this many standard errors. Three and not two, because the kernel is the best of many.
N_STANDARD_ERRORS = 3.0
# Choosing takes the cube of the number of scans and several matrices of its square, and the model keeps one centre per scan.
MAX_SCANS = 500
# No stored model has more.
MAX_CENTRES = 1000
# The fitted images are kept to this share of their variance, and to so many.
SHARE_KEPT, MAX_RANK = 0.999, 64
BLOCK_BYTES = 4 * 2**20


class Curve(nn.Module):
    """A smooth function from latents to images, without a parameter to train.

    ``curve(z) = k(z) coefficients images`` with ``k_i(z) = exp(-|z scale - centre_i|^2 / 2)``.

    Parameters
    ----------
    scale : (latent,) Tensor
        What each latent is multiplied by before distances are taken.
    centres : (centre, latent) Tensor
        Scaled latents of training scans.
    coefficients : (centre, rank) Tensor
        Weight of each centre in each image.
    images : (rank, voxel) Tensor
        Orthonormal rows; none of them for a curve that is zero everywhere.
    """

    def __init__(
        self,
        *,
        scale: Float[Tensor, " latent"],
        centres: Float[Tensor, "centre latent"],
        coefficients: Float[Tensor, "centre rank"],
        images: Float[Tensor, "rank voxel"],
    ) -> None:
        super().__init__()
        self.scale: Tensor
        self.centres: Tensor
        self.coefficients: Tensor
        self.images: Tensor
        self.register_buffer("scale", scale)
        self.register_buffer("centres", centres)
        self.register_buffer("coefficients", coefficients)
        self.register_buffer("images", images)

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch voxel"]:
        """What the components miss at each latent, inside the mask; always in single precision."""
        with torch.autocast(z.device.type, enabled=False):
            # Through differences: the coefficients are large and alternate, and would enlarge the rounding of any other way.
            distance = (z.float()[:, None] * self.scale - self.centres).square().sum(dim=2)
            drawn: Tensor = (-0.5 * distance).exp() @ self.coefficients @ self.images
            return drawn


def no_curve(n_latent: int, n_voxels: int, *, n_centres: int = 1, n_images: int = 0) -> Curve:
    """A curve that is zero everywhere: the absence of one, or the place for a stored one of these sizes."""
    return Curve(
        scale=torch.zeros(n_latent),
        centres=torch.zeros(n_centres, n_latent),
        coefficients=torch.zeros(n_centres, n_images),
        images=torch.zeros(n_images, n_voxels),
    )


@dataclass(frozen=True)
class CurveChoice:
    """Which kernel the training scans chose, and what it gained on folds of them that it had not seen.

    Parameters
    ----------
    power, width, ridge : float
        Of the best kernel: one of :data:`POWERS`, :data:`WIDTHS` and :data:`RIDGES`.
    gain : float
        Share of the variance about the mean image that the curve explains beyond the components, on held-out folds with
        components, kernel and mean image of the other folds.
    standard_error : float
        Of `gain`, over subjects.
    n_images : int
        Images that the curve is made of; 0 when it was left out.
    """

    power: float
    width: float
    ridge: float
    gain: float
    standard_error: float
    n_images: int

    @property
    def is_on(self) -> bool:
        """Whether the gain is beyond chance."""
        return self.gain > N_STANDARD_ERRORS * self.standard_error


@dataclass(frozen=True, eq=False)
class _Fold:
    """Scores and inner products of what the components of some scans leave in these and in other scans.

    scores (fitted, latent) and other_scores (other, latent); gram (fitted, fitted) and cross (other, fitted) of the
    residual images, left (other,) their squared norms, variance (other,) squared distance of the scan to the mean image.
    """

    scores: Tensor
    other_scores: Tensor
    gram: Tensor
    cross: Tensor
    left: Tensor
    variance: Tensor


def fit_curve(
    read: Callable[[int, int], Tensor],
    subject: Int[Tensor, " scan"],
    *,
    mean: Float[Tensor, " voxel"],
    components: Float[Tensor, "latent voxel"],
    inverse_gain: Float[Tensor, " latent"],
) -> tuple[Curve, CurveChoice]:
    """Fit the curve that principal components miss, if there is one.

    Parameters
    ----------
    read : callable
        First voxel and the one after the last to (scan, voxel) values of the training scans inside the mask, on the CPU; at
        most :data:`MAX_SCANS` scans. They are read in blocks, three times, and never held together.
    subject : (scan,) Tensor
        Number of each scan's subject; all scans of one are in the same fold.
    mean, components : (voxel,), (latent, voxel) Tensor
        Mean image and orthonormal principal components of the training scans.
    inverse_gain : (latent,) Tensor
        What a score is multiplied by to become a latent; a latent for which it is zero says nothing and is passed over.

    Returns
    -------
    curve : Curve
        From latents to the images that are to be added to the reconstruction by the components. Zero everywhere unless
        it gains on held-out folds more than :data:`N_STANDARD_ERRORS` standard errors.
    choice : CurveChoice
        The kernel, and its gain.

    Notes
    -----
    Kernel, width and ridge are chosen by cross-validation in which each fold has components of its own. Leave-one-out with
    the components held still, for which there is a formula, chose no curve where there was one: components that were fitted
    on a scan leave too little of it. All of it runs through the inner products of scans; no fold touches an image.

    References
    ----------
    Saunders, Gammerman & Vovk 1998, Ridge regression learning algorithm in dual variables. ICML 15, 515-521.
    Schölkopf, Smola & Müller 1998, Nonlinear component analysis as a kernel eigenvalue problem.
    doi:10.1162/089976698300017467
    """
    size = max(BLOCK_BYTES // (8 * len(subject)), 1)
    parts = [slice(start, start + size) for start in range(0, len(mean), size)]

    def deviations() -> Iterator[tuple[slice, Tensor]]:
        for part in parts:
            yield part, read(part.start, part.stop).double() - mean[part].double()

    gram = torch.zeros(len(subject), len(subject), dtype=torch.double)
    for _, block in deviations():
        gram += block @ block.T
    choice = choose(gram, subject, n_latent=len(components))
    if not choice.is_on:
        return no_curve(*components.shape), choice
    scores = torch.zeros(len(subject), len(components), dtype=torch.double)
    for part, block in deviations():
        scores += block @ components[:, part].T.double()
    scale, centres, coefficients, weights = _fit(scores, gram, choice, inverse_gain=inverse_gain)
    # The images are combinations of what the components leave of each scan.
    images = [weights @ block - (weights @ scores) @ components[:, part].double() for part, block in deviations()]
    curve = Curve(
        scale=scale.float(),
        centres=centres.float(),
        coefficients=coefficients.float(),
        images=torch.cat(images, dim=1).float(),
    )
    return curve, replace(choice, n_images=len(weights))


def choose(gram: Float[Tensor, "scan scan"], subject: Int[Tensor, " scan"], *, n_latent: int) -> CurveChoice:
    """Choose the kernel that explains most of held-out folds.

    Parameters
    ----------
    gram : (scan, scan) Tensor
        Inner products of the scans about any centre, in double precision.
    subject : (scan,) Tensor
        Number of each scan's subject.
    n_latent : int
        Components.

    Returns
    -------
    CurveChoice
        With no image yet; with a gain of zero when the folds are too small for so many components.
    """
    _, subject = torch.unique(subject, return_inverse=True)
    n_subjects = int(subject.max()) + 1
    fold = subject % N_FOLDS
    n_fitted = min(int((fold != number).sum()) for number in range(N_FOLDS))
    if n_subjects < N_FOLDS or n_latent >= n_fitted - 1:
        return CurveChoice(POWERS[0], WIDTHS[0], RIDGES[-1], 0.0, 0.0, 0)
    gain = gram.new_zeros(len(POWERS), len(WIDTHS), len(RIDGES), len(gram))
    variance = gram.new_zeros(len(gram))
    for number in range(N_FOLDS):
        held_out = fold == number
        parts = _fold(gram, held_out, n_latent=n_latent)
        variance[held_out] = parts.variance
        for i, power in enumerate(POWERS):
            for j, width in enumerate(WIDTHS):
                gain[i, j, :, held_out] = parts.left - held_out_errors(parts, power=power, width=width)
    by_subject = gram.new_zeros(*gain.shape[:3], n_subjects).index_add(3, subject, gain)
    scans_each = torch.bincount(subject).to(gram)
    by_subject = by_subject / scans_each / (variance.sum() / len(variance))
    best = int(by_subject.mean(dim=3).argmax())
    found = by_subject.reshape(-1, n_subjects)[best]
    i, j, k = (int(index) for index in torch.unravel_index(torch.tensor(best), gain.shape[:3]))
    error = float(found.std()) / n_subjects**0.5
    return CurveChoice(POWERS[i], WIDTHS[j], RIDGES[k], float(found.mean()), error, 0)


def _fold(gram: Tensor, held_out: Tensor, *, n_latent: int) -> _Fold:
    inside = gram[~held_out][:, ~held_out]
    across, own = gram[held_out][:, ~held_out], gram.diagonal()[held_out]
    # Inner products about the mean of the scans that are fitted.
    offset = inside.mean(dim=0)
    across_offset = across.mean(dim=1, keepdim=True)
    own = own - 2.0 * across_offset[:, 0] + offset.mean()
    across = across - across_offset - offset + offset.mean()
    inside = inside - offset - offset[:, None] + offset.mean()
    values, vectors = torch.linalg.eigh(inside)
    # Where a fold holds copies, components without variance are noise; the floor keeps their scores next to zero.
    values, vectors = values[-n_latent:].clamp_min(1e-12 * float(values[-1])), vectors[:, -n_latent:]
    scores, other_scores = vectors * values.sqrt(), across @ vectors / values.sqrt()
    return _Fold(
        scores=scores,
        other_scores=other_scores,
        gram=inside - scores @ scores.T,
        cross=across - other_scores @ scores.T,
        left=own - other_scores.square().sum(dim=1),
        variance=own,
    )


def held_out_errors(parts: _Fold, *, power: float, width: float) -> Float[Tensor, "ridge other"]:
    """Squared error of each other scan, summed over voxels, for every ridge of :data:`RIDGES`."""
    scale = _scale(parts.scores, power=power, width=width)
    centres = parts.scores * scale
    values, vectors = torch.linalg.eigh(_kernel(centres, centres))
    near = _kernel(parts.other_scores * scale, centres) @ vectors
    gram, cross = vectors.T @ parts.gram @ vectors, parts.cross @ vectors
    errors = []
    for ridge in RIDGES:
        weights = near / (values.clamp_min(0.0) + ridge)
        drawn = ((weights @ gram) * weights).sum(dim=1)
        errors.append(parts.left - 2.0 * (weights * cross).sum(dim=1) + drawn)
    return torch.stack(errors)


def _scale(scores: Tensor, *, power: float, width: float) -> Tensor:
    sd = scores.std(dim=0).clamp_min(torch.finfo(torch.float).tiny)
    weights = sd.pow(-power)
    return weights / ((sd * weights).square().sum() * width).sqrt()


def _kernel(one: Tensor, two: Tensor) -> Tensor:
    return (-0.5 * torch.cdist(one, two, compute_mode="donot_use_mm_for_euclid_dist").square()).exp()


def _fit(
    scores: Tensor, gram: Tensor, choice: CurveChoice, *, inverse_gain: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale, centres and coefficients of the curve, and (rank, scan) how its images come from the scans."""
    says = inverse_gain > 0
    scale = torch.zeros_like(scores[0])
    scale[says] = _scale(scores[:, says], power=choice.power, width=choice.width)
    centres = scores * scale
    left = gram - scores @ scores.T
    values, vectors = torch.linalg.eigh(_kernel(centres, centres))
    values = values.clamp_min(0.0)
    smoother = vectors * (values / (values + choice.ridge)) @ vectors.T
    # Few images hold nearly all that is fitted: those along which the fitted images vary most.
    power, turned = torch.linalg.eigh(smoother @ left @ smoother)
    power, turned = power.flip(0).clamp_min(0.0), turned.flip(1)
    n_images = min(int((power.cumsum(0) < SHARE_KEPT * power.sum()).sum()) + 1, MAX_RANK)
    weights = (smoother @ turned[:, :n_images] / power[:n_images].sqrt()).T
    coefficients = vectors / (values + choice.ridge) @ vectors.T @ left @ weights.T
    per_latent = torch.where(says, scale / inverse_gain.double().clamp_min(torch.finfo(torch.float).tiny), 0.0)
    return per_latent, centres, coefficients, weights
