from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from nilatent.analysis.density import Density, DensityConfig, fit_density, prior_latents
from nilatent.analysis.density.choice import Candidate, fit_mixture
from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import LatentsError, SettingError
from nilatent.latents import Frame


def no_images(latents: np.ndarray, told: pd.DataFrame | None) -> Iterator[np.ndarray]:
    raise AssertionError("a density draws no image")


def space_of(
    x: np.ndarray,
    *,
    variance: float | np.ndarray = 0.0,
    subjects: list[str] | None = None,
    n_unseen: int = 0,
) -> LatentSpace:
    n, wide = x.shape
    scans = pd.Index([f"scan-{i:04d}" for i in range(n)], name="scan_id")
    return LatentSpace(
        scans=scans,
        subjects=np.array(list(scans) if subjects is None else subjects),
        values=x,
        frame=Frame(np.zeros(wide), np.eye(wide)),
        variance=np.broadcast_to(variance, x.shape).astype(float),
        names=tuple(f"z{i:03d}" for i in range(wide)),
        training=np.arange(n) < n - n_unseen,
        unseen=np.arange(n) >= n - n_unseen,
        has_prior=False,
        told=(),
        draw_latents=no_images,
    )


def table(space: LatentSpace, **columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns, index=space.scans)


def two_clouds(rng: np.random.Generator, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    first = rng.random(n) < 0.3
    return rng.normal(size=(n, 2)) + np.where(first[:, None], [6.0, 0.0], [-2.0, 0.0]), first


def mixed(density: Density, x: np.ndarray) -> np.ndarray:
    """The naive reference."""
    m = density.mixture
    logs = [multivariate_normal(m.means[k], m.covariances[k]).logpdf(x) for k in range(len(m.weights))]
    return logsumexp(np.array(logs) + np.log(m.weights)[:, None], axis=0)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_the_likelihood_is_that_of_scipy(rng: np.random.Generator, kind: str) -> None:
    x, _ = two_clouds(rng)
    density = fit_density(space_of(x, variance=0.3), kind=kind, seed=0)
    places = 4 * rng.normal(size=(20, 2))
    np.testing.assert_allclose(density.log_likelihood(places), mixed(density, places))
    assert (len(density.mixture.weights) > 1) == (kind == "mixture")


def test_a_planted_mixture_is_recovered(rng: np.random.Generator) -> None:
    x, _ = two_clouds(rng)
    density = fit_density(space_of(x), seed=0)
    order = np.argsort(density.mixture.means[:, 0])
    np.testing.assert_allclose(density.mixture.means[order], [[-2, 0], [6, 0]], atol=0.4)
    np.testing.assert_allclose(density.mixture.weights[order], [0.7, 0.3], atol=0.07)
    # The floor of a variance is a hundredth of the variance of the whole, here 14 along the line of the two.
    np.testing.assert_allclose(density.mixture.covariances[order], [np.eye(2)] * 2, atol=0.35)
    chosen = density.tried[(density.tried["n_components"] == 2) & (density.tried["covariance"] == density.covariance)]
    assert chosen["log_likelihood"].iloc[0] == pytest.approx(mixed(density, x).mean(), abs=0.1)


def test_a_mixture_needs_more_than_its_allowed_components(rng: np.random.Generator) -> None:
    x, _ = two_clouds(rng)
    alone = fit_density(space_of(x), seed=0, config=DensityConfig(max_components=1))
    strict = fit_density(space_of(x), seed=0, config=DensityConfig(n_errors=1e6))
    assert len(alone.mixture.weights) == len(strict.mixture.weights) == 1
    assert len(alone.tried) == 1 < len(strict.tried)


def test_a_mixture_that_is_asked_for_is_given(rng: np.random.Generator) -> None:
    space = space_of(rng.normal(size=(100, 2)))
    assert [len(fit_density(space, kind=kind, seed=0).mixture.weights) for kind in ("auto", "mixture")] == [1, 2]
    with pytest.raises(LatentsError, match="too few for a mixture"):
        fit_density(space_of(rng.normal(size=(20, 2))), kind="mixture", seed=0)


def test_one_gaussian_is_taken_for_a_gaussian() -> None:
    n_components = []
    for seed in range(10):
        x = np.random.default_rng(seed).normal(size=(120, 3)) @ np.diag([1.0, 10.0, 0.1])
        config = DensityConfig(max_components=2)
        n_components.append(len(fit_density(space_of(x), seed=seed, config=config).mixture.weights))
    assert n_components.count(1) >= 9


def test_units_of_a_coordinate_change_nothing_but_its_units(rng: np.random.Generator) -> None:
    x, _ = two_clouds(rng)
    scale = np.array([1e2, 1e-2])
    one, other = (fit_density(space_of(x * by), seed=0) for by in (np.ones(2), scale))
    np.testing.assert_allclose(
        other.log_likelihood(x * scale), one.log_likelihood(x) - np.log(scale).sum(), rtol=0, atol=1e-6
    )


def test_samples_have_the_moments_of_the_density(rng: np.random.Generator) -> None:
    x, _ = two_clouds(rng)
    density = fit_density(space_of(x, variance=np.array([0.0, 2.0])), seed=0)
    drawn = density.sample(40_000, rng=rng)
    np.testing.assert_allclose(drawn.mean(axis=0), x.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(x.T) + np.diag([0, 2.0]), rtol=0.05, atol=0.2)
    # The two clouds, and nothing between them.
    assert np.mean(drawn[:, 0] > 2) == pytest.approx(np.mean(x[:, 0] > 2), abs=0.02)
    assert np.mean(np.abs(drawn[:, 0] - 2) < 1) < 0.02
    assert density.distance(drawn).std() > 0.1
    assert np.square(density.distance(drawn)).mean() == pytest.approx(1, abs=0.03)


def test_the_posterior_variance_is_part_of_the_density(rng: np.random.Generator) -> None:
    x = rng.normal(size=(200, 3))
    with_it, without = (fit_density(space_of(x, variance=v), kind="gaussian", seed=0) for v in (0.7, 0.0))
    added = with_it.mixture.covariances[0] - without.mixture.covariances[0]
    np.testing.assert_allclose(added, 0.7 * np.eye(3), atol=1e-12)


def test_only_training_scans_and_one_of_each_subject_have_a_say(rng: np.random.Generator) -> None:
    x = rng.normal(size=(60, 2))
    twice = np.vstack([x, x[:20] + 5.0])
    subjects = [f"sub-{i % 60}" for i in range(80)]
    reference = fit_density(space_of(x), seed=0)
    again = fit_density(space_of(twice, subjects=subjects), seed=0)
    unseen = fit_density(space_of(np.vstack([x, 100 + x]), n_unseen=60), seed=0)
    for other in (again, unseen):
        np.testing.assert_array_equal(other.mixture.covariances, reference.mixture.covariances)
        assert other.n_subjects == 60


def test_the_mean_follows_numbers_and_categories(rng: np.random.Generator) -> None:
    n = 400
    age, sex = rng.uniform(20, 80, n), rng.choice(["F", "M"], n)
    x = np.column_stack([0.1 * age, 2.0 * (sex == "M")]) + 0.2 * rng.normal(size=(n, 2))
    space = space_of(x)
    density = fit_density(space, scans=table(space, age=age, sex=sex), columns=["age", "sex"], seed=0)
    # At the mean of the columns it is where the training scans are, and held-out subjects are likelier for what is told.
    np.testing.assert_allclose(density.mixture.weights @ density.mixture.means, x.mean(axis=0), atol=1e-6)
    blind = fit_density(space, seed=0)
    assert density.tried["log_likelihood"].max() > blind.tried["log_likelihood"].max() + 1
    told = pd.DataFrame({"sex": ["F"] * 500 + ["M"] * 500, "age": [30.0] * 500 + [70.0] * 500})
    drawn = density.sample(1000, rng=rng, told=told)
    np.testing.assert_allclose(drawn[:500].mean(axis=0), [3.0, 0.0], atol=0.06)
    np.testing.assert_allclose(drawn[500:].mean(axis=0), [7.0, 2.0], atol=0.06)
    np.testing.assert_allclose(drawn[:500].std(axis=0), 0.2, atol=0.03)
    # The same places are unlikely, and far, under the conditions of the others.
    swapped = told.iloc[::-1].reset_index(drop=True)
    assert (density.log_likelihood(drawn, told) > density.log_likelihood(drawn, swapped)).all()
    assert density.distance(drawn, swapped).min() > 5 > density.distance(drawn, told).max()
    np.testing.assert_array_equal(density.beyond(told.assign(age=[95.0] + [50.0] * 999)), [True] + [False] * 999)


def test_years_and_days_give_one_density(rng: np.random.Generator) -> None:
    age, x = rng.uniform(20, 80, 100), rng.normal(size=(100, 2))
    space = space_of(x + 0.05 * age[:, None])
    years, days = (fit_density(space, scans=table(space, age=age * by), columns=["age"], seed=0) for by in (1, 365.25))
    np.testing.assert_allclose(
        years.log_likelihood(x, pd.DataFrame({"age": age})), days.log_likelihood(x, pd.DataFrame({"age": age * 365.25}))
    )


def test_what_a_regression_leaves_is_not_taken_for_too_little(rng: np.random.Generator) -> None:
    spreads = []
    for _ in range(100):
        space = space_of(rng.normal(size=(24, 2)))
        scans = table(space, group=list("abcd") * 6)
        density = fit_density(space, scans=scans, columns=["group"], kind="gaussian", seed=0)
        spreads.append(np.diag(density.mixture.covariances[0]))
    assert np.mean(spreads) == pytest.approx(1.0, abs=0.07)


def test_a_category_of_few_people_is_left_out(rng: np.random.Generator) -> None:
    x, site = rng.normal(size=(40, 2)), np.array(["a"] * 20 + ["b"] * 16 + ["c"] * 4)
    x[site == "c"] = 1000.0
    space = space_of(np.vstack([x, x[36:]]), subjects=[*map(str, range(40)), *map(str, range(36, 40))])
    scans = table(space, site=[*site, *"cccc"])
    density = fit_density(space, scans=scans, columns=["site"], seed=0)
    assert (density.n_subjects, density.n_left_out) == (36, 8)
    assert np.abs(density.mixture.means).max() < 10
    with pytest.raises(SettingError, match="'c' is that of fewer than 5 training subjects"):
        density.sample(1, rng=rng, told=pd.DataFrame({"site": ["c"]}))


def test_scans_with_a_missing_value_are_left_out_and_said(rng: np.random.Generator) -> None:
    age = rng.uniform(20, 80, 60)
    age[:7] = np.nan
    x = np.where(np.isnan(age), 1000.0, 0.1 * age)[:, None] + rng.normal(size=(60, 2))
    space = space_of(x)
    density = fit_density(space, scans=table(space, age=age), columns=["age"], seed=0)
    assert (density.n_subjects, density.n_left_out) == (53, 7)
    assert "7 scans lack a value" in density.words
    assert np.abs(density.mixture.means).max() < 10


def test_few_scans_give_a_sound_density(rng: np.random.Generator) -> None:
    x, new = rng.normal(size=(20, 8)), rng.normal(size=(500, 8))
    density = fit_density(space_of(x), seed=0)
    assert len(density.mixture.weights) == 1
    ours, plain = density.log_likelihood(new), multivariate_normal(x.mean(axis=0), np.cov(x.T)).logpdf(new)
    assert ours.mean() > plain.mean() + 1


def test_more_coordinates_than_scans_are_no_singular_density(rng: np.random.Generator) -> None:
    density = fit_density(space_of(rng.normal(size=(20, 60))), seed=0)
    assert np.isfinite(density.log_likelihood(rng.normal(size=(5, 60)))).all()


def test_a_coordinate_that_does_not_vary_stays_as_it_is(rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 3))
    x[:, 1] = 4.0
    density, without = fit_density(space_of(x), seed=0), fit_density(space_of(x[:, [0, 2]]), seed=0)
    drawn = density.sample(10, rng=rng)
    np.testing.assert_array_equal(drawn[:, 1], 4.0)
    np.testing.assert_allclose(density.log_likelihood(x), without.log_likelihood(x[:, [0, 2]]))
    assert "1 coordinates do not vary" in density.words


def test_a_collapsed_latent_is_drawn_from_its_posterior(rng: np.random.Generator) -> None:
    x = rng.normal(size=(60, 2))
    x[:, 1] = 0.0
    drawn = fit_density(space_of(x, variance=np.array([0.1, 1.0])), seed=0).sample(5000, rng=rng)
    assert drawn[:, 1].std() == pytest.approx(1.0, abs=0.05)


def test_a_far_sample_is_seen_to_be_far(rng: np.random.Generator) -> None:
    density = fit_density(space_of(rng.normal(size=(200, 4))), seed=0)
    near, far = density.distance(np.array([[0.5, 0.5, -0.5, 0.5], [0.0, 0.0, 0.0, 20.0]]))
    assert near < 1 < 8 < far


def test_one_seed_gives_one_density_and_each_generator_its_own_samples(rng: np.random.Generator) -> None:
    space = space_of(two_clouds(rng)[0])
    one, other = (fit_density(space, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(one.tried, other.tried)
    first, again, second = (one.sample(5, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, second).any()


def test_seed_and_folds_part_the_subjects_otherwise(rng: np.random.Generator) -> None:
    space = space_of(rng.normal(size=(60, 2)))
    found = [
        fit_density(space, seed=seed, config=DensityConfig(n_folds=folds)).tried["log_likelihood"].max()
        for seed, folds in ((0, 5), (1, 5), (0, 3))
    ]
    assert len(set(found)) == 3


def test_more_components_are_tried_where_there_are_more(rng: np.random.Generator) -> None:
    x = rng.normal(size=(400, 2)) + 12 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[rng.integers(4, size=400)]
    assert len(fit_density(space_of(x), seed=0).mixture.weights) == 4
    capped = fit_density(space_of(x), seed=0, config=DensityConfig(max_components=3))
    assert len(capped.mixture.weights) <= 3


def test_the_prior_is_a_standard_normal(rng: np.random.Generator) -> None:
    drawn = prior_latents(20_000, 3, rng)
    np.testing.assert_allclose(np.cov(drawn.T), np.eye(3), atol=0.05)
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.05)


def test_what_cannot_be_is_refused(rng: np.random.Generator) -> None:
    space = space_of(rng.normal(size=(30, 2)))
    scans = table(space, age=np.arange(30.0), one="x", group=["a", "b"] * 15)
    with pytest.raises(LatentsError, match="5 training subjects"):
        fit_density(space_of(rng.normal(size=(5, 2))), seed=0)
    with pytest.raises(LatentsError, match="are the same"):
        fit_density(space_of(np.full((30, 2), 3.0)), seed=0)
    with pytest.raises(SettingError, match="All 30 training scans have one = x"):
        fit_density(space, scans=scans, columns=["one"], seed=0)
    with pytest.raises(SettingError, match="no such column"):
        fit_density(space, scans=scans, columns=["size"], seed=0)
    with pytest.raises(SettingError, match="conditioned on age"):
        fit_density(space, columns=["age"], seed=0)
    with pytest.raises(LatentsError, match="scan-0000 is not in the table"):
        fit_density(space, scans=scans.iloc[1:], columns=["age"], seed=0)
    with pytest.raises(SettingError, match="got 'kde'"):
        fit_density(space, kind="kde", seed=0)
    with pytest.raises(SettingError, match="max_components"):
        DensityConfig(max_components=0)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (None, "need as many rows"),
        ({"age": [50.0]}, "got 1"),
        ({"age": [50.0, np.nan], "group": ["a", "b"]}, "age is missing in 1 of 2"),
        ({"age": ["50", "old"], "group": ["a", "b"]}, "got 'old'"),
        ({"age": [50.0, 60.0], "group": ["a", "c"]}, "'c' is that of fewer than 5"),
        ({"age": [50.0, 60.0]}, "no such column"),
    ],
)
def test_conditions_it_does_not_know_are_refused(
    rng: np.random.Generator, told: dict[str, list[object]] | None, message: str
) -> None:
    space = space_of(rng.normal(size=(30, 2)))
    scans = table(space, age=np.arange(30.0), group=["a", "b"] * 15)
    density = fit_density(space, scans=scans, columns=["age", "group"], seed=0)
    with pytest.raises(SettingError, match=message):
        density.sample(2, rng=rng, told=None if told is None else pd.DataFrame(told))


def test_a_component_on_one_subject_is_as_wide_as_the_others(rng: np.random.Generator) -> None:
    """Else it would draw that one training subject again and again."""
    x = rng.standard_normal((60, 3))
    x[0] += 9.0
    _, mixture = fit_mixture(x, np.zeros((60, 0)), np.zeros(3), Candidate("spherical", 2), seed=0)
    lone = int(mixture.weights.argmin())
    assert mixture.weights[lone] < 0.1
    narrow, wide = (np.sqrt(np.trace(one)) for one in mixture.covariances[[lone, 1 - lone]])
    assert narrow > 0.8 * wide
