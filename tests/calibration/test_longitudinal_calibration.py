"""Change over time where the rates of subjects are known: p-values hold their level, intervals cover, rates are recovered."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from tests.calibration import table
from tests.calibration.followed import PLANTED, Followed, judge_followed, make_followed
from tests.calibration.studies import FOLLOWED, STUDIES

LARGE = Followed(n=400, visits=(2, 5), difference=0.3)


def study_rows(study: str, condition: str, n_cohorts: int) -> pd.DataFrame:
    """Rows of other seeds than those of the table."""
    return pd.DataFrame([STUDIES[study].measure(condition, 10_000 + seed) for seed in range(n_cohorts)])


def test_only_the_planted_regions_change_faster_and_by_the_difference():
    harmed, unharmed = make_followed(LARGE, 3), make_followed(replace(LARGE, difference=0.0), 3)
    gap = (harmed.rates - unharmed.rates).to_numpy()
    sick = (harmed.scans.groupby("subject_id")["group"].first() == "patient").to_numpy()
    assert harmed.planted.nonzero()[0].tolist() == list(PLANTED)
    np.testing.assert_allclose(gap, -0.3 * np.outer(sick, harmed.planted), atol=1e-12)
    opening = harmed.scans["session_id"] == "ses-0"
    np.testing.assert_allclose((harmed.regions - unharmed.regions)[opening], 2 * gap, atol=1e-12)
    assert not unharmed.planted.any()
    # What is seen changes by these rates, on average over what visits add.
    years, rows = harmed.scans["years"], harmed.scans.groupby("subject_id")
    last = rows["years"].transform("max") == years
    first = rows["years"].transform("min") == years
    seen = (harmed.regions[last] - harmed.regions[first]) / (years[last].to_numpy() - years[first].to_numpy())[:, None]
    np.testing.assert_allclose(seen.mean(axis=0), harmed.rates.mean(), atol=0.06)


def test_a_seed_is_a_cohort_of_uneven_visits():
    one, same, other = (make_followed(Followed(), seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.voxels, same.voxels)
    assert set(one.scans.groupby("subject_id").size()) == {1, 2, 3, 4}
    assert other.voxels.shape != one.voxels.shape or not np.array_equal(other.voxels, one.voxels)


def test_models_judge_subjects_they_have_not_seen():
    made = make_followed(Followed(), 0)
    spaces = made.spaces()
    assert sum(space.unseen.sum() for space in spaces) == len(made.scans)
    wild = replace(made, voxels=np.where(spaces[0].unseen[:, None], 9.0, made.voxels)).spaces()[0]
    drawn = [next(iter(one.draw(np.zeros((1, len(one.names)))))) for one in (spaces[0], wild)]
    np.testing.assert_allclose(*drawn)


def test_a_row_counts_calls_and_tells_the_first_region():
    row = judge_followed(make_followed(Followed(n=60, difference=1.0, visits=(3, 4)), 1))
    assert (row["n_planted"], row["n_other"], row["regions_planted"], row["direction"]) == (2, 6, 2, 1)
    assert row["estimate"] == pytest.approx(row["truth"], abs=0.2)
    assert row["truth"] == pytest.approx(-1.0, abs=0.1)
    assert row["low"] < row["estimate"] < row["high"] < 0
    assert row["slopes_r"] > 0.9
    assert row["lines_r"] > 0.8


def test_cells_tell_error_and_coverage_against_the_truth():
    rows = pd.DataFrame(
        {
            "n_planted": 0, "estimate": [0.1, 0.3, 0.2, 0.2], "truth": [0.0, 0.0, 0.1, 0.1], "low": [0.0, 0.1, 0.0, 0.0],
            "high": 0.4, "slopes_r": 0.5, "lines_r": 0.25, "direction": [1, 0, 0, 0], "ratio": 0, "permuted": 0, "drawn": 0.0,
        }
    )  # fmt: skip
    counts = {f"{kind}_{where}": [0, 0, 0, 1] for kind in ("regions", "decoded") for where in ("planted", "other")}
    rows = rows.assign(**counts)
    cells = table.differences_in_rate(rows)
    assert cells["regions"].startswith("25.0 (")
    assert cells["direction"].startswith("25.0 (")
    assert cells["bias"].startswith("+0.1500 ± ")
    assert cells["coverage"].startswith("75.0 (")
    assert cells["r of subjects' rates, model; own lines"] == "0.50; 0.25"
    planted = table.differences_in_rate(rows.assign(n_planted=2, truth=-0.2, drawn=-0.1, estimate=-0.2))
    assert planted["regions"].startswith("0.12 ± ")
    assert planted["drawn"] == "50 %"


@pytest.mark.slow
@pytest.mark.calibration
@pytest.mark.parametrize("condition", [name for name, one in FOLLOWED.items() if one.difference == 0])
def test_where_rates_are_alike_few_are_called_and_intervals_cover(condition):
    rows = study_rows("longitudinal", condition, 60)
    for called in (rows["permuted"], rows["direction"], rows["regions_other"] > 0, rows["decoded_other"] > 0):
        assert binomtest(int(called.sum()), len(rows), 0.05, alternative="greater").pvalue > 0.01
    covered = (rows["low"] <= 0) & (rows["high"] >= 0)
    assert binomtest(int(covered.sum()), len(rows), 0.95, alternative="less").pvalue > 0.01


@pytest.mark.slow
@pytest.mark.calibration
def test_differences_are_found_without_bias_and_more_of_them_in_more_subjects():
    few, many = (study_rows("longitudinal", f"difference 0.15, n = {n}", 40) for n in (40, 100))
    for rows in (few, many):
        error = rows["estimate"] - rows["truth"]
        assert abs(error.mean()) < 3 * error.std(ddof=1) / np.sqrt(len(rows))
        assert (rows["slopes_r"] > rows["lines_r"]).mean() > 0.8
    assert many["regions_planted"].mean() > few["regions_planted"].mean() + 0.3
    assert many["regions_other"].mean() < 0.2


@pytest.mark.slow
@pytest.mark.calibration
def test_images_find_the_planted_regions():
    rows = study_rows("longitudinal images", "effect 0.3", 4)
    assert rows["regions_planted"].mean() > 2
    assert (rows["slopes_r"] > 0.8).all()
    # Decoders of few components draw a part of the change.
    assert (rows["drawn"].abs() < rows["truth"].abs()).all()
