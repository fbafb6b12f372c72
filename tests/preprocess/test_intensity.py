from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from nilatent.errors import ScanError
from nilatent.preprocess import intensity


def test_noise_is_the_standard_deviation_of_white_noise_over_smooth_anatomy(rng):
    smooth = 100 + 30 * ndimage.gaussian_filter(rng.normal(size=(41, 43, 39)), 4) * 20
    noisy = (smooth + rng.normal(0, 2.5, smooth.shape)).astype(np.float32)
    assert intensity.noise(noisy, np.ones(noisy.shape, dtype=bool)) == pytest.approx(2.5, rel=0.05)
    assert np.isnan(intensity.noise(noisy, np.zeros(noisy.shape, dtype=bool)))


def test_percentile_scaling_uses_the_mask_alone(rng):
    data = rng.normal(50, 10, (15, 17, 13)).astype(np.float32)
    mask = rng.random(data.shape) > 0.4
    scaled = intensity.scale_percentiles(data, mask, low=10, high=90)
    bottom, top = np.percentile(data[mask], (10, 90))
    np.testing.assert_allclose(scaled[mask], np.clip((data[mask] - bottom) / (top - bottom), 0, 1), atol=1e-5)
    assert (scaled[~mask] == 0).all()
    np.testing.assert_array_equal(intensity.scale_percentiles(np.where(mask, data, 1e6), mask, low=10, high=90), scaled)


def test_bias_range_is_the_ratio_of_percentiles():
    field = np.linspace(1, 2, 101, dtype=np.float32).reshape(101, 1, 1)
    assert intensity.bias_range(field, np.ones(field.shape, dtype=bool)) == pytest.approx(1.95 / 1.05)


@pytest.mark.parametrize("voxel_mm", [(2.0, 2.0, 2.0), (1.0, 2.0, 3.0)])
def test_the_field_lies_where_the_brain_lies(monkeypatch, voxel_mm):
    """The engine's stand-in calls the image itself its bias field, so that the field found must be the image."""
    shape = (71, 63, 57)
    x, y, z = np.indices(shape) * np.reshape(voxel_mm, (3, 1, 1, 1))
    log_data = 0.3 * np.sin(x / 12) + 0.2 * np.cos(y / 14) + 0.25 * np.sin(z / 13)
    mask = np.zeros(shape, dtype=bool)
    mask[17:, 23:, 11:] = True

    def from_numpy(values, *, spacing):
        assert spacing == [6.0, 6.0, 6.0]
        return values

    def n4_bias_field_correction(image, **_):
        return SimpleNamespace(numpy=lambda: image)

    engine = SimpleNamespace(from_numpy=from_numpy, n4_bias_field_correction=n4_bias_field_correction)
    monkeypatch.setattr(intensity, "require", lambda *_, **__: engine)
    found = np.log(intensity.bias_field(100 * np.exp(log_data).astype(np.float32), mask, np.array(voxel_mm)))
    assert found[mask].mean() == pytest.approx(0, abs=1e-4)
    # Before the first and after the last voxel that the engine saw, the field goes on as it is there.
    inner = tuple(slice(start + 6, side - 6) for start, side in zip((17, 23, 11), shape, strict=True))
    away = (found - log_data)[inner]
    assert away.std() < 0.01 < log_data[inner].std() / 10


@pytest.mark.slow
def test_the_planted_bias_field_is_found(rng):
    pytest.importorskip("ants")
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in (61, 73, 59)), indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.9
    tissue = np.where(ndimage.gaussian_filter(rng.normal(size=mask.shape), 3) > 0, 100.0, 60.0)
    planted = np.exp(0.3 * x + 0.2 * y * z)
    data = np.where(mask, tissue * planted + rng.normal(0, 1, mask.shape), 0).astype(np.float32)
    found = intensity.bias_field(data, mask, np.full(3, 2.5))
    before = np.log(planted[mask]).std()
    after = (np.log(planted[mask]) - np.log(found[mask])).std()
    assert after < before / 3
    assert np.log(found[mask]).mean() == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("voxel_mm", [(2.0, 2.0, 2.0), (1.5, 2.0, 3.0)])
def test_the_field_does_not_depend_on_the_voxels(rng, voxel_mm):
    pytest.importorskip("ants")
    shape = tuple(int(150 / side) for side in voxel_mm)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.9
    tissue = np.where(np.sin(9 * x) * np.sin(8 * y) * np.sin(10 * z) > 0, 100.0, 60.0)
    planted = np.exp(0.3 * y - 0.2 * x * z)
    data = np.where(mask, tissue * planted + rng.normal(0, 2, mask.shape), 0).astype(np.float32)
    found = intensity.bias_field(data, mask, np.array(voxel_mm))
    assert np.corrcoef(np.log(found[mask]), np.log(planted[mask]))[0, 1] > 0.97
    assert np.log(found[mask] / planted[mask]).std() < 0.07


@pytest.mark.slow
def test_an_even_scan_gets_an_even_field_and_units_do_not_matter(rng):
    pytest.importorskip("ants")
    mask = np.zeros((61, 67, 63), dtype=bool)
    mask[5:-5, 6:-6, 7:-7] = True
    tissue = np.where(ndimage.gaussian_filter(rng.normal(size=mask.shape), 3) > 0, 100.0, 60.0)
    data = np.where(mask, tissue + rng.normal(0, 2, mask.shape), 0).astype(np.float32)
    field = intensity.bias_field(data, mask, np.full(3, 2.0))
    assert np.log(field[mask]).std() < 0.03
    np.testing.assert_allclose(intensity.bias_field(data * 256, mask, np.full(3, 2.0)), field, rtol=1e-3)


@pytest.mark.parametrize(
    ("data", "size"), [(np.full((9, 9, 9), 5.0), 9), (np.arange(729.0).reshape(9, 9, 9), 4), (np.zeros((9, 9, 9)), 9)]
)
def test_a_field_needs_enough_voxels_of_different_intensity(data, size):
    mask = np.zeros(data.shape, dtype=bool)
    mask[:size, :size, :size] = True
    with pytest.raises(ScanError, match="Rule 'enough brain with contrast'"):
        intensity.bias_field(data.astype(np.float32), mask, np.ones(3))
