"""Raw T1-weighted-like heads of simulated people: brain, skull, scalp and neck, in native space as a scanner gives them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_closing, binary_dilation, distance_transform_edt, gaussian_filter
from scipy.spatial.transform import Rotation

from nilatent.simulate.anatomy import draw_shape, planted_regions, positions, tissues, to_voxels, widened
from nilatent.simulate.config import SimulationConfig
from nilatent.simulate.deform import Array, sample, smooth_noise
from nilatent.simulate.people import STREAM_HEAD, STREAM_SCAN, STREAM_SITE, Visit, site_spread
from nilatent.volumes import Grid, template

# Box around the template's head and around the head in the scanner, in mm: lowest and highest corner.
HEAD_BOX = ((-106.0, -142.0, -122.0), (106.0, 112.0, 114.0))
SCANNER_BOX = ((-96.0, -122.0, -112.0), (96.0, 118.0, 108.0))
SHELL_MM = 2.0
# Signal relative to white matter on a T1-weighted gradient echo.
SIGNAL = {"wm": 1.0, "gm": 0.68, "csf": 0.22, "bone": 0.10, "marrow": 0.50, "fat": 0.95, "muscle": 0.50, "eye": 0.20}
# Where each layer outside the brain ends, in mm from the smoothed surface of the brain.
LAYERS_MM = (("csf", 2.0), ("bone", 4.0), ("marrow", 6.0), ("bone", 8.0), ("muscle", 10.0), ("fat", 14.0))
NECK_RADIUS_MM, NECK_TOP_MM = 52.0, -55.0
ROTATION_SD_DEGREES, SHIFT_SD_MM = 4.0, 4.0

WHITE_MATTER_LEVEL, LEVEL_SITE_RATIO = 600.0, 1.5
GREY_SITE_CONTRAST = 0.06
BIAS, BIAS_FWHM_MM, BIAS_LATTICE_MM = 0.12, 160.0, 16.0
NOISE, NOISE_SITE_RATIO = 0.025, 1.4


@dataclass(frozen=True, eq=False)
class Head:
    """What everyone's head is made from, in template space.

    Parameters
    ----------
    brain : Grid
        Of `signal` and `atrophy`.
    inside : ndarray
        (2, x, y, z) share of grey matter, and signal of all other tissue, of the brain.
    lost : ndarray
        (x, y, z) share of the voxel that turns from grey matter to fluid at disease 1.
    box : Grid
        Of `outside`.
    outside : ndarray
        (x, y, z) signal of what is around the brain.
    """

    brain: Grid
    inside: Array
    lost: Array
    box: Grid
    outside: Array


def base_head(config: SimulationConfig) -> Head:
    """The template's head with the planted regions of a simulation.

    Raises
    ------
    SettingError
        When a region is not in the atlas.
    """
    brain = Grid.mni(max(1.0, config.native_spacing_mm / 2))
    shares = tissues(brain)
    _, membership = planted_regions(config, brain)
    losses = np.zeros(len(config.losses)) if config.null else config.effect * np.asarray(config.losses)
    lost = shares["gm"] * np.einsum("r,rxyz->xyz", losses.astype(np.float32), membership)
    rest = sum(np.float32(SIGNAL[name]) * shares[name] for name in ("wm", "csf"))
    box = _box_grid(HEAD_BOX, SHELL_MM)
    return Head(brain, np.stack([shares["gm"], np.asarray(rest, dtype=np.float32)]), lost, box, _shell(box))


def _box_grid(box: tuple[tuple[float, ...], tuple[float, ...]], spacing_mm: float) -> Grid:
    low, high = np.asarray(box)
    x, y, z = (int(side) for side in np.ceil((high - low) / spacing_mm))
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = low
    return Grid((x, y, z), affine)


def _shell(box: Grid) -> Array:
    """Signal around the brain: layers of the skull by distance, neck, face and eyes; 0 where the brain is and in air."""
    at_2mm = Grid.mni(SHELL_MM)
    points = positions(box)
    mask = sample(template("mask", at_2mm).get_fdata(dtype=np.float32), to_voxels(points, at_2mm), outside="constant")
    brain = mask > 0.5
    skull = binary_closing(binary_dilation(brain, iterations=1), iterations=6)
    distance = distance_transform_edt(~skull) * box.spacing_mm
    x, y, z = points
    neck = ((x / NECK_RADIUS_MM) ** 2 + ((y + 40) / (NECK_RADIUS_MM + 8)) ** 2 < 1) & (z < NECK_TOP_MM)
    face = ((x / 58) ** 2 + ((y - 38) / 52) ** 2 + ((z + 62) / 52) ** 2) < 1
    soft = (neck | face) & (distance > LAYERS_MM[-1][1])
    signal = np.zeros(box.shape, dtype=np.float32)
    rng = np.random.default_rng(STREAM_HEAD)
    grain = 1 + 0.25 * smooth_noise(rng, box.shape, spacing_mm=box.spacing_mm, fwhm_mm=10.0)
    signal[soft] = (np.float32(SIGNAL["muscle"]) * np.clip(grain, 0.4, 1.6))[soft]
    below = 0.0
    for name, end in LAYERS_MM:
        signal[(distance > below) & (distance <= end)] = SIGNAL[name]
        below = end
    signal[skull & ~brain] = SIGNAL["csf"]
    for side in (-1, 1):
        eye = (x - 33 * side) ** 2 + (y - 70) ** 2 + (z + 38) ** 2 < 12**2
        signal[eye & (distance > 2)] = SIGNAL["eye"]
    return np.asarray(gaussian_filter(signal, 0.4) * (1 - mask), dtype=np.float32)


def head_images(config: SimulationConfig, head: Head, index: int, visits: Sequence[Visit]) -> list[nib.Nifti1Image]:
    """Heads of every visit of one person, as integers with the scanner's own scale.

    Parameters
    ----------
    config : SimulationConfig
        The settings.
    head : Head
        From :func:`base_head`.
    index : int
        Number of the person, from 0.
    visits : Sequence[Visit]
        Of this person.

    Returns
    -------
    list[Nifti1Image]
        One per visit, int16, each in its own pose.
    """
    grid = _box_grid(SCANNER_BOX, config.native_spacing_mm)
    shape = draw_shape(config, index)
    images = []
    for number, visit in enumerate(visits):
        rng = np.random.default_rng([config.seed, STREAM_SCAN, index, number])
        points = _in_template(rng, positions(grid), head_size=visit.head_size)
        contrast = GREY_SITE_CONTRAST * site_spread(config)[visit.site]
        origin, _ = widened(config, visit, shape.at(points)[0])
        signal = _signal(head, origin, visit, grey=SIGNAL["gm"] * math.exp(contrast))
        image = nib.Nifti1Image(_acquire(config, rng, signal, grid, site=visit.site), grid.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(grid.affine, code="scanner")
        image.set_qform(grid.affine, code="scanner")
        images.append(image)
    return images


def _in_template(rng: np.random.Generator, points: Array, *, head_size: float) -> Array:
    """Template position of points in the scanner, for a head of this size in a random pose."""
    angles = rng.standard_normal(3) * ROTATION_SD_DEGREES
    shift = (rng.standard_normal(3) * SHIFT_SD_MM).astype(np.float32)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() / head_size ** (1 / 3)
    centred = points - shift.reshape(3, 1, 1, 1)
    # einsum for the same reason as in smooth_noise: the bytes must not depend on threads.
    return np.asarray(np.einsum("ij,jxyz->ixyz", turn.astype(np.float32), centred), dtype=np.float32)


def _signal(head: Head, origin: Array, visit: Visit, *, grey: float) -> Array:
    where = to_voxels(origin, head.brain)
    grey_share, rest = (sample(part, where, outside="constant") for part in head.inside)
    lost = np.float32(visit.atrophy) * sample(head.lost, where, outside="constant")
    # All grey matter thins with age and by person; what is gone becomes fluid.
    kept = np.clip(np.float32(visit.gm_factor) * (grey_share - lost), 0, 1)
    fluid = np.clip(grey_share - kept, 0, None)
    around = sample(head.outside, to_voxels(origin, head.box), outside="constant")
    return np.asarray(np.float32(grey) * kept + np.float32(SIGNAL["csf"]) * fluid + rest + around, dtype=np.float32)


def _acquire(
    config: SimulationConfig, rng: np.random.Generator, signal: Array, grid: Grid, *, site: int
) -> npt.NDArray[np.int16]:
    """Bias field, Rician noise and the scale of the scanner."""
    spread = site_spread(config)[site]
    at_site = np.random.default_rng([config.seed, STREAM_SITE, site])
    coarse = _box_grid(SCANNER_BOX, BIAS_LATTICE_MM)
    fields = [
        smooth_noise(source, coarse.shape, spacing_mm=BIAS_LATTICE_MM, fwhm_mm=BIAS_FWHM_MM)
        for source in (at_site, rng)
    ]
    where = to_voxels(positions(grid), coarse)
    of_site, of_scan = (sample(field, where) for field in fields)
    received = signal * np.exp(
        np.float32(BIAS) * (np.float32(config.site_effect) * of_site + np.float32(0.5) * of_scan)
    )
    sd = np.float32(config.noise * NOISE * NOISE_SITE_RATIO**spread)
    real, imaginary = sd * rng.standard_normal((2, *grid.shape), dtype=np.float32)
    magnitude = np.hypot(received + real, imaginary)
    level = np.float32(WHITE_MATTER_LEVEL * LEVEL_SITE_RATIO**spread)
    return np.asarray(np.clip(np.rint(level * magnitude), 0, np.iinfo(np.int16).max), dtype=np.int16)
