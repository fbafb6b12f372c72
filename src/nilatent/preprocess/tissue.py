"""Tissue: is the skull still there, where is the brain, and how much of each voxel is grey, white or fluid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.special import ndtr

from nilatent.errors import ScanError
from nilatent.extras import require

# A stripped scan has an exact background around a piece of the size of a brain; a whole head has three litres or more.
STRIPPED_ML = (500.0, 2300.0)
EXACT_BACKGROUND = 0.3

# Order of the priors and of the shares that `segment` returns.
GM, WM, CSF = 0, 1, 2
# Kinds of voxel beside the pure ones, darker tissue first; the last is the wall of a ventricle.
MIXTURES = ((CSF, GM), (GM, WM), (CSF, WM))
WALL = 5
# No tissue is impossible anywhere in the brain: the priors come from other people.
PRIOR_FLOOR = 0.03
# Means and spreads do not change with more voxels than this leaves, nor Dice by .001.
SAMPLING_MM = 3.0
MIN_SAMPLES = 200
LEVELS = 1024
LEVEL_RANGE = (0.001, 0.999)
# Where fluid is most likely, its darker part is fluid and the rest is mixed with cortex.
FLUID_QUANTILE = 0.15
# Grey and white matter are first measured in the 30 % of voxels where they are most likely.
SURE_QUANTILE = 0.7
FIT_STEPS = 100
FIT_TOLERANCE = 1e-3
MIN_SHARE = 1e-3
# Keeps every logarithm finite without deciding anything.
TINY = 1e-8
SWEEPS = 4
# Weight of one neighbour of six; between .15 and .5 the agreement with manual tissue maps stays the same.
NEIGHBOUR_WEIGHT = 0.3
WALL_REACH_MM = 3.0
# Fluid and white matter in equal parts around a voxel make the wall over ten times as likely as a pure tissue; with a
# third of grey matter among them it is no likelier than grey.
WALL_WEIGHT = 30.0
WALL_SHARPNESS = 8


def stripped_mask(data: npt.NDArray[np.float32], voxel_ml: float) -> npt.NDArray[np.bool_] | None:
    """Brain mask of a scan whose skull was already removed, or None when the head is still there.

    Parameters
    ----------
    data : ndarray
        (x, y, z) intensities.
    voxel_ml : float
        Volume of a voxel in millilitres.

    Returns
    -------
    ndarray or None
        (x, y, z) bool: the largest piece above the background, holes filled, when it has the size of a brain.
    """
    above = data > data.min()
    if above.mean() > 1 - EXACT_BACKGROUND or not STRIPPED_ML[0] <= above.sum() * voxel_ml <= STRIPPED_ML[1]:
        return None
    mask = ndimage.binary_fill_holes(_largest(above))
    volume = float(mask.sum()) * voxel_ml
    return np.asarray(mask) if STRIPPED_ML[0] <= volume <= STRIPPED_ML[1] else None


def _largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    labels, n = ndimage.label(mask)
    if n <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def brain_mask(data: npt.NDArray[np.float32], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Brain mask of a whole head by deepbet, on the processor.

    Parameters
    ----------
    data : ndarray
        (x, y, z) float32 in RAS orientation.
    affine : ndarray
        (4, 4) of the scan.

    Returns
    -------
    ndarray
        (x, y, z) bool.

    References
    ----------
    Fisch et al. (2024). https://doi.org/10.1016/j.compbiomed.2024.108845
    """
    _, mask, _ = _deepbet().run(nib.Nifti1Image(data, affine))
    return np.asarray(mask.dataobj) > 0


@cache
def _deepbet() -> Any:
    torch = require("torch", extra="prepare")
    torch.set_num_threads(1)
    return require("deepbet", extra="prepare").BrainExtraction(no_gpu=True)


def segment(
    brain: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    priors: Sequence[npt.NDArray[np.float32]],
    voxel_mm: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float32], ...]:
    """Share of grey matter, white matter and fluid in each voxel, by a partial-volume mixture with tissue priors.

    Parameters
    ----------
    brain : ndarray
        (x, y, z) bias-corrected T1-weighted intensities: fluid dark, white matter bright.
    mask : ndarray
        (x, y, z) bool, the brain.
    priors : Sequence[ndarray]
        Three (x, y, z) priors in [0, 1] in the subject's space: grey matter, white matter, fluid.
    voxel_mm : ndarray
        (3,) voxel sides.

    Returns
    -------
    tuple[ndarray, ...]
        Three (x, y, z) float32 shares in the order of the priors; they sum to 1 inside the mask and are 0 outside.

    Raises
    ------
    ScanError
        When the brain has too few voxels or no contrast, or fluid, grey and white matter do not follow each other in
        brightness as on a T1-weighted scan.

    Notes
    -----
    A voxel is one tissue (Gaussian intensity) or a mixture of two (all ratios equally likely, so its intensity is
    uniform between their means, blurred by noise). Means, spreads and how common each kind is are fitted by expectation
    maximisation on one voxel in 3 mm; in all voxels of the scan, mean-field sweeps of a Markov random field then
    draw neighbours together. Fluid mixed with white matter looks grey: that mixture is allowed where both are near
    and grey matter is not, which holds at the wall of a ventricle and not in the cortex.

    References
    ----------
    Tohka, Zijdenbos & Evans (2004). https://doi.org/10.1016/j.neuroimage.2004.05.007
    Ashburner & Friston (2005). https://doi.org/10.1016/j.neuroimage.2005.02.018
    """
    box = _tight_box(mask)
    inside = mask[box]
    values = brain[box][inside]
    if values.size < MIN_SAMPLES:
        found = f"{values.size} voxels inside the brain mask, at least {MIN_SAMPLES} are needed"
        raise _not_segmented("enough brain", found, "Check the brain mask and the voxel size.")
    prior = np.maximum(np.stack([image[box][inside] for image in priors]), np.float32(PRIOR_FLOOR))
    prior /= prior.sum(axis=0)
    sampled = _sampled(inside, voxel_mm)
    levels = _levels(values[sampled])
    level = _nearest_level(values, levels)
    mixture = _fit(level[sampled], levels, prior[:, sampled])
    maps = np.zeros((3, *mask.shape), dtype=np.float32)
    for whole, share in zip(maps, _sweep(level, prior, mixture, inside, voxel_mm), strict=True):
        whole[box][inside] = share
    return tuple(maps)


@dataclass(frozen=True)
class _Mixture:
    """Mean and spread of each tissue, and how common each kind of voxel is beside what the priors say (grey, white: 1)."""

    levels: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]
    common: npt.NDArray[np.float64]

    def density(self) -> npt.NDArray[np.float32]:
        """(kind, level) likelihood of each intensity level: the three tissues, then the mixtures."""
        kinds = [
            np.exp(-0.5 * ((self.levels - mean) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
            for mean, spread in zip(self.mean, self.spread, strict=True)
        ]
        for dark, bright in MIXTURES:
            noise = (self.spread[dark] + self.spread[bright]) / 2
            between = ndtr((self.levels - self.mean[dark]) / noise) - ndtr((self.levels - self.mean[bright]) / noise)
            kinds.append(between / (self.mean[bright] - self.mean[dark]))
        return np.maximum(np.stack(kinds) * np.ptp(self.levels), TINY).astype(np.float32)

    def bright_share(self) -> npt.NDArray[np.float32]:
        """(mixture, level) share of the brighter tissue in a mixed voxel."""
        shares = [(self.levels - self.mean[a]) / (self.mean[b] - self.mean[a]) for a, b in MIXTURES]
        return np.clip(shares, 0, 1).astype(np.float32)


def _tight_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    sides = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(int(side[0]), int(side[-1]) + 1) if side.size else slice(0, 0) for side in sides)


def _sampled(inside: npt.NDArray[np.bool_], voxel_mm: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """(voxel inside,) whether it is one of the voxels the mixture is fitted on."""
    steps = np.maximum(1, np.round(SAMPLING_MM / voxel_mm)).astype(int)
    chosen = np.zeros(inside.shape, dtype=bool)
    chosen[tuple(slice(int(step) // 2, None, int(step)) for step in steps)] = True
    sampled = chosen[inside]
    return sampled if sampled.sum() >= MIN_SAMPLES else np.ones_like(sampled)


def _levels(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    low, high = np.quantile(values, LEVEL_RANGE)
    if not (np.isfinite([low, high]).all() and high > low):
        found = f"intensities inside the brain mask run from {low:.4g} to {high:.4g}"
        raise _not_segmented("intensities differ", found, "Check that the scan was not emptied or thresholded.")
    return np.linspace(low, high, LEVELS)


def _nearest_level(values: npt.NDArray[np.float32], levels: npt.NDArray[np.float64]) -> npt.NDArray[np.int16]:
    place = (values - levels[0]) * ((LEVELS - 1) / (levels[-1] - levels[0]))
    return np.asarray(np.clip(np.rint(place), 0, LEVELS - 1), dtype=np.int16)


def _kinds(prior: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(kind, voxel) prior of the tissues and of their mixtures, which lie where both tissues may; not normalised."""
    mixed = [np.sqrt(prior[a] * prior[b]) for a, b in MIXTURES]
    kinds: npt.NDArray[np.float32] = np.concatenate([prior, np.stack(mixed)])
    # The prior of a wall comes from its surroundings.
    kinds[WALL] = 0
    return kinds


def _fit(level: npt.NDArray[np.int16], levels: npt.NDArray[np.float64], prior: npt.NDArray[np.float32]) -> _Mixture:
    kinds = _kinds(prior)
    mixture = _first_guess(level, levels, prior)
    for _ in range(FIT_STEPS):
        before, mixture = mixture, _step(mixture, level, kinds)
        moved = np.abs([mixture.mean - before.mean, mixture.spread - before.spread]).max()
        if moved < FIT_TOLERANCE * (mixture.mean[WM] - mixture.mean[GM]):
            break
    return mixture


def _first_guess(
    level: npt.NDArray[np.int16], levels: npt.NDArray[np.float64], prior: npt.NDArray[np.float32]
) -> _Mixture:
    values = levels[level]
    mean, spread = np.zeros(3), np.zeros(3)
    for tissue in (GM, WM):
        sure = values[prior[tissue] >= np.quantile(prior[tissue], SURE_QUANTILE)]
        mean[tissue], spread[tissue] = np.median(sure), np.std(sure)
    mean[CSF] = np.quantile(values[prior[CSF] >= min(0.5, prior[CSF].max())], FLUID_QUANTILE)
    spread[CSF] = spread[WM]
    return _checked(_Mixture(levels, mean, spread, np.ones(3 + len(MIXTURES))))


def _step(mixture: _Mixture, level: npt.NDArray[np.int16], kinds: npt.NDArray[np.float32]) -> _Mixture:
    """One step of expectation maximisation; mixed voxels count for how common they are, not for the means."""
    expected = kinds * mixture.common[:, None].astype(np.float32)
    expected /= expected.sum(axis=0)
    found = expected * mixture.density()[:, level]
    found /= found.sum(axis=0)
    counts = np.stack([np.bincount(level, weights=kind, minlength=LEVELS) for kind in found])
    pure = counts[:3]
    total = np.maximum(pure.sum(axis=1), TINY)
    mean = (pure * mixture.levels).sum(axis=1) / total
    spread = np.sqrt((pure * (mixture.levels - mean[:, None]) ** 2).sum(axis=1) / total)
    # A tissue that is hardly there cannot be measured.
    scarce = total < MIN_SHARE * level.size
    mean, spread = np.where(scarce, mixture.mean, mean), np.where(scarce, mixture.spread, spread)
    # Left free, fluid widens over its mixture with cortex; like that of white matter, its spread is the noise.
    spread[CSF] = spread[WM]
    # Fluid differs most between people. Grey and white matter keep the balance of their priors: left free, grey
    # swallows the white matter of a scan of low contrast.
    over = counts.sum(axis=1) / np.maximum(expected.sum(axis=1, dtype=np.float64), TINY)
    solid = pure[[GM, WM]].sum() / expected[[GM, WM]].sum(dtype=np.float64)
    common = np.maximum(mixture.common * over / solid, MIN_SHARE)
    common[[GM, WM]] = 1
    return _checked(_Mixture(mixture.levels, mean, spread, common))


def _checked(mixture: _Mixture) -> _Mixture:
    csf, gm, wm = mixture.mean[[CSF, GM, WM]]
    if not csf < gm < wm:
        found = f"fluid has intensity {csf:.4g}, grey matter {gm:.4g}, white matter {wm:.4g}, each should be brighter"
        raise _not_segmented("T1 contrast", found, "Check that the scan is T1-weighted and lies on the template.")
    # Levels are the finest that can be told apart.
    spread = np.maximum(mixture.spread, 2 * (mixture.levels[1] - mixture.levels[0]))
    return replace(mixture, spread=spread)


def _sweep(
    level: npt.NDArray[np.int16],
    prior: npt.NDArray[np.float32],
    mixture: _Mixture,
    inside: npt.NDArray[np.bool_],
    voxel_mm: npt.NDArray[np.float64],
) -> npt.NDArray[np.float32]:
    """(tissue, voxel) shares after mean-field sweeps over the scan."""
    common = mixture.common.copy()
    common[WALL] = WALL_WEIGHT
    density = np.log(mixture.density())
    evidence = np.log(np.maximum(_kinds(prior) * common[:, None].astype(np.float32), np.float32(TINY)))
    evidence += density[:, level]
    bright = mixture.bright_share()[:, level]
    shares = _shares(evidence.copy(), bright)
    for _ in range(SWEEPS):
        wall = WALL_WEIGHT * _wall_prior(shares, inside, voxel_mm)
        evidence[WALL] = density[WALL][level] + np.log(np.maximum(wall, np.float32(TINY)))
        near = np.stack([_neighbours(_placed(share, inside), voxel_mm)[inside] for share in shares])
        support = np.concatenate([near, np.stack([(near[a] + near[b]) / 2 for a, b in MIXTURES])])
        support *= np.float32(NEIGHBOUR_WEIGHT)
        support += evidence
        shares = _shares(support, bright)
    return shares


def _shares(evidence: npt.NDArray[np.float32], bright: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(tissue, voxel) shares from the log evidence of each kind of voxel, which is overwritten."""
    evidence -= evidence.max(axis=0)
    posterior = np.exp(evidence, out=evidence)
    posterior /= posterior.sum(axis=0)
    shares = posterior[:3].copy()
    for mixed, lighter, (a, b) in zip(posterior[3:], bright, MIXTURES, strict=True):
        shares[a] += mixed * (1 - lighter)
        shares[b] += mixed * lighter
    return shares


def _placed(values: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    volume = np.zeros(inside.shape, dtype=np.float32)
    volume[inside] = values
    return volume


def _neighbours(volume: npt.NDArray[np.float32], voxel_mm: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Sum over the six neighbours, nearer ones counting more where voxels are not cubes; weights sum to 6."""
    weights = (3 / voxel_mm / (1 / voxel_mm).sum()).astype(np.float32)
    total = np.zeros_like(volume)
    for axis, weight in enumerate(weights):
        ahead, behind = np.moveaxis(total, axis, 0), np.moveaxis(volume, axis, 0)
        ahead[1:] += weight * behind[:-1]
        ahead[:-1] += weight * behind[1:]
    return total


def _wall_prior(
    shares: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_], voxel_mm: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """(voxel,) how much the surroundings look like the wall of a ventricle, in [0, 0.5]."""
    window = [int(side) for side in 2 * np.maximum(1, np.round(WALL_REACH_MM / voxel_mm)) + 1]
    around = np.stack(
        [ndimage.uniform_filter(_placed(share, inside), window, mode="constant")[inside] for share in shares]
    )
    around = np.maximum(around, 0)
    around /= np.maximum(around.sum(axis=0), np.float32(TINY))
    return np.asarray(np.sqrt(around[CSF] * around[WM]) * (1 - around[GM]) ** WALL_SHARPNESS)


def _not_segmented(rule: str, value: str, next_step: str) -> ScanError:
    return ScanError(f"Rule '{rule}' of the tissue segmentation is broken: {value}. {next_step}", rule=rule)
