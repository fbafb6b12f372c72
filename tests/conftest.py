import os

import numpy as np
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: with threads of their own, each waits at every small product for the others.
    torch.set_num_threads(1)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator that depends on the test's name alone, so that random order changes nothing."""
    return np.random.default_rng(list(request.node.name.encode()))
