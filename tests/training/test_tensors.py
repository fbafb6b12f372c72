from pathlib import Path

import torch

from nilatent.training.tensors import read_tensors, write_tensors


def test_any_changed_value_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(1.0, dtype=torch.float64).expand(1)}
    write_tensors(path, tensors, {"key": "k", "n": 3})
    read, about = read_tensors(path, key="k") or ({}, {})
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    assert about["n"] == 3
    whole = path.read_bytes()
    for place in range(1, 6 * 4 + 8 + 1):
        changed = bytearray(whole)
        changed[-place] ^= 1
        path.write_bytes(changed)
        assert read_tensors(path, key="k") is None, place
