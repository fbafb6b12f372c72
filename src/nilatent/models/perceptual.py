"""What the eye sees and a voxel-by-voxel error does not: bands of detail, edges, and how much fine detail is left.

Everything is measured inside the mask: bands are smoothed over voxels of the mask alone (normalised convolution), so that
neither the border of the mask nor what lies beyond it counts as detail. No weights are downloaded or learned.

References
----------
Burt & Adelson 1983, The Laplacian pyramid as a compact image code. doi:10.1109/TCOM.1983.1095851
Knutsson & Westin 1993, Normalized and differential convolution. doi:10.1109/CVPR.1993.341081
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

N_BANDS = 4
"""Bands of detail above the coarsest picture: at 4 mm these are details of about 4, 8, 16 and 32 mm."""
LINE = (1.0, 3.0, 3.0, 1.0)
"""Smoothing weights of the four voxels around each voxel of the next coarser grid."""


def perceptual_error(
    volume: Float[Tensor, "batch 1 x y z"], reconstruction: Float[Tensor, "batch 1 x y z"], mask: Float[Tensor, "x y z"]
) -> Float[Tensor, " batch"]:
    """Error in bands of detail and in the strength of edges, in the units of a mean absolute error per voxel.

    Parameters
    ----------
    volume, reconstruction : (batch, 1, x, y, z) Tensor
        The scan and what the model makes of it, in the same units.
    mask : (x, y, z) Tensor
        1 inside, 0 outside.

    Returns
    -------
    (batch,) Tensor
        Mean of :func:`band_error` and :func:`edge_error`, in units of the scans: 0 only where both agree, and half of d for a
        constant difference of d.
    """
    return 0.5 * (band_error(volume, reconstruction, mask) + edge_error(volume, reconstruction, mask))


def band_error(
    volume: Float[Tensor, "batch 1 x y z"], reconstruction: Float[Tensor, "batch 1 x y z"], mask: Float[Tensor, "x y z"]
) -> Float[Tensor, " batch"]:
    """Absolute error per voxel of each band of a Laplacian pyramid and of its coarsest picture, summed over the bands.

    An error that is smooth costs about as much as its mean absolute value, and so does one from voxel to voxel; an error
    with structure at several scales costs more than either, because it cannot cancel between them. Parameters as in
    :func:`perceptual_error`.
    """
    with torch.autocast(volume.device.type, enabled=False):
        found = bands(volume.float() - reconstruction.float(), mask, n_bands=N_BANDS)
        return torch.stack([_mean(band.abs(), weight) for band, weight in found]).sum(dim=0)


def edge_error(
    volume: Float[Tensor, "batch 1 x y z"], reconstruction: Float[Tensor, "batch 1 x y z"], mask: Float[Tensor, "x y z"]
) -> Float[Tensor, " batch"]:
    """Absolute error per voxel in the strength of edges, whichever way they run.

    Where it is uncertain at which side of a voxel an edge runs, the smallest absolute error is a blur; here the blur costs
    the strength of the whole edge. Parameters as in :func:`perceptual_error`.
    """
    with torch.autocast(volume.device.type, enabled=False):
        inside = mask[:-1, :-1, :-1] * mask[1:, :-1, :-1] * mask[:-1, 1:, :-1] * mask[:-1, :-1, 1:]
        return _mean((edges(volume.float()) - edges(reconstruction.float())).abs(), inside)


def edges(volume: Float[Tensor, "batch 1 x y z"]) -> Float[Tensor, "batch 1 a b c"]:
    """Strength of edges: length of the vector of differences to the next voxel along each axis, in units of the volume."""
    here = volume[:, :, :-1, :-1, :-1]
    squares = torch.stack(
        [
            (volume[:, :, 1:, :-1, :-1] - here).square(),
            (volume[:, :, :-1, 1:, :-1] - here).square(),
            (volume[:, :, :-1, :-1, 1:] - here).square(),
        ]
    ).sum(dim=0)
    # The root of zero has no slope.
    return squares.clamp_min(torch.finfo(torch.float32).tiny ** 0.5).sqrt()


def high_frequency_energy(
    volume: Float[Tensor, "batch 1 x y z"], mask: Float[Tensor, "x y z"]
) -> Float[Tensor, " batch"]:
    """Mean square of the finest band of detail inside the mask, in squared units of the scans.

    Of a reconstruction by that of its scan it is the share of fine detail that is left: under 1 for a blurred one. Noise is
    fine detail too, so a perfect denoising is not told from a blur.

    Parameters
    ----------
    volume : (batch, 1, x, y, z) Tensor
        Scans or reconstructions.
    mask : (x, y, z) Tensor
        1 inside, 0 outside.
    """
    with torch.autocast(volume.device.type, enabled=False):
        finest, weight = bands(volume.float(), mask, n_bands=1)[0]
        return _mean(finest.square(), weight)


def bands(
    volume: Float[Tensor, "batch 1 x y z"], mask: Float[Tensor, "x y z"], *, n_bands: int
) -> list[tuple[Tensor, Tensor]]:
    """Laplacian pyramid of what is inside a mask.

    Parameters
    ----------
    volume : (batch, 1, x, y, z) Tensor
        Any volumes.
    mask : (x, y, z) Tensor
        1 inside, 0 outside.
    n_bands : int
        Bands of detail, each on half the grid of the one before, rounded up.

    Returns
    -------
    list
        From fine to coarse each band and the weights of its voxels, and last the coarsest picture and its weights. A band
        is what smoothing over the mask takes away; that of a constant is zero.
    """
    found: list[tuple[Tensor, Tensor]] = []
    weight = mask.float()
    for _ in range(n_bands):
        coarse_weight = halve(weight)
        coarse = halve(volume * weight) / _above_zero(coarse_weight)
        smooth = double(coarse * coarse_weight, volume.shape[2:]) / _above_zero(double(coarse_weight, volume.shape[2:]))
        found.append((volume - smooth, weight))
        volume, weight = coarse, coarse_weight
    return [*found, (volume, weight)]


def halve(volume: Float[Tensor, "*batch x y z"]) -> Float[Tensor, "*batch a b c"]:
    """Smooth and take every second voxel along each axis; the number of voxels is rounded up, zero lies beyond the grid."""
    for axis, side in zip((-3, -2, -1), volume.shape[-3:], strict=True):
        volume = _along(volume, _halving(side, volume.device).to(volume.dtype), axis)
    return volume


def double(volume: Float[Tensor, "*batch a b c"], shape: torch.Size) -> Float[Tensor, "*batch x y z"]:
    """Spread each voxel over the finer voxels that it was smoothed from, with the same weights."""
    for axis, side in zip((-3, -2, -1), shape, strict=True):
        volume = _along(volume, _halving(side, volume.device).T.to(volume.dtype), axis)
    return volume


def _along(volume: Tensor, matrix: Tensor, axis: int) -> Tensor:
    # A product with a small matrix: several times faster than a convolution of one channel, there and back.
    return torch.movedim(functional.linear(torch.movedim(volume, axis, -1), matrix), -1, axis)


@lru_cache(maxsize=64)
def _halving(side: int, device: torch.device) -> Tensor:
    """Matrix (half, side) that smooths and takes every second voxel; its rows add to 1 away from the border."""
    # Kept for later calls, which may need a gradient where this one does not.
    with torch.inference_mode(mode=False):
        matrix = torch.zeros(-(-side // 2), side)
        for row in range(len(matrix)):
            for step, weight in enumerate(LINE):
                if 0 <= 2 * row - 1 + step < side:
                    matrix[row, 2 * row - 1 + step] = weight / sum(LINE)
        return matrix.to(device)


def _above_zero(weight: Tensor) -> Tensor:
    return weight.clamp_min(torch.finfo(torch.float32).tiny)


def _mean(values: Float[Tensor, "batch 1 a b c"], weight: Float[Tensor, "a b c"]) -> Float[Tensor, " batch"]:
    return (values * weight).flatten(1).sum(dim=1) / _above_zero(weight.sum())
