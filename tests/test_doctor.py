import stat
from pathlib import Path

import pytest

from nilatent import doctor, extras


def seen(folder: Path) -> dict[str, doctor.Check]:
    return {check.subject: check for check in doctor.examine(folder)}


def test_a_complete_installation_needs_no_mending(tmp_path: Path):
    by_subject = seen(tmp_path)
    assert by_subject["Python"].mend == ""
    assert by_subject["AAL2 atlas"].found == "120 regions"
    assert float(by_subject["free disk here"].found.split()[0]) > 0
    assert float(by_subject["free memory"].found.split()[0]) > 0
    assert by_subject["writing here"] == doctor.Check("writing here", "works")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_says_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(extras.EXTRAS, "prepare", ("no_such_package",))
    check = seen(tmp_path)["extra 'prepare'"]
    assert check.found == "lacks no_such_package"
    assert check.mend == "pip install 'nilatent[prepare]'"


def test_a_full_disk_and_a_full_memory_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 1e9)
    monkeypatch.setattr(doctor, "BYTES_PER_PROCESS", 2**60)
    by_subject = seen(tmp_path)
    assert "free some" in by_subject["free disk here"].mend
    assert "ask for more" in by_subject["free memory"].mend


def test_a_version_out_of_range_is_named_with_its_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = ["numpy<1.0,>=0.5", "rich>=1.0", "no-such-package>=3", "joblib<0.1; extra == 'dev'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: asked)
    mends = {check.subject: check.mend for check in doctor._out_of_range()}
    assert mends == {"numpy": "pip install 'numpy<1.0,>=0.5'", "joblib": "pip install 'joblib<0.1'"}


@pytest.mark.parametrize(
    ("given", "word"), [("many", "no number"), ("0", "no number"), ("4096", "wait for"), ("1", "")]
)
def test_thread_settings_are_judged_by_the_cores(given: str, word: str, monkeypatch: pytest.MonkeyPatch):
    for name in doctor.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    (check,) = doctor._threads()
    assert (check.subject, check.found) == ("OMP_NUM_THREADS", given)
    assert word in check.mend
    assert bool(word) == bool(check.mend)


def test_a_folder_that_cannot_be_written_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: object) -> None:
        raise PermissionError("Read-only file system")

    # By the call and not by the permissions: the superuser may write everywhere.
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", refuse)
    check = seen(tmp_path / "new" / "out")["writing here"]
    tmp_path.chmod(stat.S_IRWXU)
    assert "Read-only" in check.found
    assert "Name another folder" in check.mend


def test_a_driver_without_a_gpu_that_torch_can_use_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "NVIDIA", tmp_path / "absent")
    assert doctor._torch().mend == ""
    monkeypatch.setattr(doctor, "NVIDIA", tmp_path)
    assert "built for" in doctor._torch().mend


def test_a_machine_without_a_browser_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def none() -> None:
        raise doctor.webbrowser.Error

    monkeypatch.setattr(doctor.webbrowser, "get", none)
    check = doctor._browser()
    assert "prints an address" in check.found
    assert check.mend == ""
