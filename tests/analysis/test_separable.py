import numpy as np

from nilatent.analysis.separable import along_axes


def test_it_is_the_sum_over_all_three_matrices(rng):
    volumes = rng.normal(size=(3, 15, 17, 13)).astype(np.float32)
    first, second, third = (rng.normal(size=(4 + i, side)).astype(np.float32) for i, side in enumerate((15, 17, 13)))
    expected = np.einsum("ax,by,cz,nxyz->nabc", first, second, third, volumes.astype(float), optimize=True)
    np.testing.assert_allclose(along_axes(volumes, [first, second, third]), expected, rtol=1e-3, atol=1e-3)
