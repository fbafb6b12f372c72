from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.directions import (
    compared,
    covariate_step,
    directions,
    discriminant_pattern,
    fitted_directions,
    forward_pattern,
    group_step,
    pls_pattern,
    values_of,
)
from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import CohortError, SettingError
from nilatent.latents import Frame

WIDE = 5


def space_of(values, training, *, subjects=None, told=(), axes=None):
    n, wide = values.shape
    axes = np.eye(wide) if axes is None else axes
    return LatentSpace(
        scans=pd.Index([f"scan-{i:03d}" for i in range(n)], name="scan_id"),
        subjects=np.array([f"sub-{i:03d}" for i in range(n)] if subjects is None else subjects),
        values=values,
        frame=Frame(np.zeros(wide), axes),
        variance=np.zeros((n, len(axes))),
        names=tuple(f"z{i:03d}" for i in range(len(axes))),
        training=training,
        unseen=np.zeros(n, dtype=bool),
        has_prior=False,
        told=told,
        draw_latents=lambda z, _: iter([z]),
    )


@pytest.fixture
def factor(rng):
    """Latents of age, sex and group with noise that the latents share; patients are older."""

    def make(n=400, noise=1.0):
        patient = rng.random(n) < 0.5
        age = rng.normal(60, 8, n) + 6 * patient
        female = rng.random(n) < 0.5
        steps = {"age": rng.normal(size=WIDE) / 8, "group": rng.normal(size=WIDE), "sex": rng.normal(size=WIDE)}
        mix = rng.normal(size=(WIDE, WIDE))
        values = np.outer(age, steps["age"]) + np.outer(patient, steps["group"]) + np.outer(female, steps["sex"])
        space = space_of(values + noise * rng.normal(size=(n, WIDE)) @ mix, np.ones(n, dtype=bool))
        scans = pd.DataFrame(
            {
                "subject_id": space.subjects,
                "age": age,
                "sex": np.where(female, "F", "M"),
                "group": np.where(patient, "patient", "control"),
            },
            index=space.scans,
        )
        return space, scans, steps

    return make


def by_name(space, scans, **changes):
    asked = {"group": "group", "contrast": "patient:control", "covariates": ("age", "sex")} | changes
    return {one.name: one for one in directions(space, scans, **asked)}


def test_without_noise_every_planted_direction_comes_back(factor):
    space, scans, steps = factor(noise=0.0)
    found = by_name(space, scans)
    np.testing.assert_allclose(found["age"].step, 10 * steps["age"])
    assert (found["age"].unit, found["age"].size) == ("10 years", 10.0)
    np.testing.assert_allclose(found["group:patient:control"].step, steps["group"])
    assert found["group:patient:control"].unit == "patient minus control"
    rarer, common = ("F", "M") if (scans["sex"] == "F").sum() < (scans["sex"] == "M").sum() else ("M", "F")
    np.testing.assert_allclose(found[f"sex:{rarer}:{common}"].step, (1 if rarer == "F" else -1) * steps["sex"])


def test_a_group_step_is_a_minus_b_and_other_columns_are_held(factor):
    space, scans, steps = factor(noise=0.0)
    held = group_step(space, scans, "group", "patient", "control", others=("age", "sex"))
    np.testing.assert_allclose(held, steps["group"])
    np.testing.assert_allclose(
        group_step(space, scans, "group", "control", "patient", others=("age", "sex")), -steps["group"]
    )
    loose = group_step(space, scans, "group", "patient", "control", others=())
    z = space.coordinates
    patient = (scans["group"] == "patient").to_numpy()
    np.testing.assert_allclose(loose, z[patient].mean(axis=0) - z[~patient].mean(axis=0))
    np.testing.assert_allclose(covariate_step(space, scans, "age", others=("group", "sex")), steps["age"])
    assert np.abs(covariate_step(space, scans, "age", others=()) - steps["age"]).max() > 0.01


def test_a_site_is_held_although_its_code_is_a_number(factor, rng):
    space, scans, steps = factor(noise=0.0)
    site = (3 * (scans["group"] == "patient") + rng.integers(0, 4, len(scans))).to_numpy()
    effects = rng.normal(size=(7, WIDE))
    space = replace(space, values=space.values + effects[site])
    asked = {"others": ("age", "sex"), "site": "site"}
    np.testing.assert_allclose(
        group_step(space, scans.assign(site=site), "group", "patient", "control", **asked), steps["group"], atol=1e-9
    )
    ages = covariate_step(space, scans.assign(site=site), "age", others=("group", "sex"), site="site")
    np.testing.assert_allclose(ages, steps["age"], atol=1e-9)
    found = by_name(space, scans.assign(site=site), site="site")
    np.testing.assert_allclose(found["group:patient:control"].step, steps["group"], atol=1e-9)


def test_the_discriminant_is_a_pattern_and_not_the_weights_of_a_classifier(rng):
    # Both latents carry the same noise and only the first the group: the best weights subtract the second.
    patient = np.arange(2000) % 2 == 1
    noise = rng.normal(size=2000)
    z = np.column_stack([noise + patient, noise]) + 0.1 * rng.normal(size=(2000, 2))
    weights = LogisticRegression(C=1e4).fit(z, patient).coef_[0]
    assert weights[1] < -0.9 * weights[0]
    pattern = discriminant_pattern(z, patient, None)
    np.testing.assert_allclose(pattern, [1, 0], atol=0.12)


def test_the_discriminant_of_many_subjects_is_the_difference_of_the_groups(factor):
    space, scans, steps = factor(n=4000, noise=0.3)
    found = by_name(space, scans)
    one = found["discriminant:patient:control"]
    np.testing.assert_allclose(one.step, found["group:patient:control"].step, atol=0.02)
    np.testing.assert_allclose(one.step, steps["group"], atol=0.1)
    assert one.levels == ("patient", "control")


def test_more_latents_than_subjects_still_have_a_discriminant(rng):
    patient = np.arange(30) % 2 == 1
    z = rng.normal(size=(30, 40)) + np.outer(patient, np.eye(40)[0] * 3)
    difference = z[patient].mean(axis=0) - z[~patient].mean(axis=0)
    within = z - np.where(patient[:, None], z[patient].mean(axis=0), z[~patient].mean(axis=0))
    weights = np.linalg.inv(LedoitWolf(assume_centered=True).fit(within).covariance_) @ difference
    pattern = np.cov(z.T) @ weights
    expected = pattern * (weights @ difference) / (weights @ pattern)
    np.testing.assert_allclose(discriminant_pattern(z, patient, None), expected, rtol=1e-6, atol=1e-9)


def test_pls_is_what_goes_along_with_its_score(rng):
    # The second latent follows the first and not the column: the weights of PLS nearly miss it, its pattern does not.
    column = rng.normal(size=3000)
    first = column + rng.normal(size=3000)
    second = 0.8 * rng.normal(size=3000)
    z = np.column_stack([first + second, second])
    step = pls_pattern(z, column, None)
    left = z - z.mean(axis=0)
    weights = left.T @ (column - column.mean())
    score = left @ weights / np.linalg.norm(weights)
    np.testing.assert_allclose(step, left.T @ score / (score @ score) * score.std(ddof=1), rtol=1e-6)
    np.testing.assert_allclose(pls_pattern(z, -column, None), -step)
    assert step[0] > 0
    assert step[1] > 0.2 > weights[1] / np.linalg.norm(weights)


def test_confounds_are_held_in_pls_and_discriminant(factor):
    space, scans, steps = factor(n=3000, noise=0.05)
    found = by_name(space, scans)
    cosine = found["pls:age"].step @ steps["age"] / np.linalg.norm(found["pls:age"].step) / np.linalg.norm(steps["age"])
    assert cosine > 0.98
    np.testing.assert_allclose(found["discriminant:patient:control"].step, steps["group"], atol=0.1)


def test_components_are_those_of_the_covariance(factor):
    space, scans, _ = factor()
    found = by_name(space, scans)
    of_components = [found[f"pc{i + 1}"].step for i in range(WIDE)]
    together = sum(np.outer(step, step) for step in of_components)
    np.testing.assert_allclose(together, np.cov(space.values.T), rtol=1e-9)
    sizes = [np.linalg.norm(step) for step in of_components]
    assert sizes == sorted(sizes, reverse=True)
    assert all(step[np.abs(step).argmax()] > 0 for step in of_components)
    np.testing.assert_allclose(found["z002"].step, np.eye(WIDE)[2] * space.values[:, 2].std(ddof=1))


def test_turning_the_latents_turns_every_direction_with_them(factor, rng):
    space, scans, _ = factor(n=120)
    turn = np.linalg.qr(rng.normal(size=(WIDE, WIDE)))[0]
    before, after = by_name(space, scans), by_name(replace(space, values=space.values @ turn), scans)
    for name, one in before.items():
        if one.kind == "latent":
            continue
        size = np.abs(after[name].step @ (one.step @ turn)) if one.kind == "component" else None
        if size is not None:
            assert size == pytest.approx(one.step @ one.step)
        else:
            np.testing.assert_allclose(after[name].step, one.step @ turn, rtol=1e-6, atol=1e-9, err_msg=name)


def test_coordinates_of_a_frame_are_what_is_described(factor, rng):
    space, scans, steps = factor(noise=0.0)
    axes = np.linalg.qr(rng.normal(size=(WIDE, WIDE)))[0][:2]
    framed = replace(space, frame=Frame(np.ones(WIDE), axes), variance=space.variance[:, :2], names=("z000", "z001"))
    step = group_step(framed, scans, "group", "patient", "control", others=("age", "sex"))
    np.testing.assert_allclose(step, axes @ steps["group"])


def test_only_first_training_scans_with_every_value_have_a_say(factor, rng):
    space, scans, steps = factor(noise=0.0)
    n = len(scans)
    training = np.arange(n) % 4 != 0
    values = np.where(training[:, None], space.values, 1e3 * rng.normal(size=space.values.shape))
    second, missing = np.flatnonzero(training)[[5, 9]]
    values[[second, missing]] = 1e4
    subjects = space.subjects.copy()
    subjects[second] = subjects[np.flatnonzero(training)[4]]
    scans = scans.assign(subject_id=subjects, session_id=np.where(np.arange(n) == second, "2", "1"))
    scans.loc[scans.index[missing], "age"] = np.nan
    found = by_name(replace(space, values=values, training=training, subjects=subjects), scans)
    one = found["group:patient:control"]
    np.testing.assert_allclose(one.step, steps["group"], rtol=1e-6)
    np.testing.assert_allclose(found["age"].step, 10 * steps["age"], rtol=1e-6)
    assert (one.n_subjects, one.n_left_out) == (training.sum() - 2, 2)
    assert found["z000"].n_left_out == 1


def test_order_of_the_cohort_does_not_matter(factor):
    space, scans, _ = factor(n=60)
    before, after = by_name(space, scans), by_name(space, scans.iloc[::-1])
    for name, one in before.items():
        np.testing.assert_allclose(after[name].step, one.step, rtol=1e-6, atol=1e-9)


def test_what_cannot_be_fitted_is_said(factor):
    space, scans, _ = factor(n=60)
    scans = scans.assign(score=1.0)
    asked = {"group": "group", "contrast": "", "covariates": ("age", "score")}
    found, refused = fitted_directions(replace(space, told=("age",)), scans, **asked)
    names = [one.name for one in found]
    assert "told" in refused["age"]
    assert "constant" in refused["score"]
    assert {"age", "pls:age", "score", "pls:score"}.isdisjoint(names)
    assert "group:patient:control" in names
    found, refused = fitted_directions(space, scans.drop(columns="group"), **asked)
    assert "no group column" in refused["group"]
    assert "age" in [one.name for one in found]
    with pytest.raises(SettingError, match="'weight' is not in the cohort"):
        directions(space, scans, group="group", contrast="", covariates=("age", "weight"))
    with pytest.raises(SettingError, match="Two directions are called 'pc1'"):
        directions(space, scans.rename(columns={"age": "pc1"}), group="group", contrast="", covariates=("pc1",))
    with pytest.raises(NotComparableError, match="too few"):
        group_step(space, scans.iloc[:60].assign(group=["a"] * 5 + ["b"] * 55), "group", "a", "b", others=())
    with pytest.raises(NotComparableError, match="constant"):
        forward_pattern(space.values, scans["score"].to_numpy(), None)


def test_a_scan_without_a_row_is_an_error(factor):
    space, scans, _ = factor(n=40)
    with pytest.raises(CohortError, match="scan-003"):
        covariate_step(space, scans.drop(index="scan-003"), "age", others=())
    with pytest.raises(CohortError, match="scan-001"):
        covariate_step(space, pd.concat([scans, scans.iloc[[1]]]), "age", others=())


def test_other_numbers_go_one_standard_deviation(factor):
    space, scans, _ = factor()
    scans = scans.assign(score=scans["age"] / 3)
    one = by_name(space, scans, covariates=("score", "sex"))["score"]
    assert one.size == pytest.approx(scans["score"].std())
    step = covariate_step(space, scans, "score", others=("sex", "group"))
    np.testing.assert_allclose(one.step, one.size * step)
    asked = compared(scans, one, site="")
    np.testing.assert_allclose(values_of(asked), scans["score"])
    assert one.held == ("sex", "group")
