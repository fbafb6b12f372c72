import numpy as np
import pandas as pd

from nilatent.report import people


def test_cohort_table_counts_persons_once() -> None:
    scans = pd.DataFrame(
        {
            "subject_id": ["a", "a", "b", "c"],
            "dataset": "x",
            "dx": ["p", "p", "p", np.nan],
            "age": [20.0, 22.0, 30.0, np.nan],
            # Known of the first person at the second visit alone.
            "sex": [np.nan, "F", "M", np.nan],
        }
    )
    patients, rest = people.cohort_table(scans, group="dx").to_dict("records")
    assert (patients["n_scans"], patients["n_subjects"], patients["women"], patients["men"]) == (3, 2, 1, 1)
    assert patients["age"] == "24.0 ± 5.3"
    assert patients["age_range"] == "20 to 30"
    assert (rest["n_scans"], rest["unknown"]) == (1, 1)


def test_sites_are_counted_by_group_with_the_unknown() -> None:
    scans = pd.DataFrame({"site": ["b", "a", "a", None], "dx": ["p", "p", "c", "c"]})
    table = people.site_table(scans, site="site", group="dx")
    assert list(table.columns) == ["site", "c", "p", "all"]
    assert table.to_numpy().tolist() == [["a", 1, 1, 2], ["b", 0, 1, 1], ["–", 1, 0, 1]]
    alone = people.site_table(scans, site="site", group="")
    assert dict(zip(alone["site"], alone["scans"], strict=True)) == {"a": 2, "b": 1, "–": 1}
