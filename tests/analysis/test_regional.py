import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from nilatent.analysis.regional import read_regions, regional, write_regions
from nilatent.atlas import RegionWeights
from nilatent.errors import AtlasError, CohortError


@pytest.fixture
def weights(volumes, rng):
    n = int(volumes.mask.sum())
    matrix = sparse.csr_matrix(np.where(rng.uniform(size=(3, n)) < 0.1, rng.uniform(0.1, 1, (3, n)), 0))
    dropped = pd.DataFrame({"label": [9], "name": ["Tiny"], "n_voxels": [1.5], "reason": ["too small"]})
    return RegionWeights(matrix, np.array([1, 2, 5]), ["A", "B", "C"], dropped)


def test_each_region_is_the_weighted_mean_of_its_voxels(volumes, weights):
    values = regional(volumes, weights)
    dense = weights.matrix.toarray()
    for scan in (0, 17):
        x = volumes.data[scan][volumes.mask].astype(float)
        np.testing.assert_allclose(values.iloc[scan], [np.average(x, weights=row) for row in dense], rtol=1e-6)
    assert list(values.columns) == ["A", "B", "C"]


def test_regions_come_back_from_disk_exactly(volumes, weights, tmp_path):
    values = regional(volumes, weights)
    write_regions(values, weights, tmp_path)
    back = read_regions(tmp_path)
    pd.testing.assert_frame_equal(back.values, values)
    assert back.labels.tolist() == [1, 2, 5]
    np.testing.assert_allclose(back.n_voxels, weights.n_voxels)
    pd.testing.assert_frame_equal(back.dropped, weights.dropped)


def test_weights_of_another_mask_and_torn_files_are_refused(volumes, weights, tmp_path):
    other = RegionWeights(weights.matrix[:, :-1], weights.labels, weights.names, weights.dropped)
    with pytest.raises(AtlasError, match="Compute the weights on the grid"):
        regional(volumes, other)
    with pytest.raises(CohortError, match="does not exist"):
        read_regions(tmp_path)
    write_regions(regional(volumes, weights).iloc[:, :2], weights, tmp_path)
    with pytest.raises(CohortError, match="name different regions"):
        read_regions(tmp_path)
