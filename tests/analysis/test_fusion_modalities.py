import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.fusion.modalities import joined_set
from nilatent.errors import CohortError


@pytest.fixture
def scans():
    return pd.DataFrame({"age": [60.0, 61, 62]}, index=pd.Index(["a", "b", "c"], name="scan_id"))


def test_rows_join_by_scan_id_and_what_is_missing_stays_missing(scans):
    table = pd.DataFrame({"x": [3.0, 1, 9], "y": [30, 10, 90]}, index=["c", "a", "z"])
    found = joined_set("blood", [table, table * 2], scans, seen=np.zeros((2, 3), dtype=bool))
    np.testing.assert_array_equal(found.by_fold[0], [[1, 10], [np.nan, np.nan], [3, 30]])
    np.testing.assert_array_equal(found.of_fold(1), 2 * found.by_fold[0])
    assert found.finite.tolist() == [True, False, True]
    assert found.columns == ()
    assert not found.baseline
    assert found.seen.shape == (2, 3)


def test_columns_of_the_cohort_are_known_by_name(scans):
    found = joined_set("table", [scans.assign(x=1.0)], scans)
    assert found.columns == ("age", "x")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"x": [1.0, 2.0]}, index=["a", "a"]), "two rows of scan a"),
        (pd.DataFrame({"x": ["low"]}, index=["a"]), "'x' of 'blood' holds words"),
        (pd.DataFrame({"x": [1.0]}, index=["A"]), "none is a scan of the cohort"),
    ],
)
def test_tables_that_cannot_be_joined_are_refused(scans, table, message):
    with pytest.raises(CohortError, match=message):
        joined_set("blood", [table], scans)
