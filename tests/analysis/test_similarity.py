import numpy as np
import pytest
from scipy import ndimage

from nilatent.analysis.similarity import ssim_3d


def test_ssim_equals_its_formula_voxel_by_voxel(rng):
    x, y = rng.uniform(size=(2, 15, 17, 13))
    mask = np.ones(x.shape, dtype=bool)

    def mean(v):
        return ndimage.gaussian_filter(v, 1.5, truncate=3.5)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean((x - 0) ** 2) - mx**2, mean(y**2) - my**2, mean(x * y) - mx * my
    expected = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    np.testing.assert_allclose(ssim_3d(x, [y, x], mask, data_range=1.0), [expected.mean(), 1])
    assert ssim_3d(x, [y], mask, data_range=5.0)[0] != pytest.approx(expected.mean())
