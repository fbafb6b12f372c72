import numpy as np
import pytest
import torch
from scipy import ndimage

from nilatent.models.features import RandomFeatures, image_features

SHAPE = (15, 17, 13)


@pytest.fixture
def mask() -> np.ndarray:
    inside = np.zeros(SHAPE, dtype=bool)
    inside[1:-1, 2:-1, 1:-2] = True
    return inside


def sharp(rng: np.random.Generator) -> np.ndarray:
    """Blobs with hard edges, as unsmoothed tissue has."""
    return (ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5) > 0).astype(np.float32)


def distances(mask: np.ndarray, volume: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    features, _ = image_features(mask)
    rows = features(np.stack([v[mask] for v in [volume, *others]]).astype(np.float32))
    return np.linalg.norm(rows[1:] - rows[0], axis=1)


def test_stronger_blur_is_farther(rng: np.random.Generator, mask: np.ndarray) -> None:
    volume = sharp(rng)
    blurred = [ndimage.gaussian_filter(volume, sd) for sd in (0.0, 0.5, 0.8, 1.2, 2.0)]
    found = distances(mask, volume, blurred)
    assert found[0] == 0
    assert all(np.diff(found) > 0)


def test_what_pixels_hold_equal_is_told_apart(rng: np.random.Generator, mask: np.ndarray) -> None:
    found = []
    for _ in range(6):
        volume, noise = sharp(rng), rng.normal(size=SHAPE)
        blur = ndimage.gaussian_filter(volume, 2.0) - volume
        rms = np.sqrt(np.square(blur[mask]).mean())
        noise *= rms / np.sqrt(np.square(noise[mask]).mean())
        found.append(distances(mask, volume, [volume + blur, volume + noise, volume + rms]))
    blurred, noisy, brighter = np.mean(found, axis=0)
    assert blurred > 1.05 * noisy
    assert noisy > 1.4 * brighter


def test_the_network_is_its_seed_and_never_learns(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.random((2, 1, *SHAPE)).astype(np.float32))
    before = torch.get_rng_state()
    first = RandomFeatures(seed=3)(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(RandomFeatures(seed=3)(x), first, rtol=0, atol=0)
    assert not torch.allclose(RandomFeatures(seed=4)(x), first)
    assert not list(RandomFeatures().parameters())


def test_kernels_are_orthogonal() -> None:
    for kernel in RandomFeatures(channels=(4, 8)).buffers():
        kernels = kernel.flatten(1)
        torch.testing.assert_close(kernels @ kernels.T, torch.eye(len(kernels)), rtol=0, atol=1e-5)


def test_a_scan_is_the_same_alone_and_in_any_batch(rng: np.random.Generator, mask: np.ndarray) -> None:
    scans = rng.random((5, int(mask.sum()))).astype(np.float32)
    together, _ = image_features(mask, batch_size=3)
    alone, _ = image_features(mask, batch_size=1)
    np.testing.assert_allclose(together(scans), alone(scans), atol=1e-5)


def test_masked_scans_are_put_where_they_belong(rng: np.random.Generator, mask: np.ndarray) -> None:
    scans = rng.random((1, int(mask.sum()))).astype(np.float32)
    volume = torch.zeros(1, 1, *SHAPE)
    volume[0, 0][torch.from_numpy(mask)] = torch.from_numpy(scans[0])
    features, note = image_features(mask, seed=2)
    np.testing.assert_allclose(features(scans), RandomFeatures(seed=2)(volume), atol=1e-6)
    assert "random orthogonal kernels (seed 2)" in note


def test_every_level_counts_the_same(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.random((1, 1, 40, 48, 40)).astype(np.float32))
    one_level, two_levels = RandomFeatures(channels=(8,))(x), RandomFeatures(channels=(8, 16))(x)
    # Rectified unit-variance responses have a mean square of about 0.5, less what averaging takes away.
    first = two_levels[:, : one_level.shape[1]].square().sum()
    second = two_levels[:, one_level.shape[1] :].square().sum()
    assert 0.1 < float(first) < 0.6
    assert 0.1 < float(second) < 0.6
