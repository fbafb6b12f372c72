import sys

import pytest

from nilatent.errors import MissingExtraError
from nilatent.extras import require


def test_what_is_installed_is_imported():
    assert require("json.decoder", extra="report") is sys.modules["json.decoder"]


def test_what_is_missing_names_the_extra_that_brings_it():
    with pytest.raises(MissingExtraError, match=r"'no_such_package'.*pip install 'nilatent\[explain\]'"):
        require("no_such_package", extra="explain")


def test_a_package_that_lacks_one_of_its_own_needs_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        require("half_installed", extra="prepare")
