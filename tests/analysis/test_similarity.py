import numpy as np
import pytest
from scipy import ndimage

from nilatent.analysis.similarity import SCALE_WEIGHTS, n_scales, ssim_3d


def naive(x, y, mask, *, c1=1e-4, c2=9e-4):
    """Mean SSIM, and mean contrast-structure, by the formula in double precision."""

    def mean(v):
        return ndimage.gaussian_filter(v, 1.5, truncate=3.5)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x**2) - mx**2, mean(y**2) - my**2, mean(x * y) - mx * my
    structure = (2 * cov + c2) / (vx + vy + c2)
    return ((2 * mx * my + c1) / (mx**2 + my**2 + c1) * structure)[mask].mean(), structure[mask].mean()


def halved(v):
    n_x, n_y, n_z = (side // 2 for side in v.shape)
    return v[: 2 * n_x, : 2 * n_y, : 2 * n_z].reshape(n_x, 2, n_y, 2, n_z, 2).mean(axis=(1, 3, 5))


def test_ssim_equals_its_formula_voxel_by_voxel(rng):
    x, y = rng.uniform(size=(2, 15, 17, 13))
    mask = rng.random(x.shape) > 0.3
    found, _ = ssim_3d(x, [y, x], mask, data_range=1.0)
    np.testing.assert_allclose(found, [naive(x, y, mask)[0], 1], rtol=1e-4)
    other = ssim_3d(x, [y], mask, data_range=5.0)[0][0]
    assert other == pytest.approx(naive(x, y, mask, c1=25e-4, c2=225e-4)[0], rel=1e-4)
    assert other != pytest.approx(found[0], rel=1e-2)


def test_ms_ssim_equals_its_formula_over_three_scales(rng):
    x = ndimage.gaussian_filter(rng.uniform(size=(44, 48, 52)), 1) * 3
    y, mask = x + 0.1 * rng.normal(size=x.shape), rng.random(x.shape) > 0.5
    expected, a, b, inside = 1.0, x, y, mask
    weights = np.array(SCALE_WEIGHTS[:3]) / sum(SCALE_WEIGHTS[:3])
    for level, weight in enumerate(weights):
        expected *= naive(a, b, inside)[0 if level == 2 else 1] ** weight
        a, b = halved(a), halved(b)
        # Not the mask of the next scale, but the mask of this scale averaged.
        inside = halved(inside.astype(float)) >= 0.5
    found = ssim_3d(x, [y, x, 1 - x], mask, data_range=1.0)[1]
    np.testing.assert_allclose(found, [expected, 1, 0], rtol=1e-4)


def test_scales_are_fewer_on_small_grids_and_one_scale_is_ssim(rng):
    assert [n_scales(shape) for shape in ((9, 40, 40), (21, 40, 40), (22, 40, 40), (176, 176, 400))] == [1, 1, 2, 5]
    x = rng.uniform(size=(15, 17, 13))
    ssim, multi_scale = ssim_3d(x, [0.5 * x], np.ones(x.shape, bool), data_range=1.0)
    np.testing.assert_allclose(multi_scale, ssim)


def test_an_odd_side_keeps_its_last_slice(rng):
    x = rng.uniform(size=(45, 44, 44))
    y = x.copy()
    y[-1] = 0.0
    mask = np.zeros(x.shape, dtype=bool)
    mask[40:] = True
    assert ssim_3d(x, [y], mask, data_range=1.0)[1][0] < 0.9


def test_background_inflates_similarity(rng):
    x, mask = np.zeros((31, 33, 29)), np.zeros((31, 33, 29), dtype=bool)
    mask[9:21, 9:21, 9:21] = True
    x[mask] = rng.uniform(size=int(mask.sum()))
    y = np.where(mask, x + 0.3 * rng.normal(size=x.shape), 0.0)
    inside, whole = (ssim_3d(x, [y], where, data_range=1.0)[0][0] for where in (mask, np.ones_like(mask)))
    assert whole > inside + 0.1
