from pathlib import Path

import pytest

from nilatent import doctor


def test_a_complete_installation_needs_no_mending(tmp_path: Path):
    by_subject = {check.subject: check for check in doctor.examine(tmp_path)}
    assert by_subject["Python"].mend == ""
    assert by_subject["AAL2 atlas"].found == "120 regions"
    assert float(by_subject["free disk here"].found.split()[0]) > 0


def test_a_missing_extra_says_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(doctor.EXTRAS, "prepare", ("no_such_package",))
    check = next(check for check in doctor.examine(tmp_path) if check.subject == "extra 'prepare'")
    assert check.found == "lacks no_such_package"
    assert check.mend == "pip install 'nilatent[prepare]'"


def test_a_full_disk_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 1e9)
    assert "free some" in next(check for check in doctor.examine(tmp_path) if check.subject == "free disk here").mend


def test_a_folder_that_is_still_to_be_made_has_a_disk(tmp_path: Path):
    assert any(check.subject == "free disk here" for check in doctor.examine(tmp_path / "new" / "out"))
