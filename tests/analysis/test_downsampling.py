from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from nilatent.analysis.downsampling import downsampling
from nilatent.errors import SettingError

SHAPE = (15, 17, 13)


@pytest.fixture
def mask(rng):
    inside = ndimage.gaussian_filter(rng.uniform(size=SHAPE), 2) > 0.49
    inside[7, 8, 6] = True
    return inside


def smooth_scans(rng, mask, *, n=6):
    return np.stack([ndimage.gaussian_filter(rng.normal(size=SHAPE), 2)[mask] for _ in range(n)]).astype(np.float32)


def naive(scan, mask, shape):
    """Averages over cells by overlap, and interpolation between their centres, one voxel at a time."""
    volume = np.zeros(SHAPE)
    volume[mask] = scan
    corners = [(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(mask)]
    edges = [(high - low) / cells for (low, high), cells in zip(corners, shape, strict=True)]
    voxels = np.argwhere(mask)
    values = {}
    for cell in product(*(range(cells) for cells in shape)):
        low = np.array([c[0] + i * e for c, i, e in zip(corners, cell, edges, strict=True)])
        shares = np.clip(np.minimum(low + edges, voxels + 1) - np.maximum(low, voxels), 0, None).prod(axis=1)
        if shares.sum() > 1e-9:
            values[cell] = (shares * volume[mask]).sum() / shares.sum()
    drawn = []
    for voxel in voxels:
        place = [(v + 0.5 - c[0]) / e - 0.5 for v, c, e in zip(voxel, corners, edges, strict=True)]
        place = np.clip(place, 0, np.array(shape) - 1)
        weight = {cell: np.prod(np.clip(1 - np.abs(place - np.array(cell)), 0, None)) for cell in values}
        drawn.append(sum(weight[cell] * values[cell] for cell in values) / sum(weight.values()))
    return len(values), np.array(drawn)


def test_it_equals_its_definition_cell_by_cell(rng, mask):
    scans = smooth_scans(rng, mask)
    coarse = downsampling(mask, 30)
    n_held, expected = naive(scans[1], mask, coarse.shape)
    assert coarse.n_values == n_held
    np.testing.assert_allclose(coarse.reconstruct(scans)[1], expected, atol=1e-5)


@pytest.mark.parametrize("n_values", [1, 2, 8, 30, 100, 500])
def test_it_never_keeps_more_values_than_allowed_nor_far_fewer(mask, n_values):
    kept = downsampling(mask, n_values).n_values
    assert 0.6 * n_values <= kept <= n_values


@pytest.mark.parametrize("n_values", [1, 8, 77, 400])
def test_a_constant_scan_comes_back_exactly(mask, n_values):
    scans = np.full((1, int(mask.sum())), 0.3, dtype=np.float32)
    np.testing.assert_allclose(downsampling(mask, n_values).reconstruct(scans), scans, rtol=1e-5)


@pytest.mark.parametrize(("shape", "near"), [((12, 15, 12), 1e-4), (SHAPE, 0.1)])
def test_a_linear_ramp_nearly_comes_back(shape, near):
    x, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
    ramp, mask = (x + 2 * y - z).astype(np.float32), np.ones(shape, dtype=bool)
    coarse = downsampling(mask, 80)
    off = np.abs(coarse.reconstruct(ramp[mask][None])[0] - ramp[mask]).reshape(shape)
    # Exact between the outermost centres where cells are whole voxels, and nearly so where a voxel is shared.
    assert off[3:-3, 3:-3, 3:-3].max() < near
    assert off.mean() < 0.05 * np.ptp(ramp)


def test_one_value_is_the_mean_inside_the_mask(rng, mask):
    scans = smooth_scans(rng, mask)
    drawn = downsampling(mask, 1).reconstruct(scans)
    np.testing.assert_allclose(drawn, np.broadcast_to(scans.mean(axis=1, keepdims=True), scans.shape), atol=1e-6)


def test_more_values_are_never_worse_on_average_and_all_are_perfect(rng, mask):
    scans = smooth_scans(rng, mask)
    errors = [
        np.square(downsampling(mask, n).reconstruct(scans) - scans).mean() for n in (1, 8, 27, 64, 216, int(mask.sum()))
    ]
    assert all(np.diff(errors) < 0)
    assert errors[-1] == pytest.approx(0, abs=1e-12)


def test_scans_do_not_touch_one_another(rng, mask):
    scans, coarse = smooth_scans(rng, mask), downsampling(mask, 50)
    one_by_one = np.concatenate([coarse.reconstruct(scan[None]) for scan in scans])
    np.testing.assert_allclose(coarse.reconstruct(scans), one_by_one, atol=1e-6)


def test_nothing_to_keep_is_refused(mask):
    with pytest.raises(SettingError, match="Down-sampling to 0 values"):
        downsampling(mask, 0)
    with pytest.raises(SettingError, match="mask of 0 voxels"):
        downsampling(np.zeros(SHAPE, dtype=bool), 5)
