"""Reconstruction in numbers: means, spreads and intervals per stratum, and what becomes of every region."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nilatent.analysis.reconstruction.measures import METHODS, METRICS, Measures
from nilatent.atlas import RegionWeights

MEANS = tuple(metric for metric in METRICS if metric != "gm_ml")
VOLUME = ("gm_bias_ml", "gm_mae_ml", "gm_error_percent")
N_BOOTSTRAP = 2000
LEVEL = 0.95
# Bland and Altman's limits hold 95 % of normally distributed differences.
LIMIT_SD = 1.96

Array = npt.NDArray[np.float64]


def resample(values: Array, subjects: npt.ArrayLike, *, seed: int) -> tuple[Array, Array]:
    """Sums over scans, and the same in bootstrap samples that draw subjects with all their scans.

    Parameters
    ----------
    values : ndarray
        (scan, column).
    subjects : array
        (scan,) subject of each scan.
    seed : int
        Of the draw, which is that of :func:`nilatent.analysis.stats.bootstrap_ratio`.

    Returns
    -------
    tuple[ndarray, ndarray]
        (column,) and (sample, column); the samples of a single subject are NaN.
    """
    codes, names = pd.factorize(np.asarray(subjects))
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, codes, values)
    if len(names) < 2:
        return sums.sum(axis=0), np.full((1, values.shape[1]), np.nan)
    share = np.full(len(names), 1 / len(names))
    counts = np.random.default_rng(seed).multinomial(len(names), share, size=N_BOOTSTRAP)
    with np.errstate(invalid="ignore"):
        return sums.sum(axis=0), counts.astype(np.float64) @ sums


def interval(samples: Array, *, level: float = LEVEL) -> tuple[Array, Array]:
    """Percentile interval of every column; samples in which a ratio is not defined are left out."""
    columns = samples.reshape(len(samples), -1)
    limits = np.full((2, columns.shape[1]), np.nan)
    defined = np.isfinite(columns).any(axis=0)
    limits[:, defined] = np.nanquantile(columns[:, defined], [(1 - level) / 2, (1 + level) / 2], axis=0)
    low, high = limits.reshape(2, *samples.shape[1:])
    return low, high


def ratio(top: Array, bottom: Array) -> Array:
    """Quotient, NaN where the divisor is zero or not a number."""
    top, bottom = np.broadcast_arrays(top, bottom)
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=np.abs(bottom) > 0))


def concordance(sums: Array) -> Array:
    """Lin's concordance correlation from sums.

    Parameters
    ----------
    sums : ndarray
        (..., 6) numbers of scans and sums of x, y, x^2, y^2 and x y.

    Returns
    -------
    ndarray
        (...,) in [-1, 1]: 1 when every y is its x; NaN when neither varies and both are the same.

    References
    ----------
    Lin (1989). https://doi.org/10.2307/2532051
    """
    x, y, xx, yy, xy = np.moveaxis(ratio(sums[..., 1:], sums[..., :1]), -1, 0)
    return ratio(2 * (xy - x * y), xx - x**2 + yy - y**2 + (x - y) ** 2)


def rows(measures: Measures, subjects: npt.ArrayLike, scans: npt.NDArray[np.intp], *, seed: int) -> pd.DataFrame:
    """One row per method over some scans.

    Parameters
    ----------
    measures : Measures
        Of every scan.
    subjects : array
        (scan,) subject of every scan.
    scans : ndarray
        Rows of the scans that count.
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        ``method``, numbers of scans and subjects; FVU and every measure as a mean over scans, then their SD over scans and
        95 % bootstrap intervals over subjects. Agreement of grey matter in ml: bias (reconstruction minus original), mean
        absolute error, Lin's concordance and Bland and Altman's limits of agreement.

    References
    ----------
    Bland & Altman (1986). https://doi.org/10.1016/S0140-6736(86)90837-8
    """
    drawn = np.asarray(subjects)[scans]
    original, volume = measures.gm_ml[scans], measures.values[METRICS.index("gm_ml")][:, scans]
    off = volume - original
    percent = np.abs(off) / np.maximum(original, 1e-9) * 100
    values = np.concatenate([measures.values[: len(MEANS)][:, :, scans], np.stack([off, np.abs(off), percent])])
    names = (*MEANS, *VOLUME)
    flat = np.concatenate([np.ones((len(scans), 1)), values.reshape(-1, len(scans)).T], axis=1)
    sums, samples = resample(flat, drawn, seed=seed)
    shape = (len(names), len(METHODS))
    means = ratio(sums[1:], sums[0]).reshape(shape)
    sampled = ratio(samples[:, 1:], samples[:, :1]).reshape(-1, *shape)
    low, high = interval(sampled)
    error, at_mean = names.index("mse"), METHODS.index("mean image")
    fvu = ratio(means[error], means[error, at_mean])
    fvu_low, fvu_high = interval(ratio(sampled[:, error], sampled[:, error, at_mean, None]))
    ccc, ccc_low, ccc_high = _concordance_of(original, volume, drawn, seed=seed)
    spread = values.std(axis=2, ddof=1) if len(scans) > 1 else np.full(shape, np.nan)
    columns: dict[str, object] = {"method": METHODS, "n_scans": len(scans), "n_subjects": len(set(drawn))}
    columns |= {"fvu": fvu, "fvu_low": fvu_low, "fvu_high": fvu_high}
    columns |= dict(zip(names, means, strict=True))
    limit = LIMIT_SD * spread[names.index("gm_bias_ml")]
    bias = means[names.index("gm_bias_ml")]
    columns |= {"gm_ccc": ccc, "gm_ccc_low": ccc_low, "gm_ccc_high": ccc_high}
    columns |= {"gm_limit_low_ml": bias - limit, "gm_limit_high_ml": bias + limit}
    for index, name in enumerate(names):
        columns |= {f"{name}_sd": spread[index], f"{name}_low": low[index], f"{name}_high": high[index]}
    return pd.DataFrame(columns)


def _concordance_of(
    x: Array, made: Array, subjects: npt.NDArray[np.object_], *, seed: int
) -> tuple[Array, Array, Array]:
    """(method,) Lin's concordance of original and reconstruction with its interval."""
    # Taken from one origin, so that squares of large volumes do not drown their differences.
    origin = x.mean()
    x, made = np.broadcast_to(x - origin, made.shape), made - origin
    parts = np.stack([np.ones_like(made), x, made, x * x, made * made, x * made], axis=-1)
    sums, samples = resample(np.moveaxis(parts, 0, 1).reshape(parts.shape[1], -1), subjects, seed=seed)
    return concordance(sums.reshape(-1, 6)), *interval(concordance(samples.reshape(len(samples), -1, 6)))


def region_data(
    measures: Measures, regions: RegionWeights, subjects: npt.ArrayLike, held_out: npt.NDArray[np.intp], *, seed: int
) -> xr.Dataset:
    """What becomes of every region, over held-out scans.

    Returns
    -------
    Dataset
        (approach, region): ``region_fvu`` with its bootstrap interval, ``region_mse``, ``region_bias`` (mean of
        reconstruction minus original), ``region_correlation`` of the region's mean in original and reconstruction across
        scans, NaN where a method gives everyone the same; ``region_label`` (region,).
    """
    error = measures.region_mse[held_out]
    n_methods, n_regions = error.shape[1:]
    sums, samples = resample(error.reshape(len(held_out), -1), np.asarray(subjects)[held_out], seed=seed)
    at_mean = METHODS.index("mean image")

    def fvu(summed: Array) -> Array:
        shaped = summed.reshape(-1, n_methods, n_regions)
        return ratio(shaped, shaped[:, at_mean : at_mean + 1])

    low, high = interval(fvu(samples))
    found = {
        "region_fvu": fvu(sums)[0],
        "region_fvu_low": low,
        "region_fvu_high": high,
        "region_mse": error.mean(axis=0),
        "region_bias": (measures.region_mean[held_out] - measures.region_original[held_out][:, None]).mean(axis=0),
        "region_correlation": _correlation(measures.region_mean[held_out], measures.region_original[held_out][:, None]),
    }
    return xr.Dataset(
        {name: (("approach", "region"), values) for name, values in found.items()}
        | {"region_label": ("region", np.asarray(regions.labels))},
        coords={"approach": np.array(METHODS, dtype=str), "region": np.array(regions.names, dtype=str)},
    )


def _correlation(made: Array, original: Array) -> Array:
    """Pearson correlation along the first axis; what varies by rounding alone has none."""
    left, right = made - made.mean(axis=0), original - original.mean(axis=0)
    spread = np.linalg.norm(left, axis=0)
    found = ratio((left * right).sum(axis=0), spread * np.linalg.norm(right, axis=0))
    return np.where(spread > 1e-6 * np.linalg.norm(made, axis=0), found, np.nan)
