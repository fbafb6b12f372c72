import threading
from collections.abc import Iterator

import numpy as np
import pytest
from tests.explore.made import Asking, Made, make

from nilatent.explore.answers import Answers
from nilatent.explore.drawing import Drawer
from nilatent.explore.server import Server


@pytest.fixture(scope="session")
def made() -> Made:
    """Read by every test and changed by none."""
    return make(np.random.default_rng(0))


@pytest.fixture(scope="session")
def drawer(made: Made) -> Iterator[Drawer]:
    one = Drawer(made.study)
    yield one
    one.close()


@pytest.fixture(scope="session")
def server(made: Made, drawer: Drawer) -> Iterator[Server]:
    one = Server(Answers(made.study, drawer))
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield one
    one.shutdown()
    thread.join()
    one.server_close()


@pytest.fixture
def ask(server: Server) -> Asking:
    return Asking(server)
