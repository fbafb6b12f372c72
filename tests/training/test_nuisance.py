import numpy as np
import pandas as pd
import pytest

from nilatent.training.nuisance import ALPHA, Told, nuisance_latents, present, told

Array = np.ndarray


def names(n: int) -> list[str]:
    return [f"sub-{number:03d}" for number in range(n)]


def sites(rng: np.random.Generator, n: int, levels: str = "ab") -> pd.Series:
    return pd.Series(rng.choice(list(levels), size=n), name="site")


def ridge_without(z: Array, y: Array, row: int, penalty: float) -> float:
    """The prediction of one row by ridge regression with a free intercept on the others, the textbook way."""
    others = np.delete(np.arange(len(z)), row)
    mean = z[others].mean(axis=0)
    centred = z[others] - mean
    slope = np.linalg.solve(
        centred.T @ centred + penalty * np.eye(z.shape[1]), centred.T @ (y[others] - y[others].mean())
    )
    return float(y[others].mean() + (z[row] - mean) @ slope)


@pytest.mark.parametrize("n_latent", [3, 60])
def test_a_number_is_told_as_by_leaving_out_each_subject_in_turn(rng: np.random.Generator, n_latent: int) -> None:
    z = rng.standard_normal((25, n_latent)).astype(np.float32)
    y = z[:, 0] + rng.standard_normal(25)
    found = told(z, pd.Series(y, name="size"), names(25), n_permutations=0)
    standardised = (z.astype(float) - z.mean(axis=0)) / z.astype(float).std(axis=0)
    penalty = np.square(standardised).sum() / 25
    drawn = np.array([ridge_without(standardised, y, row, penalty) for row in range(25)])
    usual = np.array([np.delete(y, row).mean() for row in range(25)])
    assert found is not None
    assert found.r2 == pytest.approx(1 - ((y - drawn) ** 2).sum() / ((y - usual) ** 2).sum(), abs=1e-4)


def test_a_site_that_shifts_a_latent_is_found_and_named(rng: np.random.Generator) -> None:
    site, z = sites(rng, 60), rng.standard_normal((60, 8)).astype(np.float32)
    z[:, 5] += 3.0 * (site == "b")
    found = told(z, site, names(60))
    assert found is not None
    assert found.accuracy > 0.8
    # The order as it is counts among the thousand.
    assert found.p_value == pytest.approx(0.001)
    verdict = nuisance_latents([found])
    assert verdict.state == "found"
    assert 'model.condition = ["site"]' in verdict.sentence


def test_the_accuracy_is_balanced(rng: np.random.Generator) -> None:
    """A rule that always names the large site is right for nine of ten people and tells nothing."""
    site = pd.Series(["a"] * 90 + ["b"] * 10, name="site")
    z = rng.standard_normal((100, 5)).astype(np.float32)
    nothing = told(z, site, names(100), n_permutations=0)
    z[:, 1] += 2.0 * (site == "b")
    shifted = told(z, site, names(100), n_permutations=0)
    assert nothing is not None
    assert shifted is not None
    assert 0.25 < nothing.accuracy < 0.7
    # Half-way between two sites 2 SD apart a fair rule is right for 84 of 100 people of each; one that leans to the larger
    # site misses most of the smaller.
    assert shifted.accuracy > 0.75


def test_p_values_are_uniform_when_latents_tell_of_nothing(rng: np.random.Generator) -> None:
    """Many latents of few scans must not find a site by chance: at .05 within binomial limits, and at .01 with the size asked."""
    p_values, accuracies, found = [], [], 0
    for number in range(150):
        z = rng.standard_normal((40, 300)).astype(np.float32)
        one = told(z, sites(rng, 40, "aab"), names(40), n_permutations=99, seed=number)
        assert one is not None
        p_values.append(one.p_value)
        accuracies.append(one.accuracy)
        found += nuisance_latents([one]).state == "found"
    # Of 150 at .05 between 1 and 17, at ALPHA at most 7: each is missed once in a thousand.
    assert 1 <= (np.array(p_values) <= 0.05).sum() <= 17
    assert found <= 7
    # The mean of the others leans away from a scan's own site; left in, it would pull the accuracy below chance.
    assert np.mean(accuracies) == pytest.approx(0.5, abs=0.03)
    assert ALPHA == 0.01


def test_a_person_is_not_known_again_by_another_visit(rng: np.random.Generator) -> None:
    """Latents that know people and not sites, four visits each: whoever sees a visit knows the site of the others."""
    person = np.repeat(np.arange(30), 4)
    z = (rng.standard_normal((30, 20))[person] + 0.1 * rng.standard_normal((120, 20))).astype(np.float32)
    site = pd.Series(np.repeat(rng.permutation(["a", "b"] * 15), 4), name="site")
    found = told(z, site, [f"sub-{number}" for number in person])
    assert found is not None
    assert found.n_subjects == 30
    assert found.p_value > 0.01


def test_people_who_visit_every_site_serve_to_tell_them_apart(rng: np.random.Generator) -> None:
    site = pd.Series(["a", "b"] * 24, name="site")
    z = rng.standard_normal((48, 4)).astype(np.float32)
    z[:, 0] += 4.0 * (site == "b")
    found = told(z, site, [f"sub-{number // 2:02d}" for number in range(48)])
    assert found is not None
    assert found.accuracy > 0.8


def test_too_little_to_go_by_is_not_assessed(rng: np.random.Generator) -> None:
    z = rng.standard_normal((30, 4)).astype(np.float32)
    assert told(z[:10], sites(rng, 10), names(10)) is None
    assert told(z, pd.Series(["a"] * 27 + ["b"] * 3, name="site"), names(30)) is None
    assert told(np.zeros((30, 4), np.float32), sites(rng, 30), names(30)) is None
    assert nuisance_latents([]).state == "not assessed"


def test_the_size_of_the_head_is_noted_and_the_noise_of_the_scanner_found() -> None:
    size = Told("head_size_factor", 60, 0, 0.8, float("nan"), 0.001)
    noise = Told("noise_ratio", 60, 0, 0.8, float("nan"), 0.001)
    assert nuisance_latents([size]).state == "noted"
    assert nuisance_latents([size, noise]).state == "found"
    assert nuisance_latents([Told("noise_ratio", 60, 0, 0.2, float("nan"), 0.001)]).state == "absent"
    # Five columns share the chance of one wrong call.
    chance = [Told(f"q{number}", 60, 2, 0.0, 0.9, 0.004) for number in range(5)]
    assert (nuisance_latents(chance[:2]).state, nuisance_latents(chance).state) == ("found", "absent")


def test_columns_are_those_that_vary_among_the_scans_in_use() -> None:
    table = pd.DataFrame(
        {
            "site": list("abab"),
            "dataset": list("xyxy"),
            "tiv_ml": [1.0, 2.0, 3.0, 4.0],
            "bias_range": [1.0, 1.0, 1.0, 2.0],
        },
        index=list("pqrs"),
    )
    # The data set says what the site says, and the bias differs only in a scan that is not in use.
    assert list(present(table, ["p", "q", "r"])) == ["site", "tiv_ml"]
    assert list(present(None, ["p", "q"])) == []
