import importlib.metadata
import sys

import pytest
from packaging.requirements import Requirement

from nilatent.errors import MissingExtraError
from nilatent.extras import EXTRAS, require


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


@pytest.mark.parametrize(
    ("absent", "extra"), [("jinja2", "report"), ("matplotlib.figure", "report"), ("PIL", "report"), ("umap", "embed")]
)
def test_an_import_that_did_not_pass_the_door_names_its_extra_too(absent, extra, monkeypatch, capsys):
    from nilatent import cli

    def stop():
        raise ModuleNotFoundError(f"No module named '{absent}'", name=absent)

    monkeypatch.setattr(cli, "app", stop)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == cli.BAD_USAGE
    said = capsys.readouterr().err
    assert f"'{absent.split('.')[0]}'" in said
    assert f"pip install 'nilatent[{extra}]'" in said


def test_a_module_of_no_extra_that_is_missing_is_a_fault_of_ours(monkeypatch):
    from nilatent import cli

    def stop():
        raise ModuleNotFoundError("No module named 'nilatent.lost'", name="nilatent.lost")

    monkeypatch.setattr(cli, "app", stop)
    with pytest.raises(ModuleNotFoundError, match="lost"):
        cli.main()


def test_every_optional_package_of_pyproject_stands_in_the_table():
    # What is imported is not always called what is installed.
    imported_as = {"antspyx": "ants", "opentsne": "openTSNE", "pillow": "PIL", "umap-learn": "umap"}
    asked = {extra: set() for extra in EXTRAS}
    for wanted in map(Requirement, importlib.metadata.requires("nilatent")):
        for extra in EXTRAS if wanted.marker and wanted.name != "nilatent" else ():
            if wanted.marker.evaluate({"extra": extra}):
                asked[extra].add(imported_as.get(wanted.name.lower(), wanted.name))
    # Comes with umap-learn, and is used by us.
    asked["embed"].add("numba")
    assert asked == {extra: set(modules) for extra, modules in EXTRAS.items()}
