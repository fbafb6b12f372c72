import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, binom
from sklearn.linear_model import LogisticRegression

from nilatent.analysis.external import ExternalConfig, Foreign, Rule, Study, external
from nilatent.analysis.external.measures import (
    auc_interval,
    class_measures,
    exact_share,
    logistic,
    mean_share,
    number_measures,
    probability_measures,
)
from nilatent.analysis.external.shift import Shift, error_ratio, mean_differences, mmd
from nilatent.analysis.external.words import trust
from nilatent.errors import SettingError

RULE = Rule("patient:control", "group", "binary", ("control", "patient"), 0.5, {"AUC": 0.8})


def test_the_exact_interval_is_clopper_pearson() -> None:
    low, high = exact_share(7, 12)
    assert low == pytest.approx(beta.ppf(0.025, 7, 6))
    assert high == pytest.approx(beta.ppf(0.975, 8, 5))
    assert binom.sf(6, 12, low) == pytest.approx(0.025)
    assert exact_share(0, 5)[0] == 0.0


def test_the_interval_of_an_area_does_not_shrink_to_a_point() -> None:
    low, high = auc_interval(1.0, 10, 12)
    assert 0.7 < low < 0.95
    assert high == 1.0
    assert auc_interval(0.0, 10, 12) == pytest.approx((0.0, 1 - low))
    low, high = auc_interval(0.8, 1000, 1000)
    assert (low, high) == pytest.approx((0.78, 0.82), abs=0.003)


@pytest.mark.parametrize("distance", [0.0, 1.5])
def test_the_interval_of_an_area_covers(distance: float, rng: np.random.Generator) -> None:
    truth = 0.5 * (1 + math.erf(distance / 2))
    case, reference = distance + rng.standard_normal((600, 15, 1)), rng.standard_normal((600, 1, 20))
    areas = (case > reference).mean(axis=(1, 2))
    limits = np.array([auc_interval(float(area), 15, 20) for area in areas])
    assert 0.92 < np.mean((limits[:, 0] <= truth) & (truth <= limits[:, 1])) <= 0.99


def test_a_mean_of_two_shares_is_narrower_than_either() -> None:
    value, low, high = mean_share([0.8, 0.6], [(0.7, 0.9), (0.5, 0.7)])
    assert value == pytest.approx(0.7)
    assert (low, high) == pytest.approx((0.7 - np.sqrt(0.02) / 2, 0.7 + np.sqrt(0.02) / 2))


def test_sensitivity_is_of_the_second_class_and_specificity_of_the_first() -> None:
    y = np.array([0] * 10 + [1] * 10)
    called = np.array([0] * 9 + [1] + [1] * 6 + [0] * 4)
    p = np.where(called == 1, 0.7, 0.2)
    found = {one.name: one for one in class_measures(np.column_stack([1 - p, p]), called, y, ("well", "ill"))}
    assert found["sensitivity (ill)"].value == pytest.approx(0.6)
    assert found["specificity (well)"].value == pytest.approx(0.9)
    assert found["balanced accuracy"].value == pytest.approx(0.75)
    assert found["AUC"].value == pytest.approx(0.9 * 0.6 + 0.5 * (0.9 * 0.4 + 0.1 * 0.6))
    assert (found["sensitivity (ill)"].low, found["sensitivity (ill)"].high) == exact_share(6, 10)


def test_one_class_has_its_share_alone() -> None:
    for code, name in ((1, "sensitivity (ill)"), (0, "specificity (well)")):
        found = class_measures(np.full((4, 2), 0.5), np.ones(4, dtype=int), np.full(4, code), ("well", "ill"))
        assert [one.name for one in found] == [name]
        assert found[0].value == code


def test_of_three_classes_one_that_is_absent_leaves_no_overall_measure(rng: np.random.Generator) -> None:
    scores = rng.dirichlet(np.ones(3), size=12)
    names = [one.name for one in class_measures(scores, scores.argmax(axis=1), np.arange(12) % 2, ("a", "b", "c"))]
    assert names == ["sensitivity (b)", "sensitivity (a)"]
    names = [one.name for one in class_measures(scores, scores.argmax(axis=1), np.arange(12) % 3, ("a", "b", "c"))]
    assert names[0] == "balanced accuracy"
    assert "AUC (c against the rest)" in names


def test_calibration_is_logistic_regression_on_the_logit(rng: np.random.Generator) -> None:
    odds = 2 * rng.standard_normal(400)
    is_case = rng.random(400) < 1 / (1 + np.exp(-(0.5 * odds + 1)))
    found = {one.name: one for one in probability_measures(1 / (1 + np.exp(-odds)), is_case)}
    expected = LogisticRegression(C=1e9, tol=1e-10, max_iter=1000).fit(odds[:, None], is_case)
    assert found["calibration slope"].value == pytest.approx(float(expected.coef_[0, 0]), abs=1e-4)
    assert found["calibration slope"].low < 0.5 < found["calibration slope"].high
    # With the intercept alone, the sum of what is told is the number of cases.
    told = 1 / (1 + np.exp(-(odds + found["calibration intercept"].value)))
    assert told.sum() == pytest.approx(is_case.sum(), abs=1e-6)
    assert found["Brier score"].value == pytest.approx(np.mean((1 / (1 + np.exp(-odds)) - is_case) ** 2))


def test_right_probabilities_are_called_calibrated(rng: np.random.Generator) -> None:
    inside = 0
    for _ in range(200):
        p = rng.uniform(0.1, 0.9, 80)
        found = probability_measures(p, rng.random(80) < p)
        inside += sum(one.low <= truth <= one.high for one, truth in zip(found[1:], (0.0, 1.0), strict=True))
    assert 0.91 < inside / 400 < 0.99


def test_separated_classes_have_no_slope() -> None:
    y = np.arange(20) >= 10
    found = logistic(np.column_stack([np.ones(20), np.linspace(-2, 2, 20)]), y)
    assert np.isnan(found).all()
    assert "not defined" in probability_measures(np.linspace(0.1, 0.9, 20), y)[2].note


def test_numbers_are_judged_in_their_units(rng: np.random.Generator) -> None:
    y = rng.uniform(20, 80, 300)
    predicted = 45 + 0.5 * (y - 50) + rng.standard_normal(300)
    found = {one.name: one for one in number_measures(predicted, y)}
    assert found["mean absolute error"].value == pytest.approx(np.abs(y - predicted).mean())
    assert found["R2"].value == pytest.approx(1 - np.square(y - predicted).sum() / np.square(y - y.mean()).sum())
    assert found["mean difference"].value == pytest.approx((y - predicted).mean())
    line = np.polyfit(predicted, y, 1)
    assert found["calibration slope"].value == pytest.approx(line[0])
    assert found["calibration slope"].low < 2.0 < found["calibration slope"].high + 0.05
    assert found["correlation"].value == pytest.approx(np.corrcoef(predicted, y)[0, 1])


def naive_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    pooled = np.vstack([x, y])
    x, y = x / pooled.std(axis=0), y / pooled.std(axis=0)
    pooled = np.vstack([x, y])
    distances = [np.sum((a - b) ** 2) for i, a in enumerate(pooled) for b in pooled[:i]]

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.sum((a - b) ** 2) / (2 * np.median(distances))))

    within = [np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    return float(sum(within) - 2 * np.mean([k(a, b) for a in x for b in y]))


def test_mmd_is_the_unbiased_estimate(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((7, 3)), 1 + 2 * rng.standard_normal((9, 3))
    assert mmd(x, y, n_permutations=99, seed=0)[0] == pytest.approx(naive_mmd2(x, y))


def test_mmd_is_uniform_under_the_null_and_about_zero(rng: np.random.Generator) -> None:
    found = [
        mmd(rng.standard_normal((12, 4)), rng.standard_normal((9, 4)), n_permutations=99, seed=seed)
        for seed in range(200)
    ]
    value, p = np.array(found).T
    assert abs(value.mean()) < 3 * value.std() / np.sqrt(200)
    assert 0.01 <= np.mean(p <= 0.05) <= 0.1
    assert abs(p.mean() - 0.5) < 0.07


def test_mmd_finds_a_difference_of_means_and_of_spread(rng: np.random.Generator) -> None:
    x = rng.standard_normal((40, 3))
    assert mmd(x, 1 + rng.standard_normal((40, 3)), n_permutations=99, seed=0)[1] == 0.01
    assert mmd(x, 3 * rng.standard_normal((40, 3)), n_permutations=99, seed=0)[1] == 0.01
    assert np.isnan(mmd(x, x[:1], n_permutations=99, seed=0)).all()


def test_mean_differences_are_in_sd_of_the_study(rng: np.random.Generator) -> None:
    x = rng.standard_normal((50, 3))
    found = mean_differences(x, np.array([1.0, 0.0, 0.0]), np.array([2.0, 1.0, 0.0]))
    np.testing.assert_allclose(found, [(x[:, 0].mean() - 1) / 2, x[:, 1].mean(), 0.0])


def test_the_interval_of_the_error_ratio_covers(rng: np.random.Generator) -> None:
    inside = 0
    for _ in range(300):
        study, new = rng.gamma(20, 1 / 20, 25), 1.3 * rng.gamma(20, 1 / 20, 15)
        error = {"error": float(study.mean()), "error_se": float(study.std(ddof=1) / 5), "n_error": 25}
        ratio, low, high = error_ratio(new, **error)
        assert ratio == pytest.approx(new.mean() / study.mean())
        inside += low <= 1.3 <= high
    assert 0.92 < inside / 300 <= 1.0


def test_an_unknown_error_of_the_study_gives_no_ratio() -> None:
    assert np.isnan(error_ratio(np.ones(5), error=np.nan, error_se=np.nan, n_error=0)).all()


@pytest.mark.parametrize(
    ("p", "ratio", "low", "expected"),
    [
        (0.5, 1.0, 0.9, "no shift is seen"),
        (0.01, 1.0, 0.9, "the cohort is shifted"),
        (0.5, 1.3, 1.1, "the cohort is shifted"),
        (0.5, 2.0, 1.6, "not to be relied on"),
        (np.nan, np.nan, np.nan, "was not measured"),
        (np.nan, 1.0, 0.9, "no shift is seen"),
    ],
)
def test_words_say_whether_to_trust(p: float, ratio: float, low: float, expected: str) -> None:
    assert expected in trust(Shift(0.0, p, 30, 30, ratio, low, 2 * ratio - low, 30))


def test_few_subjects_would_show_little() -> None:
    assert "So few" in trust(Shift(0.0, 0.5, 30, 8, 1.0, 0.9, 1.1, 30))
    assert "So few" not in trust(Shift(0.0, 0.5, 30, 30, 1.0, 0.9, 1.1, 30))


@pytest.fixture
def cohort(rng: np.random.Generator) -> tuple[Foreign, Study]:
    """Forty subjects, one of them with two scans, of whom half are ill and look it."""
    ill = np.arange(41) % 2
    p = np.clip(0.35 + 0.3 * ill + 0.1 * rng.standard_normal(41), 0.01, 0.99)
    ids = [f"sub-{number:02d}" for number in range(41)]
    subjects = [*ids[:40], "sub-00"]
    scans = pd.DataFrame(
        {
            "subject_id": subjects,
            "session_id": ["ses-1"] * 40 + ["ses-2"],
            "dataset": "clinic",
            "group": np.where(ill, "patient", "control"),
        },
        index=pd.Index(ids, name="scan_id"),
    )
    latents = rng.standard_normal((41, 3))
    foreign = Foreign(
        scans, np.column_stack([1 - p, p]), (p >= 0.5).astype(int), latents, ("z0", "z1", "z2"), np.ones(41)
    )
    study = Study(np.zeros(3), np.ones(3), 1.0, 0.05, 20, rng.standard_normal((30, 3)), unseen=True)
    return foreign, study


def test_every_subject_counts_once(cohort: tuple[Foreign, Study]) -> None:
    foreign, study = cohort
    found = external(foreign, RULE, study, ExternalConfig(n_permutations=99))
    table = found.table.set_index("measure")
    assert table.loc["AUC", "n"] == 40
    assert found.n_subjects == 40
    assert found.n_scans == 41
    assert table.loc["AUC", "study"] == 0.8
    assert table.loc["MMD2 of the latents", "value"] == pytest.approx(
        mmd(study.latents, foreign.latents[:40], n_permutations=99, seed=0)[0]
    )
    changed = replace(foreign, scores=np.vstack([foreign.scores[:40], [[0.0, 1.0]]]))
    pd.testing.assert_frame_equal(external(changed, RULE, study, ExternalConfig(n_permutations=99)).table, found.table)


def test_a_label_the_head_has_not_is_predicted_and_not_judged(cohort: tuple[Foreign, Study]) -> None:
    foreign, study = cohort
    scans = foreign.scans.assign(group=["other", *foreign.scans["group"][1:]])
    found = external(replace(foreign, scans=scans), RULE, study, ExternalConfig(n_permutations=99))
    # The second scan of that subject is known, and is judged in place of the first.
    assert found.table.set_index("measure").loc["AUC", "n"] == 40
    assert np.isnan(found.data["known"].values[0])
    assert "1 of 41 scans have no value" in " ".join(found.caveats)


def test_the_curve_and_the_groups_are_there_to_be_drawn(cohort: tuple[Foreign, Study]) -> None:
    data = external(*[cohort[0], RULE, cohort[1]], ExternalConfig(n_permutations=99)).data
    area = np.trapezoid(data["roc_true"], data["roc_false"])
    assert area == pytest.approx(external(cohort[0], RULE, cohort[1]).table.set_index("measure").loc["AUC", "value"])
    assert (np.diff(data["told"].values) > 0).all()
    assert ((data["share_low"] <= data["share"]) & (data["share"] <= data["share_high"])).all()


def test_a_moved_latent_is_named(cohort: tuple[Foreign, Study]) -> None:
    foreign, study = cohort
    moved = replace(foreign, latents=foreign.latents + np.array([0.0, 2.0, 0.0]))
    table = external(moved, RULE, study, ExternalConfig(n_permutations=99)).table.set_index("measure")
    assert "z1" in table.loc["largest mean difference of a latent", "note"]
    assert table.loc["share of latents that moved", "value"] == pytest.approx(1 / 3)


def test_seen_latents_of_the_study_are_said_to_be_seen(cohort: tuple[Foreign, Study]) -> None:
    foreign, study = cohort
    words = " ".join(external(foreign, RULE, replace(study, unseen=False)).caveats)
    assert "the model was fitted on" in words
    assert "the model was fitted on" not in " ".join(external(foreign, RULE, study).caveats)


def test_the_seed_and_the_number_of_draws_count(cohort: tuple[Foreign, Study]) -> None:
    moved = replace(cohort[0], latents=cohort[0].latents + 0.2)
    notes = [
        external(moved, RULE, cohort[1], config).table.set_index("measure").loc["MMD2 of the latents", "note"]
        for config in (ExternalConfig(99, 0), ExternalConfig(99, 3), ExternalConfig(2000, 0))
    ]
    assert len(set(notes)) > 1
    with pytest.raises(SettingError, match="n_permutations"):
        ExternalConfig(n_permutations=9)
