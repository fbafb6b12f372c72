from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

from nilatent.analysis.prediction.heads import fit_linear
from nilatent.analysis.prediction.targets import Target
from nilatent.finding import not_run
from nilatent.head import FILES, Head, HeadError, named_head, read_head, write_head
from nilatent.head_fit import fit_head, held_out_of
from nilatent.latents import compact, make_latents
from nilatent.provenance import hash_file, read_json, write_json
from nilatent.training.heads import HeadConfig, fit_network
from nilatent.training.tensors import write_tensors
from nilatent.volumes import Grid, Volumes, volumes_in_memory

N = 30
GRID = (2, 3, 3, 2)
NETWORK = HeadConfig(n_epochs=2)
TARGETS = {
    "binary": ("control", "patient"),
    "multi-class": ("a", "b", "c"),
    "ordinal": ("low", "middle", "high"),
    "continuous": (),
}


def values(kind: str, rng: np.random.Generator) -> np.ndarray:
    return (
        rng.standard_normal(N) * 8 + 60 if kind == "continuous" else rng.permutation(np.arange(N) % len(TARGETS[kind]))
    )


def target_of(kind: str, rng: np.random.Generator) -> Target:
    """The scans but the first two have a value."""
    return Target(f"asked {kind}", kind, np.arange(2, N), values(kind, rng)[2:], TARGETS[kind], {}, "asked")


@pytest.fixture
def study(rng: np.random.Generator) -> tuple[xr.Dataset, Volumes]:
    """Two scans each of fifteen people, of whom three are new to the model."""
    ids = [f"scan-{number:02d}" for number in range(N)]
    subjects = [f"sub-{number // 2:02d}" for number in range(N)]
    latents = make_latents(
        rng.standard_normal((N, int(np.prod(GRID)))),
        np.zeros((N, int(np.prod(GRID)))),
        scan=ids,
        subject=subjects,
        subject_in_training=[True] * 24 + [False] * 6,
        part=["train"] * 24 + ["test"] * 6,
        model_hash="m" * 64,
        volumes_hash="v",
        latent_shape=GRID,
    )
    scans = pd.DataFrame({"subject_id": subjects, "dataset": "study"}, index=pd.Index(ids, name="scan_id"))
    grid = Grid((3, 4, 5), np.diag([4.0, 4.0, 4.0, 1.0]))
    volumes = volumes_in_memory(rng.random((N, 3, 4, 5)), mask=np.ones((3, 4, 5), dtype=bool), grid=grid, scans=scans)
    return latents, volumes


@pytest.fixture
def head(study: tuple[xr.Dataset, Volumes], rng: np.random.Generator) -> Head:
    return fit_head(study[0], target_of("binary", rng), study[1], held_out={"AUC": 0.75})


@pytest.mark.parametrize("network", [None, NETWORK], ids=["linear", "network"])
@pytest.mark.parametrize("kind", list(TARGETS))
def test_what_is_read_says_the_same_as_what_was_written(
    kind: str, network: HeadConfig | None, study: tuple[xr.Dataset, Volumes], rng: np.random.Generator, tmp_path: Path
) -> None:
    made = fit_head(study[0], target_of(kind, rng), study[1], network=network, held_out={"AUC": 0.75})
    if network is not None:
        # Of noise a network learns nothing and says the same of everybody.
        state = {name: value + 0.1 * torch.randn(value.shape) for name, value in made.rule.state.items()}
        made = replace(made, rule=replace(made.rule, state=state))
    assert {path.name for path in write_head(made, tmp_path)} == set(FILES)
    read = read_head(tmp_path)
    np.testing.assert_array_equal(read.scores(study[0]), made.scores(study[0]))
    np.testing.assert_array_equal(read.call(study[0]), made.call(study[0]))
    assert np.ptp(made.scores(study[0])) > 0
    for field in fields(Head):
        if field.name not in ("rule", "reference", "content_hash"):
            assert getattr(read, field.name) == getattr(made, field.name), field.name
    for name in ("kind", "levels", "threshold", "n_train"):
        np.testing.assert_equal(getattr(read.rule, name), getattr(made.rule, name))
    for field in fields(made.reference):
        np.testing.assert_equal(getattr(read.reference, field.name), getattr(made.reference, field.name))


def test_the_rule_is_fitted_on_the_scans_whose_target_is_known(
    study: tuple[xr.Dataset, Volumes], rng: np.random.Generator
) -> None:
    target = target_of("binary", rng)
    x, subjects = study[0]["mean"].values[2:], study[0]["subject"].values[2:]
    rule = fit_linear(x, target.y, kind="binary", levels=target.levels, subjects=subjects, seed=3)
    found = fit_head(study[0], target, study[1], seed=3)
    np.testing.assert_array_equal(found.scores(study[0]), rule.scores(study[0]["mean"].values))
    assert found.rule.n_train == N - 2
    network = fit_network(
        x, target.y, grid=GRID, kind="binary", levels=target.levels, config=NETWORK, seed=3, subjects=list(subjects)
    )
    found = fit_head(study[0], target, study[1], network=NETWORK, seed=3)
    np.testing.assert_array_equal(found.scores(study[0]), network.scores(study[0]["mean"].values))


def test_it_knows_whom_it_was_fitted_on_and_names_nobody(
    head: Head, study: tuple[xr.Dataset, Volumes], tmp_path: Path
) -> None:
    write_head(head, tmp_path)
    seen = read_head(tmp_path).seen
    assert not seen.knows_subject("sub-00")
    assert seen.knows_subject("sub-01")
    assert seen.knows_subject("sub-14", "study")
    assert not seen.knows_subject("sub-99")
    assert seen.knows_scan(study[1].data[5])
    assert not seen.knows_scan(study[1].data[0])
    assert all("sub-" not in (tmp_path / name).read_text(errors="ignore") for name in FILES)


def test_what_is_normal_in_the_study_goes_with_it(study: tuple[xr.Dataset, Volumes], rng: np.random.Generator) -> None:
    ids = study[0]["scan"].values[24:].astype(str)
    errors = pd.DataFrame(
        {"subject_id": study[0]["subject"].values[24:], "error": [1.0, 3.0, 4.0, 4.0, 6.0, 6.0]}, index=ids
    )
    found = fit_head(study[0], target_of("binary", rng), study[1], errors=errors).reference
    assert (found.error, found.n_error, found.n_subjects) == (4.0, 3, 15)
    assert found.error_se == pytest.approx(2 / np.sqrt(3))
    np.testing.assert_allclose(found.mean, study[0]["mean"].values.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.sd, study[0]["mean"].values.std(axis=0, ddof=1), rtol=1e-5)
    with pytest.raises(HeadError, match="has seen the subject of scan-23"):
        fit_head(study[0], target_of("binary", rng), study[1], errors=errors.rename(index={ids[0]: "scan-23"}))


def test_latents_of_another_model_are_refused(head: Head, study: tuple[xr.Dataset, Volumes]) -> None:
    other = study[0].assign_attrs(model_hash="x" * 64)
    for call in (head.scores, head.call):
        with pytest.raises(HeadError, match=r"of the model mmmmmmmmmmmm, this is the model\s+xxxxxxxxxxxx"):
            call(other)


def test_a_target_that_shaped_the_latents_is_refused(
    study: tuple[xr.Dataset, Volumes], rng: np.random.Generator
) -> None:
    shaped = study[0].assign_attrs(supervised="asked")
    with pytest.raises(HeadError, match="shaped the latents"):
        fit_head(shaped, replace(target_of("binary", rng), column="asked"), study[1])
    assert fit_head(study[0].assign_attrs(supervised="other"), target_of("binary", rng), study[1]).target


def test_components_of_latents_are_refused(
    head: Head, study: tuple[xr.Dataset, Volumes], rng: np.random.Generator
) -> None:
    few = compact(study[0], n_components=4, seed=0)
    with pytest.raises(HeadError, match="components of latents"):
        fit_head(few, target_of("binary", rng), study[1])
    with pytest.raises(HeadError, match="reads 36 latents and was given 4"):
        head.scores(few)


def test_the_held_out_measures_are_those_of_its_row_of_the_prediction(rng: np.random.Generator) -> None:
    line = {
        "target": "asked binary",
        "features": "latents",
        "head": "linear",
        "head_size": "as it is",
        "auc": 0.7,
        "sensitivity": 0.6,
    }
    others = [{"features": "regions"}, {"head": "svm"}, {"head_size": "without"}, {"target": "age"}]
    table = pd.DataFrame([*(line | {"auc": 0.1} | other for other in others), line | {"mae": np.nan}])
    finding = replace(not_run("prediction", "", ""), table=table)
    target = target_of("binary", rng)
    assert held_out_of(finding, target, features="latents") == {"AUC": 0.7, "sensitivity (patient)": 0.6}
    assert held_out_of(finding, target, features="latents", head="trees") == {}
    assert held_out_of(not_run("prediction", "", ""), target, features="latents") == {}


def test_a_network_needs_a_grid(study: tuple[xr.Dataset, Volumes], rng: np.random.Generator) -> None:
    flat = study[0].assign_attrs(latent_shape=[36])
    with pytest.raises(HeadError, match="a vector of 36"):
        fit_head(flat, target_of("binary", rng), study[1], network=NETWORK)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(head: Head, tmp_path: Path, name: str) -> None:
    write_head(head, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(HeadError, match=f"lacks {name}"):
        read_head(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused(head: Head, tmp_path: Path, name: str) -> None:
    write_head(head, tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content[:-3])
    with pytest.raises(HeadError, match="damaged"):
        read_head(tmp_path)


@pytest.mark.parametrize("name", ["subjects.tsv", "weights.safetensors"])
def test_a_file_of_another_head_is_refused(
    head: Head, study: tuple[xr.Dataset, Volumes], rng: np.random.Generator, tmp_path: Path, name: str
) -> None:
    write_head(head, tmp_path / "one")
    write_head(fit_head(study[0], target_of("binary", rng), study[1]), tmp_path / "other")
    (tmp_path / "one" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(HeadError, match=f"{name} is not the one"):
        read_head(tmp_path / "one")


def test_another_version_is_refused(head: Head, tmp_path: Path) -> None:
    write_head(head, tmp_path)
    write_json(tmp_path / "head.json", read_json(tmp_path / "head.json") | {"format_version": 2})
    with pytest.raises(HeadError, match="holds head format 2 on latents"):
        read_head(tmp_path)


@pytest.mark.parametrize("network", [None, NETWORK], ids=["linear", "network"])
@pytest.mark.parametrize("change", [("reference.mean", (7,)), ("rule.centre", (7,)), ("extra", (1,)), ("nan", ())])
def test_weights_that_are_not_those_of_the_description_are_refused(
    network: HeadConfig | None,
    change: tuple[str, tuple[int, ...]],
    study: tuple[xr.Dataset, Volumes],
    rng: np.random.Generator,
    tmp_path: Path,
) -> None:
    """Written with a right checksum, as by somebody who wants us to compute with them."""

    write_head(fit_head(study[0], target_of("binary", rng), study[1], network=network), tmp_path)
    tensors = load_file(tmp_path / "weights.safetensors")
    name, shape = change
    if name == "nan":
        tensors["rule.centre"][0] = torch.nan
    else:
        tensors["state.extra" if name == "extra" and network else f"{name}"] = torch.zeros(shape, dtype=torch.float64)
    write_tensors(tmp_path / "weights.safetensors", tensors, {})
    told = read_json(tmp_path / "head.json")
    write_json(tmp_path / "head.json", told | {"weights_sha256": hash_file(tmp_path / "weights.safetensors")})
    with pytest.raises(HeadError, match="damaged"):
        read_head(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"levels": ["a", "b", "c"]}, "with the levels"),
        ({"levels": "ab"}, "with the levels"),
        ({"levels": ["a", "a"]}, "with the levels"),
        ({"levels": ["a", 5]}, "with the levels"),
        ({"threshold": float("nan")}, "a threshold of nan"),
        ({"threshold": 1.5}, "a threshold of 1.5"),
        ({"n_train": float("inf")}, "OverflowError"),
        ({"kind": "oracle"}, "a head of kind 'oracle'"),
    ],
)
def test_a_description_that_would_be_read_and_say_nothing_is_refused(
    head: Head, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    write_head(head, tmp_path)
    told = read_json(tmp_path / "head.json")
    write_json(tmp_path / "head.json", told | {"rule": told["rule"] | change})
    with pytest.raises(HeadError, match=words):
        read_head(tmp_path)


@pytest.mark.parametrize("name", ["rule.scale", "rule.prior"])
def test_a_divisor_of_nothing_is_refused(head: Head, tmp_path: Path, name: str) -> None:
    write_head(head, tmp_path)
    tensors = load_file(tmp_path / "weights.safetensors")
    tensors[name][-1] = 0.0
    write_tensors(tmp_path / "weights.safetensors", tensors, {})
    told = read_json(tmp_path / "head.json")
    write_json(tmp_path / "head.json", told | {"weights_sha256": hash_file(tmp_path / "weights.safetensors")})
    with pytest.raises(HeadError, match=f"{name} holds values that are not above 0"):
        read_head(tmp_path)


def test_the_content_hash_is_of_what_it_says(head: Head, tmp_path: Path) -> None:
    hashes = []
    for number, one in enumerate((head, replace(head, versions={}), replace(head, held_out={"AUC": 0.5}))):
        write_head(one, tmp_path / str(number))
        hashes.append(read_head(tmp_path / str(number)).content_hash)
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_a_head_is_found_by_its_target_and_by_its_folder(head: Head, tmp_path: Path) -> None:
    write_head(replace(head, target="AD:CN"), tmp_path / "AD-CN")
    write_head(replace(head, target="a.b"), tmp_path / "a-b")
    assert named_head(tmp_path, "AD:CN") == named_head(tmp_path, "AD-CN") == tmp_path / "AD-CN"
    assert named_head(tmp_path, "a.b") == tmp_path / "a-b"
    assert named_head(tmp_path, "sex") is None
    assert named_head(tmp_path / "absent", "sex") is None
