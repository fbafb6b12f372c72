"""Grey-matter maps of simulated people: the template, deformed, scaled and with tissue lost in planted regions."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.ndimage import gaussian_filter

from nilatent.atlas import RegionWeights, load_atlas, region_weights
from nilatent.errors import SettingError
from nilatent.simulate.config import SimulationConfig
from nilatent.simulate.deform import (
    Array,
    Scale,
    caused_velocity,
    diffeomorphism,
    random_diffeomorphism,
    random_velocity,
    rest_at_edges,
    sample,
    smooth_noise,
)
from nilatent.simulate.people import (
    STREAM_CAUSE,
    STREAM_SCAN,
    STREAM_SHAPE,
    STREAM_SITE,
    Visit,
    amplitudes_of,
    site_spread,
)
from nilatent.simulate.ventricles import widening
from nilatent.volumes import Grid, average_to_grid, template

# Shapes differ on this lattice whatever the spacing of the maps, so that a person stays the same person.
LATTICE_MM = 4.0
# Deep structures differ less in place between people than the folds of the cortex.
DEEP_CENTRE_MM, DEEP_RADIUS_MM, DEEP_CALM = (0.0, -20.0, -5.0), 30.0, 0.6
# Chosen so that PCA of equal size leaves about as much of held-out grey matter unexplained as on real scans that were
# moved to MNI space by an affine: 72 scans at 4 mm, 16 components, raw and smoothed to FWHM 4, 8 and 12 mm give
# .86, .81, .58 and .43 here and .90, .83, .61 and .40 there.
SCALES = (Scale(120.0, 2.0, False), Scale(30.0, 0.8, False), Scale(12.0, 3.0, True))
# With few causes: the whole head, and parts as wide as a lobe. No folds, which many causes would bend.
CAUSE_SCALES = (Scale(120.0, 2.0, False), Scale(40.0, 3.0, False))
# One person's ribbon is crisper than the average over people that the template is.
SHARPNESS = 2
ATLAS_MM = 2.0

SITE_CONTRAST = 0.03
SITE_BIAS, SITE_BIAS_FWHM_MM = 0.04, 100.0
NOISE, NOISE_SITE_RATIO = 0.05, 1.5


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What everyone's brain is made from.

    Parameters
    ----------
    grid : Grid
        Of the maps.
    source : Grid
        Of the images below; finer than the maps, and averaged over the size of a map's voxel.
    grey : ndarray
        (x, y, z) grey-matter probability of the template, sharpened, in [0, 1].
    lost : ndarray
        (x, y, z) grey matter lost at disease 1.
    site_gain : ndarray
        (site, x, y, z) on the grid: what each site multiplies a map by.
    site_noise : ndarray
        (site,) standard deviation of the noise relative to the map.
    regions : DataFrame
        Planted regions: label, name, planted_loss (fraction at disease 1), loss_on_grid (what the atlas sees on the
        undeformed maps).
    """

    grid: Grid
    source: Grid
    grey: Array
    lost: Array
    site_gain: Array
    site_noise: npt.NDArray[np.float64]
    regions: pd.DataFrame

    def on_grid(self, image: Array) -> Array:
        """An image of the source grid, undeformed, on the grid of the maps."""
        points = positions(self.grid)
        return sample(image, to_voxels(points, self.source), outside="constant")


def base_anatomy(config: SimulationConfig) -> Anatomy:
    """The template, the planted regions and the sites of a simulation.

    Parameters
    ----------
    config : SimulationConfig
        The settings.

    Returns
    -------
    Anatomy
        Shared by everyone.

    Raises
    ------
    SettingError
        When a region is not in the atlas.
    """
    grid = Grid.mni(config.spacing_mm)
    source = Grid.mni(max(1.0, config.spacing_mm / 2))
    grey = tissues(source)["gm"]
    label, membership = planted_regions(config, source)
    losses = np.zeros(len(config.losses)) if config.null else config.effect * np.asarray(config.losses)
    lost = grey * np.einsum("r,rxyz->xyz", losses.astype(np.float32), membership)
    # The average over a voxel of the map, for sampling at its centre: the variance of a box minus that of a source voxel.
    ratio = config.spacing_mm / source.spacing_mm
    sigma = np.sqrt((ratio**2 - 1) / 12)
    grey, lost = (gaussian_filter(image, sigma, mode="constant") for image in (grey, lost))
    table = pd.DataFrame({"label": label, "name": config.regions, "planted_loss": losses})
    gain, noise = _sites(config, grid)
    anatomy = Anatomy(grid, source, grey, lost, gain, noise, table)
    return replace(anatomy, regions=table.assign(loss_on_grid=_loss_on_grid(anatomy)))


@cache
def _sharpened(spacing_mm: float) -> tuple[Array, Array, Array]:
    grid = Grid.mni(spacing_mm)
    shares = [template(name, grid).get_fdata(dtype=np.float32) for name in ("gm", "wm", "csf")]
    powers = np.stack([*shares, np.clip(1 - sum(shares), 0, 1)]) ** SHARPNESS
    powers /= powers.sum(axis=0)
    return powers[0], powers[1], powers[2]


def tissues(grid: Grid) -> dict[str, Array]:
    """Share of grey matter, white matter and fluid in each voxel of an MNI grid, as crisp as in one person."""
    grey, white, fluid = _sharpened(grid.spacing_mm)
    return {"gm": grey, "wm": white, "csf": fluid}


@cache
def _atlas_on(spacing_mm: float) -> RegionWeights:
    grid = Grid.mni(spacing_mm)
    # Regions are planted, and judged, wherever they lie: no mask, and none is too small.
    return region_weights(load_atlas("aal2"), grid, np.ones(grid.shape, dtype=bool), min_voxels=0.0)


def planted_regions(config: SimulationConfig, grid: Grid) -> tuple[npt.NDArray[np.int64], Array]:
    """Labels (region,) of the planted regions and the share of each voxel of an MNI grid they cover (region, x, y, z).

    Raises
    ------
    SettingError
        When a region is not in the atlas.
    """
    weights = _atlas_on(ATLAS_MM)
    for name in config.regions:
        if name not in weights.names:
            close = difflib.get_close_matches(name, weights.names, n=1, cutoff=0.0)
            raise SettingError(f"regions are named as in AAL2, which has no '{name}'. Did you mean '{close[0]}'?")
    labels = weights.labels[[weights.names.index(name) for name in config.regions]]
    return labels, np.stack([_cover(int(label), grid.spacing_mm) for label in labels])


@lru_cache(maxsize=32)
def _cover(label: int, spacing_mm: float) -> Array:
    at_2mm = Grid.mni(ATLAS_MM)
    weights = _atlas_on(ATLAS_MM)
    cover = weights.matrix[int(np.searchsorted(weights.labels, label))].toarray().reshape(at_2mm.shape)
    return average_to_grid(cover.astype(np.float32), at_2mm.affine, Grid.mni(spacing_mm))


def _loss_on_grid(anatomy: Anatomy) -> npt.NDArray[np.float64]:
    grey, lost = anatomy.on_grid(anatomy.grey), anatomy.on_grid(anatomy.lost)
    weights = _atlas_on(anatomy.grid.spacing_mm)
    rows = np.searchsorted(weights.labels, anatomy.regions["label"])
    return np.asarray((weights.matrix[rows] @ lost.ravel()) / (weights.matrix[rows] @ grey.ravel()), dtype=float)


def _sites(config: SimulationConfig, grid: Grid) -> tuple[Array, npt.NDArray[np.float64]]:
    spread = site_spread(config)
    gain = np.ones((config.n_sites, *grid.shape), dtype=np.float32)
    for site in range(config.n_sites):
        rng = np.random.default_rng([config.seed, STREAM_SITE, site])
        bias = smooth_noise(rng, grid.shape, spacing_mm=grid.spacing_mm, fwhm_mm=SITE_BIAS_FWHM_MM)
        gain[site] = np.exp(SITE_CONTRAST * spread[site] + config.site_effect * SITE_BIAS * bias * (config.n_sites > 1))
    return gain, config.noise * NOISE * NOISE_SITE_RATIO**spread


def positions(grid: Grid) -> Array:
    """(3, x, y, z) position of each voxel centre in mm."""
    axes = [grid.affine[i, 3] + grid.spacing_mm * np.arange(grid.shape[i]) for i in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def to_voxels(points_mm: Array, grid: Grid) -> Array:
    """Voxel coordinates on a grid of points in mm, along the first axis of length 3."""
    origin = grid.affine[:3, 3].reshape(3, *[1] * (points_mm.ndim - 1)).astype(np.float32)
    return (points_mm - origin) / np.float32(grid.spacing_mm)


@dataclass(frozen=True, eq=False)
class Shape:
    """How one person's anatomy differs in shape from the template.

    Parameters
    ----------
    displacement : ndarray
        (3, x, y, z) on the lattice, in voxels of the lattice.
    jacobian : ndarray
        (x, y, z) on the lattice, positive.
    """

    displacement: Array
    jacobian: Array

    def at(self, points_mm: Array) -> tuple[Array, Array]:
        """Where in the template the given points of the person come from (mm), and the volume change there."""
        lattice = Grid.mni(LATTICE_MM)
        where = to_voxels(points_mm, lattice)
        moved = np.stack([sample(component, where) for component in self.displacement])
        return points_mm + np.float32(LATTICE_MM) * moved, sample(self.jacobian, where)


@cache
def _envelope() -> Array:
    lattice = Grid.mni(LATTICE_MM)
    centre = np.asarray(DEEP_CENTRE_MM, dtype=np.float32).reshape(3, 1, 1, 1)
    distance2 = ((positions(lattice) - centre) ** 2).sum(axis=0)
    calm = 1 - DEEP_CALM * np.exp(-distance2 / (2 * DEEP_RADIUS_MM**2))
    return np.asarray(calm * rest_at_edges(lattice.shape), dtype=np.float32)


def _times(deformation: float, scales: Sequence[Scale]) -> list[Scale]:
    return [Scale(s.fwhm_mm, deformation * s.sd_mm, s.conserves_volume) for s in scales]


@lru_cache(maxsize=2)
def _causes(seed: int, n_causes: int, deformation: float) -> Array:
    scales = _times(deformation, CAUSE_SCALES)
    streams = [np.random.default_rng([seed, STREAM_CAUSE, number]) for number in range(n_causes)]
    return np.stack([random_velocity(rng, _envelope(), spacing_mm=LATTICE_MM, scales=scales) for rng in streams])


def draw_shape(config: SimulationConfig, index: int) -> Shape:
    """The shape of person number `index`.

    Raises
    ------
    SettingError
        When the deformation folds space over.
    """
    if config.n_causes > 0:
        amplitudes = amplitudes_of(config, index)
        causes = _causes(config.seed, config.n_causes, config.deformation)
        return Shape(*diffeomorphism(caused_velocity(causes, amplitudes)))
    scales = _times(config.deformation, SCALES)
    rng = np.random.default_rng([config.seed, STREAM_SHAPE, index])
    return Shape(*random_diffeomorphism(rng, _envelope(), spacing_mm=LATTICE_MM, scales=scales))


def widened(config: SimulationConfig, visit: Visit, origin: Array) -> tuple[Array, Array]:
    """Where points of the template come from once the ventricles of this visit are wide (mm), and the volume change."""
    amount = config.ventricles_mm * visit.atrophy
    if amount == 0:
        return origin, np.ones(origin.shape[1:], dtype=np.float32)
    return Shape(*widening(amount, LATTICE_MM)).at(origin)


def grey_matter_maps(config: SimulationConfig, anatomy: Anatomy, index: int, visits: Sequence[Visit]) -> Array:
    """Modulated grey-matter maps of every visit of one person.

    Parameters
    ----------
    config : SimulationConfig
        The settings.
    anatomy : Anatomy
        From :func:`base_anatomy`.
    index : int
        Number of the person, from 0.
    visits : Sequence[Visit]
        Of this person.

    Returns
    -------
    ndarray
        (visit, x, y, z) float32, at least 0: grey matter warped to the person times the Jacobian times head size, so
        that sums are volumes.
    """
    origin, volume = draw_shape(config, index).at(positions(anatomy.grid))
    maps = np.empty((len(visits), *anatomy.grid.shape), dtype=np.float32)
    for number, visit in enumerate(visits):
        place, change = widened(config, visit, origin)
        where = to_voxels(place, anatomy.source)
        grey = sample(anatomy.grey, where, outside="constant") * volume * change
        lost = sample(anatomy.lost, where, outside="constant") * volume * change
        rng = np.random.default_rng([config.seed, STREAM_SCAN, index, number])
        noise = 1 + np.float32(anatomy.site_noise[visit.site]) * rng.standard_normal(grey.shape, dtype=np.float32)
        tissue = np.float32(visit.head_size * visit.gm_factor) * (grey - np.float32(visit.atrophy) * lost)
        maps[number] = np.clip(tissue * anatomy.site_gain[visit.site] * noise, 0, None)
    return maps
