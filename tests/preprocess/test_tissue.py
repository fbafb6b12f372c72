import numpy as np
import pytest
from scipy import ndimage

from nilatent.preprocess import tissue


def ball(shape, radius):
    centred = [np.arange(side) - side // 2 for side in shape]
    return sum(axis**2 for axis in np.meshgrid(*centred, indexing="ij")) < radius**2


def test_a_stripped_scan_gives_its_mask_with_holes_filled():
    inside = ball((37, 41, 35), 13)
    data = np.where(inside, 50.0, 0.0).astype(np.float32)
    data[18, 20, 17] = 0
    data[1, 1, 1] = 3
    found = tissue.stripped_mask(data, 0.125)
    np.testing.assert_array_equal(found, inside)


def test_a_whole_head_is_not_taken_for_a_stripped_one(rng):
    head = np.where(ball((37, 41, 35), 17), 50.0, 0.0).astype(np.float32)
    assert tissue.stripped_mask(head, 0.2) is None
    noisy = (np.where(ball((37, 41, 35), 13), 50.0, 0.0) + np.abs(rng.normal(0, 1, head.shape))).astype(np.float32)
    assert tissue.stripped_mask(noisy, 0.125) is None


@pytest.mark.slow
def test_segmentation_finds_planted_tissues_and_repeats_itself(rng, tmp_path):
    pytest.importorskip("ants")
    mask = ball((45, 47, 43), 20)
    rank = ndimage.gaussian_filter(rng.normal(size=mask.shape), 4)
    cuts = np.quantile(rank[mask], [0.45, 0.8])
    truth = np.digitize(rank, cuts)
    data = np.where(mask, np.array([60.0, 100.0, 20.0])[truth] + rng.normal(0, 6, mask.shape), 0).astype(np.float32)
    priors = [ndimage.gaussian_filter((truth == label).astype(np.float32), 2) for label in range(3)]
    found, again = (tissue.segment(data, mask, priors, np.full(3, 2.0), work=tmp_path) for _ in range(2))
    np.testing.assert_array_equal(found, again)
    total = np.sum(found, axis=0)
    np.testing.assert_allclose(total[mask], 1, atol=1e-4)
    assert (total[~mask] == 0).all()
    assert (np.argmax(found, axis=0)[mask] == truth[mask]).mean() > 0.95
