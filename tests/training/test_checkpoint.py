import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

from nilatent.encode import encode, reconstructions
from nilatent.errors import NilatentError
from nilatent.models import ModelConfig
from nilatent.training.checkpoint import (
    FILES,
    ModelError,
    Origin,
    Progress,
    TrainedModel,
    keep,
    load_model,
    read_tensors,
    resume,
    save_model,
    write_tensors,
)
from nilatent.training.loop import TrainConfig, train
from nilatent.volumes import Grid, Volumes, volumes_in_memory

Cohort = tuple[Volumes, pd.DataFrame]
SHAPE = (9, 11, 7)
DATA = Path(__file__).parent / "data"
PREPARATION = {"recipe": {"fwhm_mm": 8.0, "target": "gm"}, "version": 4, "engines": {"gm": {"numpy": "2"}}}


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    array = np.random.default_rng(0).random((24, *SHAPE))
    ids = pd.Index([f"sub-{index:02d}" for index in range(24)], name="scan_id")
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=ids)
    grid = Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]))
    volumes = volumes_in_memory(array, mask=array[0] > 0.3, grid=grid, scans=scans)
    part = ["train"] * 16 + ["validation"] * 4 + ["test"] * 4
    return volumes, pd.DataFrame({"subject_id": ids, "part": part}, index=ids)


@pytest.fixture(scope="module")
def made(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "model"
    train(*cohort, ModelConfig(name="vae", n_latent=2, channels=(4, 8), sigma=0.1), TrainConfig(n_epochs=0), folder)
    return folder


@pytest.fixture
def trained(made: Path, tmp_path: Path) -> TrainedModel:
    return load_model(shutil.copytree(made, tmp_path / "model"))


def saved_again(model: TrainedModel, cohort: Cohort, folder: Path, origin: Origin | None) -> TrainedModel:
    """What `save_model` leaves of a model in a folder of its own."""
    volumes, parts = cohort
    folder.mkdir()
    model.history.to_csv(folder / "history.tsv", sep="\t", index=False)
    save_model(
        folder,
        state=model.module.state_dict(),
        settings={
            "model": {"name": "vae", "n_latent": 2, "channels": (4, 8), "sigma": 0.1},
            "training": model.training,
        },
        conditions=model.conditions,
        grid=volumes.grid,
        subjects=parts[parts["part"] != "test"],
        result=model.result,
        origin=origin,
    )
    return load_model(folder)


def edited(folder: Path, *, table: str, key: str, value: object) -> None:
    settings = tomllib.loads((folder / "config.toml").read_text())
    (settings[table] if table else settings)[key] = value
    (folder / "config.toml").write_text(tomli_w.dumps(settings))


def test_a_model_folder_is_complete(trained: TrainedModel, cohort: Cohort, tmp_path: Path) -> None:
    volumes, parts = cohort
    again = load_model(tmp_path / "model")
    assert again.model_config == trained.model_config
    assert again.content_hash == trained.content_hash
    assert again.grid.shape == volumes.grid.shape
    np.testing.assert_array_equal(again.mask, volumes.mask)
    known = [again.seen.knows_subject(name) for name in parts["subject_id"]]
    np.testing.assert_array_equal(known, parts["part"] != "test")
    assert again.training["learning_rate"] == TrainConfig().learning_rate
    for name, value in trained.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name])
    assert {path.name for path in (tmp_path / "model").iterdir()} >= set(FILES)


def test_no_subject_stands_in_the_folder_and_the_same_training_gives_the_same_files(
    trained: TrainedModel, cohort: Cohort, tmp_path: Path
) -> None:
    origin = Origin(*cohort, preparation=PREPARATION)
    one, two = (saved_again(trained, cohort, tmp_path / name, origin) for name in ("one", "two"))
    assert one.content_hash == two.content_hash
    for name in FILES:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert b"sub-" not in content.replace(b"short names such as sub-01", b"")
        assert str(tmp_path).encode() not in content


def test_the_folder_knows_its_scans_and_how_they_were_made(
    trained: TrainedModel, cohort: Cohort, tmp_path: Path
) -> None:
    volumes, parts = cohort
    found = saved_again(trained, cohort, tmp_path / "m", Origin(volumes, parts, preparation=PREPARATION))
    assert found.preparation == PREPARATION
    np.testing.assert_array_equal([found.seen.knows_scan(one) for one in volumes.data], parts["part"] != "test")
    assert found.result["trained_on"]["train"]["n_scans"] == (parts["part"] == "train").sum()
    bare = saved_again(trained, cohort, tmp_path / "bare", None)
    assert bare.preparation is None
    assert not bare.seen.scans
    other = saved_again(trained, cohort, tmp_path / "other", Origin(volumes, parts, preparation={"version": 5}))
    assert len({found.content_hash, bare.content_hash, other.content_hash}) == 3


def test_other_weights_are_another_model(trained: TrainedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        next(trained.module.parameters()).add_(1.0)
    folder = tmp_path / "model"
    write_tensors(folder / "weights.safetensors", trained.module.state_dict(), {"format_version": 2})
    with pytest.raises(ModelError, match=r"weights\.safetensors is not as it was written"):
        load_model(folder)
    edited(folder, table="", key="sha256", value={})
    assert load_model(folder).content_hash != trained.content_hash


@pytest.mark.parametrize("file", FILES)
def test_an_incomplete_folder_is_refused(tmp_path: Path, trained: TrainedModel, file: str) -> None:
    (tmp_path / "model" / file).unlink()
    with pytest.raises(ModelError, match=f"lacks {file}.*nilatent train"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("version", [3, 99, "two", 0])
def test_a_newer_or_unknown_format_is_refused(trained: TrainedModel, tmp_path: Path, version: object) -> None:
    edited(tmp_path / "model", table="", key="format_version", value=version)
    with pytest.raises(ModelError, match=f"model format {version}, this nilatent reads up to 2"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["model_v1", "model_v1_plain"])
def test_a_folder_of_version_1_gives_the_latents_it_gave(name: str, tmp_path: Path) -> None:
    model, kept = load_model(DATA / name), np.load(DATA / name / "expected.npz")
    ids = pd.Index(["sub-00", "sub-05", "sub-18", "sub-22"], name="scan_id")
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=ids)
    volumes = volumes_in_memory(kept["scans"], mask=kept["mask"], grid=model.grid, scans=scans)
    found = encode(model, volumes, scans.assign(part="test"))
    np.testing.assert_allclose(found["mean"], kept["mean"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["log_var"], kept["log_var"], rtol=0, atol=1e-6)
    drawn = np.concatenate([chunk for _, chunk in reconstructions(model, volumes, np.arange(4))])
    np.testing.assert_allclose(drawn[:, ::7], kept["drawn"], rtol=0, atol=1e-6)
    # Known by name, as the folder has nothing else; the last was in the test part.
    assert found["subject_in_training"].values.tolist() == [True, True, True, False]
    assert "by name only" in found.attrs["seen"]
    assert "does not say how its scans were prepared" in found.attrs["caveat"]
    lacking = shutil.copytree(DATA / name, tmp_path / "m")
    (lacking / "subjects.tsv").unlink()
    with pytest.raises(ModelError, match=r"lacks subjects\.tsv"):
        load_model(lacking)


@pytest.mark.parametrize(
    ("table", "key", "value", "words"),
    [
        ("model", "n_latent", 10**12, r"anchor\.components has shape \(2, "),
        ("model", "channels", [400_000, 80_000_000], "has shape"),
        ("model", "channels", [4 * 10**9, 4 * 10**9], "cannot be"),
        ("model", "channels", [4, 8, 8], "has shape"),
        ("model", "likelihood", "voxel", "damaged|sigma"),
        ("model", "condition", ["age"], "slopes|damaged"),
        ("model", "n_latent", "2", "which is no int"),
        ("model", "channels", ["4", "8"], "which is no tuple"),
        ("model", "colour", 1, r"no setting model\.colour"),
        ("model", "anchor", "none", "damaged"),
        ("", "model", 3, "damaged"),
    ],
)
def test_settings_that_are_not_those_of_the_weights_are_refused_before_memory_is_taken(
    trained: TrainedModel, tmp_path: Path, table: str, key: str, value: object, words: str
) -> None:
    edited(tmp_path / "model", table=table, key=key, value=value)
    if key == "condition":
        column = {"name": "age", "levels": [], "mean": [1.0], "sd": [1.0]}
        (tmp_path / "model" / "conditions.json").write_text(json.dumps({"columns": [column]}))
    with pytest.raises(NilatentError, match=words):
        load_model(tmp_path / "model")


def test_a_grid_too_large_for_the_memory_is_refused(trained: TrainedModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "config.toml").write_text(
        tomli_w.dumps(
            {
                "format_version": 2,
                "training": {},
                "model": {"name": "spatial_vae", "latent_grid": 10**4, "latent_channels": 2},
            }
        )
    )
    with pytest.raises(ModelError, match=r"anchor\.log_var has shape \(2,\).*\(2000000000000,\)"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.toml", "[model"),
        ("config.toml", "a = " + 10_000 * "["),
        ("grid.json", "{}"),
        ("result.json", "[]"),
        ("conditions.json", '{"columns": [{}]}'),
        ("subjects.tsv", "salt\tkind\tpart\thash\ns\tsubject\ttest\tabc\n"),
        ("subjects.tsv", "salt\tkind\tpart\thash\n"),
        ("weights.safetensors", "garbage"),
    ],
)
def test_a_damaged_folder_is_refused(trained: TrainedModel, tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / "model" / file).write_text(content)
    with pytest.raises(ModelError, match="is damaged"):
        load_model(tmp_path / "model")


def test_weights_that_are_no_finite_numbers_and_files_beyond_all_size_are_refused(
    trained: TrainedModel, tmp_path: Path
) -> None:
    weights, result = tmp_path / "model" / "weights.safetensors", tmp_path / "model" / "result.json"
    state = load_file(weights)
    save_file(state | {"anchor.mean": torch.full_like(state["anchor.mean"], torch.nan)}, weights)
    with pytest.raises(ModelError, match=r"anchor\.mean holds values that are no finite numbers"):
        load_model(tmp_path / "model")
    with result.open("ab") as file:
        file.truncate(2**27)
    with pytest.raises(ModelError, match=r"result\.json has 134217728 bytes"):
        load_model(tmp_path / "model")


def test_another_mask_than_that_of_the_grid_is_refused(trained: TrainedModel, tmp_path: Path) -> None:
    weights = tmp_path / "model" / "weights.safetensors"
    state = load_file(weights)
    # As many voxels, and one of them elsewhere.
    mask = state["anchor.mask"].flatten()
    inside, outside = int(mask.argmax()), int(mask.argmin())
    mask[inside], mask[outside] = 0.0, 1.0
    save_file(state, weights)
    with pytest.raises(ModelError, match="is not the one of grid"):
        load_model(tmp_path / "model")


def test_tensors_and_values_come_back_from_one_file_whatever_their_layout(tmp_path: Path) -> None:
    tensor = torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    write_tensors(tmp_path / "a.safetensors", {"t": tensor}, {"key": "k", "number": 1.5})
    found = read_tensors(tmp_path / "a.safetensors", key="k")
    assert found is not None
    assert torch.equal(found[0]["t"], tensor)
    assert found[1]["number"] == 1.5
    assert read_tensors(tmp_path / "a.safetensors", key="other") is None
    assert read_tensors(tmp_path / "absent.safetensors", key="k") is None


def test_best_and_present_weights_and_moments_come_back_apart(tmp_path: Path) -> None:
    def learners(seed: int) -> dict[str, tuple[torch.nn.Module, torch.optim.Optimizer]]:
        torch.manual_seed(seed)
        modules = {"model": torch.nn.Linear(2, 2), "critic": torch.nn.Linear(3, 1)}
        return {name: (module, torch.optim.AdamW(module.parameters())) for name, module in modules.items()}

    kept, fresh = learners(0), learners(1)
    best = {name: parameter.detach() + 1.0 for name, parameter in kept["model"][0].named_parameters()}
    for module, optimiser in kept.values():
        module(torch.ones(1, module.in_features)).sum().backward()
        optimiser.step()
    keep(tmp_path, "k", Progress(best, ({"epoch": 0, "best_epoch": 0},)), kept)
    found = resume(tmp_path, "k", fresh)
    assert found is not None
    assert all(torch.equal(found.best[name], value) for name, value in best.items())
    for name, (module, optimiser) in fresh.items():
        for parameter, source in zip(module.parameters(), kept[name][0].parameters(), strict=True):
            assert torch.equal(parameter, source)
            for moment, value in kept[name][1].state[source].items():
                assert torch.equal(optimiser.state[parameter][moment], value)
    assert resume(tmp_path, "other", fresh) is None
