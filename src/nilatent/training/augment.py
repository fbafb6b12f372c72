"""Augmentation: scans moved, mirrored and received otherwise while a model trains, and never while it is judged.

A model that has seen every scan a little turned, brighter and noisier learns less by heart. Nothing here knows of labels;
what is drawn follows from the generator alone.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

AUGMENTATIONS = ("affine", "flip", "gamma", "bias", "noise")
DEGREES, SHIFT_MM, STRETCH = 5.0, 5.0, 0.05
"""Largest rotation about each axis, largest shift along it, and largest relative stretch."""
GAMMA, BIAS, NOISE = 0.2, 0.1, 0.05
"""Largest logarithm of the exponent, SD of the logarithm of the gain, and SD of the noise in SD of the scan."""
BIAS_NODES = 4
FLIP_SHARE = 0.5


def augment(
    x: Float[Tensor, "batch 1 x y z"],
    mask: Float[Tensor, "x y z"],
    generator: torch.Generator,
    *,
    names: tuple[str, ...],
    spacing_mm: float,
) -> Float[Tensor, "batch 1 x y z"]:
    """Scans, each changed in its own way.

    Parameters
    ----------
    x : Tensor
        Scans, at least 0, on a grid in RAS orientation whose first axis is centred on the midline.
    mask : Tensor
        1 inside the mask, 0 outside; what comes to lie outside is 0.
    generator : Generator
        On the device of the scans.
    names : tuple[str, ...]
        Of :data:`AUGMENTATIONS`, done in the order of that list: ``"affine"`` (to 5 degrees, 5 mm and 5 per cent; values
        are not modulated, as after a registration that is a little off), ``"flip"`` (left and right, every second scan),
        ``"gamma"``, ``"bias"`` (a smooth gain), ``"noise"`` (where there is signal).
    spacing_mm : float
        Voxel size.

    Returns
    -------
    Tensor
        The scans themselves when nothing is named.
    """
    if not names:
        return x
    if "affine" in names:
        x = _moved(x, generator, spacing_mm=spacing_mm)
    if "flip" in names:
        mirrored = torch.rand(len(x), generator=generator, device=x.device) < FLIP_SHARE
        x = torch.where(mirrored.view(-1, 1, 1, 1, 1), x.flip(2), x)
    if "gamma" in names:
        power = torch.exp(_even(x, generator, GAMMA))
        largest = x.amax(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-6)
        x = largest * (x.clamp_min(0) / largest) ** power
    if "bias" in names:
        nodes = torch.randn(len(x), 1, *[BIAS_NODES] * 3, generator=generator, device=x.device)
        field = functional.interpolate(nodes, size=x.shape[2:], mode="trilinear", align_corners=True)
        x = x * torch.exp(BIAS * field)
    if "noise" in names:
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        x = x + NOISE * x.std(dim=(1, 2, 3, 4), keepdim=True) * noise * (x > 0)
    return x * mask


def _even(x: Tensor, generator: torch.Generator, largest: float) -> Tensor:
    """One number per scan, evenly between minus and plus `largest`."""
    drawn = torch.rand(len(x), generator=generator, device=x.device)
    return (largest * (2 * drawn - 1)).view(-1, 1, 1, 1, 1)


def _moved(x: Tensor, generator: torch.Generator, *, spacing_mm: float) -> Tensor:
    drawn = 2 * torch.rand(len(x), 3, 3, generator=generator, device=x.device) - 1
    matrix = affine_matrices(drawn[:, 0], drawn[:, 1])
    shift = SHIFT_MM * drawn[:, 2] / spacing_mm
    # torch counts axes from the last and positions from -1 to 1, so voxels are scaled by half the extent of each axis.
    half = torch.tensor([(side - 1) / 2 for side in x.shape[2:]], device=x.device)
    turned = matrix * half / half.view(3, 1)
    theta = torch.cat([turned.flip((1, 2)), (shift / half).flip(1).unsqueeze(2)], dim=2)
    places = functional.affine_grid(theta, list(x.shape), align_corners=True)
    return functional.grid_sample(x, places, mode="bilinear", padding_mode="zeros", align_corners=True)


def affine_matrices(turn: Float[Tensor, "batch 3"], stretch: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 3 3"]:
    """Rotation about x, then y, then z, after a stretch along the axes.

    Parameters
    ----------
    turn, stretch : Tensor
        Between -1 and 1, in units of the largest rotation and stretch.
    """
    cos, sin = torch.cos(turn * math.radians(DEGREES)), torch.sin(turn * math.radians(DEGREES))
    matrix = torch.diag_embed(1 + STRETCH * stretch)
    for axis in range(3):
        first, second = [other for other in range(3) if other != axis]
        rotation = torch.eye(3, device=turn.device).repeat(len(turn), 1, 1)
        rotation[:, first, first] = rotation[:, second, second] = cos[:, axis]
        rotation[:, first, second], rotation[:, second, first] = -sin[:, axis], sin[:, axis]
        matrix = rotation @ matrix
    return matrix
