import itertools

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent.preprocess import homogeneity
from nilatent.volumes import Grid, template_array


def test_mean_correlation_is_that_of_all_pairs(rng):
    rows = rng.normal(size=(7, 331)).astype(np.float32) + 5
    rows[3] = 2.0
    pairs = np.zeros((7, 7))
    for i, j in itertools.product([0, 1, 2, 4, 5, 6], repeat=2):
        pairs[i, j] = np.corrcoef(rows[i], rows[j])[0, 1]
    expected = (pairs.sum(axis=1) - np.diag(pairs)) / 6
    np.testing.assert_allclose(homogeneity.mean_correlation(rows), expected, atol=1e-5)


def test_a_scan_alone_has_nothing_to_be_like():
    assert np.isnan(homogeneity.mean_correlation(np.ones((1, 5), dtype=np.float32))).all()
    assert homogeneity.mean_correlation(np.ones((0, 5), dtype=np.float32)).shape == (0,)


@pytest.fixture
def paths(tmp_path, rng):
    """Six maps like the template, the fourth shifted by two voxels."""
    grid, grey, found = Grid.mni(6.0), template_array("gm", 6.0), []
    for number in range(6):
        values = grey * (1 + 0.3 * rng.normal(size=grid.shape))
        found.append(tmp_path / f"sub-{number}.nii.gz")
        nib.save(grid.to_image(np.roll(values, 2 if number == 3 else 0, axis=1)), found[-1])
    return found


def test_the_map_that_lies_elsewhere_is_least_like_the_others(paths):
    found = homogeneity.homogeneity(paths, pd.Series(["one"] * 6))
    assert found.argmin() == 3
    assert found[3] < np.delete(found, 3).min() - 0.1


def test_a_data_set_is_compared_with_itself(paths):
    together = homogeneity.homogeneity(paths, pd.Series(["one"] * 6))
    apart = homogeneity.homogeneity(paths, pd.Series(["one", "one", "two", "three", "two", "one"]))
    assert np.isnan(apart[3])
    np.testing.assert_allclose(apart[[2, 4]], apart[2])
    assert apart[0] > together[0]


def test_fine_maps_are_averaged_to_the_same_numbers(tmp_path, rng):
    fine, coarse = Grid.mni(3.0), Grid.mni(6.0)
    for number in range(3):
        values = template_array("gm", 3.0) * (1 + 0.5 * rng.normal(size=fine.shape))
        nib.save(fine.to_image(values), tmp_path / f"fine-{number}.nii.gz")
        blocks = values.reshape(*np.ravel([(side // 2, 2) for side in fine.shape])).mean(axis=(1, 3, 5))
        affine = np.diag([6.0, 6.0, 6.0, 1.0])
        nib.save(nib.Nifti1Image(blocks.astype(np.float32), affine), tmp_path / f"coarse-{number}.nii.gz")
    inside = homogeneity._blocks(template_array("mask", 3.0), 2) > 0.5
    rows = np.stack([nib.load(tmp_path / f"coarse-{n}.nii.gz").get_fdata()[inside] for n in range(3)])
    found = homogeneity.homogeneity([tmp_path / f"fine-{n}.nii.gz" for n in range(3)], pd.Series(["one"] * 3))
    np.testing.assert_allclose(found, (np.corrcoef(rows).sum(axis=1) - 1) / 2, atol=1e-5)
    assert coarse.spacing_mm == homogeneity.COARSE_MM
