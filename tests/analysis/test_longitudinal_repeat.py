from dataclasses import replace

import numpy as np
import pytest

from nilatent.analysis.longitudinal.repeat import icc, icc_of_model, repeats
from nilatent.analysis.longitudinal.visits import Visits
from nilatent.analysis.mixed import fit_mixed

# Six targets and four judges of Shrout & Fleiss 1979; of their first and last judge, by the table of variance.
JUDGED = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7.0]])


def anova(first, second):
    """ICC(2,1) from mean squares added up one by one."""
    table = np.column_stack([first, second])
    n, grand = len(table), table.mean()
    rows = 2 * np.square(table.mean(axis=1) - grand).sum() / (n - 1)
    columns = n * np.square(table.mean(axis=0) - grand).sum()
    left = (np.square(table - grand).sum() - rows * (n - 1) - columns) / (n - 1)
    return (rows - left) / (rows + left + 2 * (columns - left) / n)


def test_agreement_is_that_of_the_table_of_variance(rng):
    shared = rng.normal(size=(30, 3))
    first, second = (100 + shared + 0.5 * rng.normal(size=(30, 3)) for _ in range(2))
    second[:, 2] += 3
    found = icc(first, second, seed=0)
    np.testing.assert_allclose(found[:, 0], [anova(first[:, one], second[:, one]) for one in range(3)])
    # A shift between repeats is disagreement.
    assert found[2, 0] < 0.4 < found[0, 0]
    assert (found[:, 1] < found[:, 0]).all()
    assert (found[:, 0] < found[:, 2]).all()
    judges = icc(JUDGED[:, :1], JUDGED[:, 3:], seed=0)
    assert judges[0, 0] == pytest.approx(anova(JUDGED[:, 0], JUDGED[:, 3]))


def test_units_do_not_matter_and_what_is_constant_has_no_repeatability(rng):
    first = rng.normal(size=(20, 1))
    second = first + 0.3 * rng.normal(size=(20, 1))
    plain, moved = icc(first, second, seed=0), icc(1e6 + 0.01 * first, 1e6 + 0.01 * second, seed=0)
    np.testing.assert_allclose(moved, plain, rtol=1e-4)
    flat = icc(np.hstack([first, np.ones((20, 1))]), np.hstack([second, np.ones((20, 1))]), seed=0)
    np.testing.assert_allclose(flat[0], plain[0])
    assert np.isnan(flat[1]).all()


@pytest.mark.slow
def test_its_bootstrap_interval_covers(rng):
    covered = 0
    for number in range(300):
        shared = rng.normal(size=(60, 1))
        _, low, high = icc(*(shared + 0.5 * rng.normal(size=(60, 1)) for _ in range(2)), seed=number)[0]
        covered += low <= 0.8 <= high
    assert 0.90 < covered / 300 < 0.975


def visits(years, subject):
    """Visits of one group."""
    n = len(years)
    none = np.empty((n, 0))
    words = np.full(n, "all")
    return Visits(np.arange(n), np.array(subject), np.array(years), words, ("all",), (), none, none, words, {})


def test_repeats_are_the_closest_two_visits_of_a_subject_if_they_are_close():
    found = visits([0, 0.1, 0.15, 0, 2, 0, 0, 0.24], [*"aaabbcdd"])
    assert repeats(found, within_days=90).tolist() == [[1, 2], [6, 7]]
    assert repeats(found, within_days=20).tolist() == [[1, 2]]
    assert repeats(found, within_days=0).shape == (0, 2)
    assert repeats(replace(visits([0, 0.0], [*"ab"])), within_days=90).shape == (0, 2)


def test_the_model_s_share_between_subjects_is_what_was_planted(rng):
    subject = np.repeat(np.arange(400), 3)
    years = np.tile([0.0, 1, 2], 400)
    y = (2 * rng.normal(size=400))[subject] - 0.3 * years + rng.normal(size=1200)
    fit = fit_mixed(y, np.column_stack([np.ones(1200), years]), years, subject, slopes=False)
    assert icc_of_model(fit) == pytest.approx(0.8, abs=0.03)
