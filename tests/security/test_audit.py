"""The judge of what the advisory service says: it fails on a hole, and is never content with silence."""

import pytest
from tests.security import audit

GOOD = {"name": "numpy", "version": "2.3.5", "vulns": []}
HOLE = {"id": "PYSEC-2024-1", "aliases": ["CVE-2024-1"], "fix_versions": ["3.1.4"]}
BAD = {"name": "jinja2", "version": "3.1.0", "vulns": [HOLE]}
SILENT = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([GOOD, GOOD], 0, "No known hole in the other 2"),
        ([GOOD, BAD], 1, "jinja2 3.1.0: PYSEC-2024-1, mended in 3.1.4"),
        ([SILENT, BAD], 1, "NOT AUDITED"),
        ([SILENT] * 5, 0, "NOT AUDITED: no answer about 5 of 5"),
        ([*[GOOD] * 19, SILENT], 0, "No answer about torch"),
    ],
)
def test_a_hole_fails_and_silence_is_said(packages, code, words):
    found, lines = audit.judge({"dependencies": packages})
    assert found == code
    assert words in "\n".join(lines)


def test_a_service_that_cannot_be_reached_does_not_fail_and_is_said():
    assert audit.judge(None, "Failed to resolve") == (
        0,
        ["NOT AUDITED: the advisory service could not be asked (Failed to resolve)."],
    )


@pytest.mark.parametrize("name", ["PYSEC-2024-1", "CVE-2024-1"])
def test_a_hole_is_accepted_by_any_of_its_names(monkeypatch, name):
    monkeypatch.setattr(audit, "ACCEPTED", {name: "Templates are ours alone."})
    assert audit.judge({"dependencies": [BAD]})[0] == 0


def test_what_is_accepted_has_a_reason():
    assert all(len(reason) > 20 for reason in audit.ACCEPTED.values())


def test_versions_are_asked_for_as_the_service_knows_them():
    asked = audit.installed()
    assert not any("+" in line for line in asked)
    assert any(line.startswith("numpy==") for line in asked)
    assert not any(line.startswith("nilatent==") for line in asked)
