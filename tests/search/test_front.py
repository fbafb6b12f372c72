import numpy as np
import pytest

from nilatent.search.front import compromise, dominated, on_front


def naive(costs: np.ndarray) -> list[bool]:
    """A point is on the front unless some other is at least as good in all and better in one."""
    flags = []
    for one in costs:
        beaten = False
        for other in costs:
            no_worse = all(a <= b for a, b in zip(other, one, strict=True))
            beaten = beaten or (no_worse and any(a < b for a, b in zip(other, one, strict=True)))
        flags.append(not beaten)
    return flags


@pytest.mark.parametrize("n_objectives", [1, 2, 3])
def test_front_against_a_naive_reference(rng: np.random.Generator, n_objectives: int) -> None:
    costs = rng.integers(0, 6, size=(40, n_objectives)).astype(float)
    found = on_front(costs)
    assert found.tolist() == naive(costs)
    assert 0 < found.sum() < 40


def test_equals_do_not_dominate_one_another() -> None:
    assert not dominated(np.array([1.0, 2.0]), np.array([[1.0, 2.0]]))
    assert dominated(np.array([1.0, 2.0]), np.array([[1.0, 2.0], [1.0, 1.9]]))


def test_compromise_is_the_knee() -> None:
    costs = np.array([[0.0, 100.0], [1.0, 0.0], [0.3, 20.0], [0.4, 90.0], [5.0, 500.0]])
    assert compromise(costs) == 2


def test_a_tie_goes_to_the_first_objective_then_to_the_earlier() -> None:
    assert compromise(np.array([[1.0, 0.0], [0.0, 1.0]])) == 1
    assert compromise(np.array([[2.0], [1.0], [1.0]])) == 1
