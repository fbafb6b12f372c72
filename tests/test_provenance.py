import json
import os
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from nilatent import provenance
from nilatent.errors import ScanError
from nilatent.provenance import (
    atomic,
    content_hash,
    file_stems,
    hash_file,
    hash_values,
    is_fresh,
    read_json,
    seal,
    write_json,
)


@dataclass(frozen=True)
class Settings:
    size: int = 3
    name: str = "a"


@pytest.fixture
def stage(tmp_path):
    output = tmp_path / "sub" / "out.bin"
    output.parent.mkdir()
    output.write_bytes(b"one")
    record = tmp_path / "provenance.json"
    seal(record, stage="pack", settings=Settings(), inputs={"cohort": "abc"}, outputs=[output], seed=7)
    return record, output


def fresh(record, *, stage="pack", settings=Settings(), inputs=None):
    return is_fresh(record, stage=stage, settings=settings, inputs=inputs if inputs is not None else {"cohort": "abc"})


def test_hash_file_is_the_digest_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert hash_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_hash_values_ignores_key_order_and_sees_every_value():
    assert hash_values({"a": 1, "b": [1.5, "x"]}) == hash_values({"b": (1.5, "x"), "a": 1})
    assert hash_values({"a": 1, "b": 2}) != hash_values({"a": 2, "b": 1})
    assert hash_values([1, 2]) != hash_values([2, 1])


def test_hash_values_of_numpy_and_dataclasses_is_that_of_the_plain_values():
    assert hash_values([np.float64(1.5), np.arange(3), np.bool_(True)]) == hash_values([1.5, [0, 1, 2], True])
    assert hash_values(Settings()) == hash_values({"name": "a", "size": 3})
    assert hash_values({3, 1, 2}) == hash_values([1, 2, 3])


@pytest.mark.parametrize("value", [object(), {"f": print}, [Settings], 1j])
def test_hash_values_refuses_what_has_no_plain_form(value):
    with pytest.raises(TypeError):
        hash_values(value)


def test_hash_values_refuses_keys_of_which_one_would_be_lost():
    with pytest.raises(TypeError, match="same text"):
        hash_values({1: "a", "1": "b"})


def test_json_round_trip_keeps_every_digit_and_letter(tmp_path):
    values = {"x": 0.1 + 0.2, "word": "Größe", "list": [1, None, True], "path": Path("a/b")}
    write_json(tmp_path / "deep" / "x.json", values)
    assert read_json(tmp_path / "deep" / "x.json") == values | {"path": "a/b"}


def test_atomic_leaves_the_old_file_and_no_debris_on_error(tmp_path):
    target = tmp_path / "map.nii.gz"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic(target) as temporary:  # noqa: PT012
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_syncs_the_new_bytes_before_it_replaces_the_old(tmp_path, monkeypatch):
    target, events = tmp_path / "x.txt", []
    target.write_text("old")
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(provenance.os, "fsync", lambda handle: (events.append(target.read_text()), sync(handle)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append(self.read_text()), replace(self, to))[1])
    with atomic(target) as temporary:
        temporary.write_text("new")
    assert events == ["old", "new"]
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_complains_when_nothing_was_written(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "x.txt"):
        pass
    assert not (tmp_path / "x.txt").exists()


def test_a_sealed_stage_is_fresh(stage):
    assert fresh(stage[0])


@pytest.mark.parametrize(
    "change",
    [{"stage": "train"}, {"settings": Settings(size=4)}, {"inputs": {"cohort": "abd"}}, {"inputs": {}}],
)
def test_a_stage_is_stale_when_what_it_depends_on_changes(stage, change):
    assert not fresh(stage[0], **change)


def test_a_stage_is_stale_when_an_output_changes_or_vanishes(stage):
    record, output = stage
    output.write_bytes(b"two")
    assert not fresh(record)
    output.write_bytes(b"one")
    assert fresh(record)
    output.unlink()
    assert not fresh(record)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"key": 1, "outputs": []}', "\udcff"])
def test_a_damaged_or_absent_record_is_stale(stage, text):
    record = stage[0]
    record.write_bytes(text.encode(errors="surrogateescape"))
    assert not fresh(record)
    record.unlink()
    assert not fresh(record)


def test_a_record_whose_outputs_are_no_mapping_is_stale(stage):
    record = stage[0]
    known = json.loads(record.read_text())
    record.write_text(json.dumps(known | {"outputs": ["sub/out.bin"]}))
    assert not fresh(record)


def test_a_new_version_of_nilatent_makes_stages_stale(stage, monkeypatch):
    monkeypatch.setattr(provenance, "versions", lambda: {"nilatent": "99"})
    assert not fresh(stage[0])


def test_content_hash_depends_on_bytes_and_names_only(tmp_path):
    hashes = []
    for folder, name, data, seed in [
        ("a", "x", b"1", 0),
        ("b", "x", b"1", 1),
        ("c", "y", b"1", 0),
        ("d", "x", b"2", 0),
    ]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(data)
        record = tmp_path / folder / "r.json"
        made = seal(record, stage="s", settings={}, inputs={}, outputs=[tmp_path / folder / name], seed=seed)
        assert content_hash(record) == made
        hashes.append(made)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_record_says_what_ran_and_names_no_folder_of_the_machine(stage, tmp_path):
    text = stage[0].read_text()
    known = json.loads(text)
    assert (known["stage"], known["seed"], known["settings"]) == ("pack", 7, {"size": 3, "name": "a"})
    assert "numpy" in known["versions"]
    assert list(known["outputs"]) == ["sub/out.bin"]
    assert str(tmp_path) not in text


def refuse(scan: str) -> None:
    raise ScanError(f"{scan} is truncated.", rule="truncated file")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_scan_error_comes_home_from_another_process_with_its_rule():
    again = pickle.loads(pickle.dumps(ScanError("bad", rule="nan")))
    assert (str(again), again.rule) == ("bad", "nan")
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool, pytest.raises(ScanError) as caught:
        pool.submit(refuse, "sub-01").result()
    assert (str(caught.value), caught.value.rule) == ("sub-01 is truncated.", "truncated file")


def test_file_stems_are_safe_and_nobody_elses():
    names = ["a.b", "a b", "年龄", "严重", "../x", "INDEX", "a-b"]
    stems = file_stems(names, taken=["index"])
    assert list(stems) == names
    assert len({stem.lower() for stem in stems.values()} | {"index"}) == len(names) + 1
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", stem) for stem in stems.values())
    assert file_stems(["sub-01", "sub-01_ses-2"]) == {"sub-01": "sub-01", "sub-01_ses-2": "sub-01_ses-2"}
