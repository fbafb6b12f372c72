import numpy as np
import pytest


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator that depends on the test's name alone, so that random order changes nothing."""
    return np.random.default_rng(list(request.node.name.encode()))
