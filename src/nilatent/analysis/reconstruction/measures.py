"""How far each reconstruction is from its scan: every measure of one scan, gathered while reconstructions stream by."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nilatent.analysis.downsampling import Downsampling
from nilatent.analysis.similarity import ssim_3d
from nilatent.atlas import RegionWeights
from nilatent.errors import AtlasError, SettingError
from nilatent.volumes import Volumes, VoxelPca

METHODS = ("model", "pca", "down-sampling", "mean image")
WHOLE = ("mse_whole", "mae_whole", "psnr_whole", "ssim_whole", "ms_ssim_whole")
FEATURE = ("feature_distance", "feature_cosine")
METRICS = ("mse", "mae", "psnr", "ssim", "ms_ssim", *WHOLE, "cosine", *FEATURE, "gm_ml")
# Slices are kept for so many held-out scans while streaming; best, median and worst are chosen among them.
MAX_CANDIDATES = 200
MAX_REFERENCE_SCANS = 100
REFERENCE_BATCH = 4
# PSNR of a perfect reconstruction would be infinite.
MSE_FLOOR = 1e-12

FeatureFunction = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Deep features with their origin and their unit.

    Parameters
    ----------
    features : callable
        (scan, voxel in mask) to (scan, feature).
    centre, at_mean : ndarray
        (feature,) mean over training scans, and the features of their mean image.
    unit : float
        Mean distance of training scans to the mean image.
    """

    features: FeatureFunction
    centre: npt.NDArray[np.float64]
    at_mean: npt.NDArray[np.float64]
    unit: float


@dataclass(frozen=True, eq=False)
class Judge:
    """What every scan is judged with.

    Parameters
    ----------
    pca : VoxelPca
        Fitted on the training scans; its mean is the mean image.
    coarse : Downsampling
        To the size of the latent.
    space : FeatureSpace, optional
        Of the deep features; without it their measures are NaN.
    regions : RegionWeights, optional
        Inside the mask; without it no region is measured.
    data_range : float
        Range of the maps.
    seed : int
        Of the candidates whose slices are kept.
    """

    pca: VoxelPca
    coarse: Downsampling
    space: FeatureSpace | None
    regions: RegionWeights | None
    data_range: float
    seed: int

    def methods(self, originals: np.ndarray, reconstructed: np.ndarray) -> npt.NDArray[np.float32]:
        """(method, scan, voxel) in the order of METHODS."""
        mean = np.broadcast_to(self.pca.mean, originals.shape)
        made = [reconstructed, self.pca.reconstruct(originals), self.coarse.reconstruct(originals), mean]
        return np.stack(made).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Measures:
    """What streaming over the reconstructions leaves.

    Parameters
    ----------
    values : ndarray
        (metric, method, scan) in the order of METRICS and METHODS; NaN for scans that did not come, and for the costly
        measures of scans that are not held out.
    gm_ml : ndarray
        (scan,) grey matter of the original inside the mask, ml.
    abs_error, squared_error, squared_deviation : ndarray
        (voxel,) means over held-out scans: model error absolute and squared, squared distance to the mean image.
    slices : dict[int, ndarray]
        Row to (2, voxel in the three planes) original and reconstruction.
    region_mse, region_mean : ndarray
        (scan, method, region) mean squared error and mean value; NaN for scans that are not held out.
    region_original : ndarray
        (scan, region) mean value of the original.
    """

    values: npt.NDArray[np.float64]
    gm_ml: npt.NDArray[np.float64]
    abs_error: npt.NDArray[np.float64]
    squared_error: npt.NDArray[np.float64]
    squared_deviation: npt.NDArray[np.float64]
    slices: dict[int, npt.NDArray[np.float32]]
    region_mse: npt.NDArray[np.float64]
    region_mean: npt.NDArray[np.float64]
    region_original: npt.NDArray[np.float64]

    def of(self, metric: str, method: str) -> npt.NDArray[np.float64]:
        """(scan,) one measure of one method."""
        return np.asarray(self.values[METRICS.index(metric), METHODS.index(method)])


def feature_space(
    volumes: Volumes, train: np.ndarray, mean_image: np.ndarray, features: FeatureFunction, *, seed: int
) -> FeatureSpace:
    """Where training scans lie in the space of the features: at most 100 of them, drawn by the seed.

    Raises
    ------
    SettingError
        When the features are not one finite row per scan, or do not tell the training scans from their mean image.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(train)[:MAX_REFERENCE_SCANS])
    at_mean = np.asarray(features(np.asarray(mean_image, dtype=np.float32)[None]), dtype=np.float64)
    total, distance = np.zeros(at_mean.shape[-1]), 0.0
    for start in range(0, len(rows), REFERENCE_BATCH):
        batch = rows[start : start + REFERENCE_BATCH]
        found = np.asarray(features(volumes.masked(batch)), dtype=np.float64)
        if found.shape != (len(batch), at_mean.size) or not np.isfinite(found).all():
            raise SettingError(
                f"Features of {len(batch)} scans have shape {found.shape} or non-finite values; "
                f"({len(batch)}, {at_mean.size}) finite values are expected. Give one row per scan."
            )
        total += found.sum(axis=0)
        distance += float(np.linalg.norm(found - at_mean, axis=1).sum())
    if not distance > 0:
        raise SettingError(
            "The features of every training scan are those of the mean image. Give features that tell scans apart."
        )
    return FeatureSpace(features, total / len(rows), at_mean[0], distance / len(rows))


def measure(
    volumes: Volumes, chunks: Iterable[tuple[np.ndarray, np.ndarray]], is_held_out: np.ndarray, judge: Judge
) -> Measures:
    """Measure every reconstruction as it comes; no more than one chunk is held.

    Parameters
    ----------
    volumes : Volumes
        The originals.
    chunks : Iterable
        Pairs of rows and their reconstructions, (batch, voxel in mask).
    is_held_out : ndarray
        (scan,) bool: scans on which all measures are taken; of the others only the mean errors.
    judge : Judge
        Baselines and settings.

    Raises
    ------
    AtlasError
        When the regions belong to another mask.
    SettingError
        When the chunks leave out a held-out scan, bring one twice, or have another number of voxels.
    """
    n_scans, n_voxels = len(volumes.scans), int(volumes.mask.sum())
    held_out = np.flatnonzero(is_held_out)
    candidates = set(np.random.default_rng(judge.seed).permutation(held_out)[:MAX_CANDIDATES].tolist())
    shown = np.flatnonzero(plane_mask(volumes.mask)[volumes.mask])
    values, gm_ml = np.full((len(METRICS), len(METHODS), n_scans), np.nan), np.full(n_scans, np.nan)
    region_values = np.full((2, n_scans, 1 + len(METHODS), _n_regions(judge.regions, n_voxels)), np.nan)
    sums, slices = np.zeros((3, n_voxels)), {}
    for rows, reconstructed in chunks:
        _check_chunk(volumes, rows, reconstructed, gm_ml)
        originals = volumes.masked(rows)
        by_method = judge.methods(originals, reconstructed)
        for position, row in enumerate(np.asarray(rows, dtype=int)):
            x, made = originals[position].astype(np.float64), by_method[:, position].astype(np.float64)
            gm_ml[row] = x.sum() * voxel_ml(volumes)
            found = _plain_metrics(volumes, row, x, made, judge)
            if is_held_out[row]:
                found |= _costly_metrics(volumes, row, x, made, judge)
            for name, by_one in found.items():
                values[METRICS.index(name), :, row] = by_one
            if not is_held_out[row]:
                continue
            sums += [np.abs(made[0] - x), (made[0] - x) ** 2, (x - judge.pca.mean) ** 2]
            if judge.regions is not None:
                region_values[:, row] = _region_values(x, made, judge.regions)
            if int(row) in candidates:
                slices[int(row)] = np.stack([x[shown], made[0][shown]]).astype(np.float32)
    absent = held_out[np.isnan(gm_ml[held_out])]
    if len(absent):
        raise SettingError(
            f"Held-out scan {volumes.scans.index[absent[0]]} ({len(absent)} in all) has no reconstruction. "
            "Reconstruct every scan of part 'test'."
        )
    abs_error, squared_error, squared_deviation = sums / len(held_out)
    means, errors = region_values
    return Measures(
        values, gm_ml, abs_error, squared_error, squared_deviation, slices, errors[:, 1:], means[:, 1:], means[:, 0]
    )


def _check_chunk(volumes: Volumes, rows: np.ndarray, reconstructed: np.ndarray, gm_ml: np.ndarray) -> None:
    n_voxels = int(volumes.mask.sum())
    if np.shape(reconstructed) != (len(rows), n_voxels) or not np.isfinite(reconstructed).all():
        raise SettingError(
            f"A chunk of reconstructions of {len(rows)} scans has shape {np.shape(reconstructed)} or non-finite values; "
            f"({len(rows)}, {n_voxels}) finite values are expected. Decode with the model of these volumes."
        )
    numbers, counts = np.unique(np.asarray(rows, dtype=int), return_counts=True)
    again = [*numbers[counts > 1], *numbers[np.isfinite(gm_ml[numbers])]]
    if again:
        raise SettingError(f"Scan {volumes.scans.index[again[0]]} came twice among the reconstructions. Send it once.")


def _n_regions(regions: RegionWeights | None, n_voxels: int) -> int:
    if regions is None:
        return 0
    if regions.matrix.shape[1] != n_voxels:
        raise AtlasError(
            f"The region weights cover {regions.matrix.shape[1]} voxels, the mask of the volumes {n_voxels}. "
            "Compute the weights on the grid and mask of these volumes."
        )
    return len(regions.names)


def _plain_metrics(
    volumes: Volumes, row: int, x: npt.NDArray[np.float64], made: npt.NDArray[np.float64], judge: Judge
) -> dict[str, npt.NDArray[np.float64]]:
    """Per metric (method,): all that sums over voxels give."""
    difference = made - x
    squares, sizes = np.square(difference).sum(axis=1), np.abs(difference).sum(axis=1)
    # Every method is zero outside the mask; the scan is what was packed.
    outside = volumes.data[row][~volumes.mask].astype(np.float64)
    mse, mse_whole = squares / x.size, (squares + np.square(outside).sum()) / volumes.mask.size

    def psnr(error: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(10 * np.log10(judge.data_range**2 / np.maximum(error, MSE_FLOOR)))

    return {
        "mse": mse,
        "mae": sizes / x.size,
        "psnr": psnr(mse),
        "mse_whole": mse_whole,
        "mae_whole": (sizes + np.abs(outside).sum()) / volumes.mask.size,
        "psnr_whole": psnr(mse_whole),
        "cosine": _cosine(x - judge.pca.mean, made - judge.pca.mean),
        "gm_ml": made.sum(axis=1) * voxel_ml(volumes),
    }


def _costly_metrics(
    volumes: Volumes, row: int, x: npt.NDArray[np.float64], made: npt.NDArray[np.float64], judge: Judge
) -> dict[str, npt.NDArray[np.float64]]:
    """Per metric (method,): similarity of structure, and distance between deep features."""
    images = np.concatenate([x[None], made]).astype(np.float32)
    painted = np.zeros((len(images), *volumes.mask.shape), dtype=np.float32)
    painted[:, volumes.mask] = images
    everywhere = np.ones(volumes.mask.shape, dtype=bool)
    inside = ssim_3d(painted[0], painted[1:], volumes.mask, data_range=judge.data_range)
    whole = ssim_3d(volumes.data[row], painted[1:], everywhere, data_range=judge.data_range)
    found = dict(zip(("ssim", "ms_ssim", "ssim_whole", "ms_ssim_whole"), (*inside, *whole), strict=True))
    if judge.space is not None:
        # The mean image is the same every time, and the last of METHODS.
        rows = np.asarray(judge.space.features(images[:-1]), dtype=np.float64)
        rows = np.concatenate([rows, judge.space.at_mean[None]])
        found["feature_distance"] = np.linalg.norm(rows[1:] - rows[0], axis=1) / judge.space.unit
        found["feature_cosine"] = _cosine(rows[0] - judge.space.centre, rows[1:] - judge.space.centre)
    return found


def voxel_ml(volumes: Volumes) -> float:
    """Volume of a voxel in millilitres."""
    return volumes.grid.spacing_mm**3 / 1000


def _cosine(one: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(other,) cosine of the angle; NaN where a vector has no direction."""
    lengths = np.linalg.norm(one) * np.linalg.norm(others, axis=1)
    return np.asarray(np.divide(others @ one, lengths, out=np.full(len(others), np.nan), where=lengths > 0))


def _region_values(
    x: npt.NDArray[np.float64], made: npt.NDArray[np.float64], regions: RegionWeights
) -> npt.NDArray[np.float64]:
    """(2, 1 + method, region): mean value and mean squared error of the original and of every method."""
    images = np.concatenate([x[None], made])
    both = np.stack([images, np.square(images - x)])
    sums = regions.matrix @ both.reshape(-1, x.size).T
    return np.asarray((sums / regions.n_voxels[:, None]).T.reshape(2, len(images), -1))


def planes(mask: np.ndarray) -> tuple[int, int, int]:
    """Index of the slices shown; the sagittal one passes beside the midline, where there is grey matter to see."""
    corners = [(int(axis.min()), int(axis.max())) for axis in np.nonzero(mask)]
    (left, right), (back, front), (low, high) = corners
    return left + round(0.65 * (right - left)), (back + front) // 2, (low + high) // 2


def plane_mask(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(x, y, z) bool: voxels of the mask in one of the slices shown."""
    shown = np.zeros(mask.shape, dtype=bool)
    for axis, index in enumerate(planes(mask)):
        shown[(slice(None),) * axis + (index,)] = True
    return shown & mask
