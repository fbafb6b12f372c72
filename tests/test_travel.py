import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import typer
import xarray as xr
from scipy import sparse
from typer.testing import CliRunner

from nilatent import travel
from nilatent.analysis.latent_space import LatentSpace
from nilatent.atlas import RegionWeights
from nilatent.cli import travel as commands
from nilatent.cohort import Cohort
from nilatent.config import RunConfig
from nilatent.errors import GridError, SettingError
from nilatent.latents import Frame
from nilatent.plots import strip
from nilatent.pools import Pools
from nilatent.travel import files as travel_files
from nilatent.volumes import Grid, volumes_in_memory

SHAPE, WIDE, N = (9, 10, 8), 3, 60
REGIONS = ("First", "Second", "Third")


@dataclass
class Run:
    """A run in memory with a linear decoder: the first latent follows age, the second the group."""

    pools: Pools
    space: LatentSpace
    weights: np.ndarray
    mean: np.ndarray
    told: list[pd.DataFrame | None] = field(default_factory=list)

    def decode(self, z: np.ndarray) -> np.ndarray:
        return self.mean + z @ self.weights

    def regional_ml(self, images: np.ndarray) -> np.ndarray:
        """(image, region), reckoned voxel by voxel."""
        return images @ self.pools.of_mask.matrix.toarray().T * 0.064


@pytest.fixture
def run(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Run:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1:8, 1:9, 1:7] = True
    n_voxels = int(mask.sum())
    age, patient = rng.uniform(40, 80, N), np.arange(N) % 2 == 0
    z = np.column_stack([(age - 60) / 10, 1.0 * patient, rng.normal(size=N)]) + 0.05 * rng.normal(size=(N, WIDE))
    place = np.arange(n_voxels) * 3 // n_voxels
    weights = np.stack([-0.05 * (place == 0), -0.08 * (place == 1), 0.03 * (place == 2)])
    mean = 0.6 + 0.02 * rng.normal(size=n_voxels)
    ids = pd.Index([f"sub-{number:02d}" for number in range(N)], name="scan_id")
    scans = pd.DataFrame(
        {
            "subject_id": ids,
            "dataset": "one",
            "age": age,
            "group": np.where(patient, "patient", "control"),
            "sex": np.where(rng.random(N) < 0.5, "F", "M"),
            "recipe": "gm",
            "path": [f"/maps/{name}_probseg.nii.gz" for name in ids],
        },
        index=ids,
    )
    array = np.zeros((N, *SHAPE))
    array[:, mask] = mean + z @ weights + 0.01 * rng.normal(size=(N, n_voxels))
    grid = Grid(SHAPE, np.array([[4.0, 0, 0, -16], [0, 4, 0, -20], [0, 0, 4, -14], [0, 0, 0, 1]]))
    volumes = volumes_in_memory(array, mask=mask, grid=grid, scans=scans[["subject_id", "dataset"]])
    matrix = sparse.csr_matrix(np.stack([0.5 * (place == number) for number in range(3)]))
    atlas = RegionWeights(matrix, np.arange(3), list(REGIONS), pd.DataFrame())
    config = RunConfig()
    config = replace(
        config, study=replace(config.study, group="group", contrast="patient:control", covariates=("age", "sex"))
    )
    nothing = pd.DataFrame(columns=["scan_id", "path", "stage", "rule", "reason"])
    parts = pd.DataFrame({"subject_id": ids, "part": np.where(np.arange(N) < 44, "train", "test")}, index=ids)
    pools = Pools(Path("run"), config, Cohort(scans, nothing, {}), volumes, parts, atlas, atlas)
    per_mean = matrix.toarray().T / atlas.n_voxels
    pools.__dict__["regions"] = pd.DataFrame(
        volumes.masked(np.arange(N)).astype(float) @ per_mean, index=ids, columns=list(REGIONS)
    )
    space = LatentSpace(
        scans=ids,
        subjects=ids.to_numpy().astype(str),
        values=z,
        frame=Frame(np.zeros(WIDE), np.eye(WIDE)),
        variance=np.zeros((N, WIDE)),
        names=("z000", "z001", "z002"),
        training=np.arange(N) < 44,
        unseen=np.arange(N) >= 46,
        has_prior=True,
        told=(),
        draw_latents=lambda z, told: draw(z, told),
    )
    made = Run(pools, space, weights, mean)

    def draw(z: np.ndarray, told: pd.DataFrame | None) -> Iterator[np.ndarray]:
        made.told.append(told)
        for start in range(0, len(z), 2):
            yield made.decode(z[start : start + 2]).astype(np.float32)

    monkeypatch.setattr(travel, "open_pools", lambda _: made.pools)
    monkeypatch.setattr(travel, "study_space", lambda _: made.space)
    monkeypatch.setattr(travel, "read_latents", lambda _: xr.Dataset(attrs={"model_hash": "abc"}))
    monkeypatch.setattr(travel, "content_hash", lambda _: "def")
    return made


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds; one test makes them."""
    monkeypatch.setattr(travel_files, "_draw", lambda *_, **__: None)


def age_slopes(run: Run) -> np.ndarray:
    """(region,) slope of the regional mean per year in training scans, sex and group held, by least squares."""
    scans, training = run.pools.prepared.scans, run.space.training
    design = np.column_stack([np.ones(N), scans["age"], scans["sex"] == "F", scans["group"] == "patient"])[training]
    return np.linalg.lstsq(design, run.pools.regions[training].to_numpy(), rcond=None)[0][1]


def table_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "effects.tsv", sep="\t").set_index("region").loc[list(REGIONS)]


def steps_of(folder: Path) -> np.ndarray:
    return nib.load(folder / "synthetic_steps.nii.gz").get_fdata()


def record_of(folder: Path) -> dict:
    return json.loads((folder / "travel.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("undrawn")
def test_regions_change_as_the_decoder_says_along_age(run: Run, tmp_path: Path) -> None:
    folder = travel.traverse(Path("run"), tmp_path / "age", direction="age", n_steps=3)
    table, record = table_of(folder), record_of(folder)
    step = np.array(record["direction"]["step"])
    assert step[0] == pytest.approx(1, abs=0.05)
    usual = run.space.values[:44].mean(axis=0)
    expected = run.regional_ml(run.decode(usual + np.array([-2, 0, 2])[:, None] * step))
    np.testing.assert_allclose(table[["step_01", "step_02", "step_03"]], expected.T, rtol=1e-4)
    np.testing.assert_allclose(table["change"], expected[2] - expected[0], atol=1e-3)
    np.testing.assert_allclose(table["change_percent"], 100 * (expected[2] / expected[0] - 1), atol=0.1)
    assert record["labels"] == ["−20 years", "unmoved", "+20 years"]
    assert "grey matter changes by −" in record["Description"]


@pytest.mark.usefixtures("undrawn")
def test_beside_it_stands_the_regional_regression(run: Run, tmp_path: Path) -> None:
    folder = travel.traverse(Path("run"), tmp_path / "age", direction="age", n_steps=3)
    expected = 40 * age_slopes(run) * run.pools.of_mask.n_voxels * 0.064
    np.testing.assert_allclose(table_of(folder)["regression_change"], expected, rtol=1e-3, atol=1e-4)
    folder = travel.traverse(Path("run"), tmp_path / "pc1", direction="pc1")
    assert "regression_change" not in table_of(folder)


@pytest.mark.usefixtures("undrawn")
def test_the_region_of_the_group_comes_first(run: Run, tmp_path: Path) -> None:
    folder = travel.traverse(Path("run"), tmp_path / "group", direction="group")
    table = pd.read_csv(folder / "effects.tsv", sep="\t")
    assert table["region"][0] == "Second"
    assert table["change"][0] < 0
    assert record_of(folder)["labels"][::4] == ["1 × towards control", "1 × towards patient"]
    assert "in percent most in Second" in record_of(folder)["Description"]


@pytest.mark.usefixtures("undrawn")
def test_a_scan_is_moved_from_where_it_lies(run: Run, tmp_path: Path) -> None:
    folder = travel.traverse(Path("run"), tmp_path / "out", direction="z002", scan="sub-50", n_steps=3)
    expected = run.decode(run.space.values[50]).astype(np.float32)
    np.testing.assert_allclose(steps_of(folder)[..., 1][run.pools.volumes.mask], expected, atol=1e-5)
    sd = run.space.values[:44, 2].std(ddof=1)
    expected = run.decode(run.space.values[50] + [0, 0, 2 * sd])
    np.testing.assert_allclose(steps_of(folder)[..., 2][run.pools.volumes.mask], expected, atol=1e-5)
    assert not any("trained on scan" in note for note in record_of(folder)["notes"])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("scan", "words"), [("sub-03", "was trained on scan sub-03"), ("sub-45", "had a say")])
def test_a_scan_that_the_model_knows_is_marked(run: Run, tmp_path: Path, scan: str, words: str) -> None:
    folder = travel.counterfactual(Path("run"), tmp_path / "out", scan=scan, changes={"age": "+1"}, n_steps=2)
    assert any(words in note for note in record_of(folder)["notes"])


@pytest.mark.usefixtures("undrawn")
def test_a_column_that_shaped_the_latents_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shaped = xr.Dataset(attrs={"model_hash": "abc", "supervised": "age"})
    monkeypatch.setattr(travel, "read_latents", lambda _: shaped)
    folder = travel.traverse(Path("run"), tmp_path / "out", direction="age", n_steps=2)
    assert any("'age' shaped the latents" in note for note in record_of(folder)["notes"])


@pytest.mark.usefixtures("undrawn")
def test_steps_beyond_all_training_scans_are_counted(run: Run, tmp_path: Path) -> None:
    folder = travel.traverse(Path("run"), tmp_path / "far", direction="z002", range_units=50)
    assert record_of(folder)["beyond_training"] == [True, True, False, True, True]
    assert "4 of 5 steps lie farther" in record_of(folder)["notes"][0]
    near = travel.traverse(Path("run"), tmp_path / "near", direction="z002", range_units=0.5)
    assert not any(record_of(near)["beyond_training"])


@pytest.mark.usefixtures("undrawn")
def test_between_two_scans_a_linear_decoder_is_a_cross_fade(run: Run, tmp_path: Path) -> None:
    folder = travel.interpolate(Path("run"), tmp_path / "out", "sub-50", "sub-51", n_steps=3)
    ends = run.decode(run.space.values[[50, 51]])
    images = steps_of(folder)[run.pools.volumes.mask].T
    np.testing.assert_allclose(images, [ends[0], ends.mean(axis=0), ends[1]], atol=1e-5)
    between = pd.read_csv(folder / "between.tsv", sep="\t")
    np.testing.assert_allclose(between["from_fade_of_reconstructions"], 0, atol=1e-6)
    x = run.pools.volumes.masked(np.arange(N)).astype(float)
    fade = x[[50, 51]].mean(axis=0)
    assert between["from_fade_of_scans"][1] == pytest.approx(np.sqrt(np.mean((images[1] - fade) ** 2)), rel=1e-3)
    others = [46, 47, 48, 49, *range(52, N)]
    for name, image in (("drawn", images[1]), ("fade_of_scans", fade)):
        nearest = min(np.sqrt(np.mean((image - x[row]) ** 2)) for row in others)
        assert between[f"nearest_unseen_{name}"][1] == pytest.approx(nearest, rel=1e-3)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("n_steps", "share"), [(2, None), (3, "At 50 % of the way"), (4, " of the way the drawing")])
def test_what_is_said_of_the_way_is_said_of_where_it_was_measured(
    run: Run, tmp_path: Path, n_steps: int, share: str | None
) -> None:
    folder = travel.interpolate(Path("run"), tmp_path / "out", "sub-50", "sub-51", n_steps=n_steps)
    page = (folder / "travel.json").read_text()
    assert ("of the way the drawing" in page) == (share is not None)
    assert share is None or share in page


@pytest.mark.usefixtures("undrawn")
def test_between_two_scans_a_bent_decoder_adds_something(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "decode", lambda z: run.mean + np.square(z) @ run.weights, raising=False)
    folder = travel.interpolate(Path("run"), tmp_path / "out", "sub-50", "sub-51", n_steps=3)
    assert pd.read_csv(folder / "between.tsv", sep="\t")["from_fade_of_reconstructions"][1] > 1e-4


@pytest.mark.usefixtures("undrawn")
def test_ten_years_are_ten_years(run: Run, tmp_path: Path) -> None:
    folder = travel.counterfactual(Path("run"), tmp_path / "out", scan="sub-50", changes={"age": "+10"}, n_steps=3)
    step = np.array(record_of(folder)["step"])
    assert step[0] == pytest.approx(1, abs=0.05)
    images = steps_of(folder)[run.pools.volumes.mask].T
    np.testing.assert_allclose(images[2], run.decode(run.space.values[50] + step), atol=1e-5)
    np.testing.assert_allclose(images[1], images[[0, 2]].mean(axis=0), atol=1e-5)
    expected = 10 * age_slopes(run) * run.pools.of_mask.n_voxels * 0.064
    np.testing.assert_allclose(table_of(folder)["regression_change"], expected, rtol=1e-3, atol=1e-4)
    assert record_of(folder)["labels"] == ["as it is", "50 %", "age +10"]


@pytest.mark.usefixtures("undrawn")
def test_several_changes_add_up(run: Run, tmp_path: Path) -> None:
    both = {"age": "+10", "group": "control"}
    steps = [
        record_of(travel.counterfactual(Path("run"), tmp_path / str(number), scan="sub-50", changes=one))["step"]
        for number, one in enumerate(({"age": "+10"}, {"group": "control"}, both))
    ]
    np.testing.assert_allclose(np.add(steps[0], steps[1]), steps[2], atol=1e-9)
    assert steps[1][1] == pytest.approx(-1, abs=0.1)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("change", "said"), [("+100", True), ("100", True), ("60", False), ("+0.1", False)])
def test_ages_that_no_training_scan_has_are_marked(run: Run, tmp_path: Path, change: str, said: bool) -> None:
    run.pools.prepared.scans.loc["sub-50", "age"] = 60.0
    folder = travel.counterfactual(Path("run"), tmp_path / "out", scan="sub-50", changes={"age": change}, n_steps=2)
    assert any("outside the training scans" in note for note in record_of(folder)["notes"]) == said


@pytest.mark.usefixtures("undrawn")
def test_what_the_decoder_is_told_changes_on_the_way(run: Run, tmp_path: Path) -> None:
    run.space = replace(run.space, told=("age", "sex"))
    changes = {"age": "70", "sex": "F"}
    run.pools.prepared.scans.loc["sub-50", ["age", "sex"]] = [50.0, "M"]
    travel.counterfactual(Path("run"), tmp_path / "out", scan="sub-50", changes=changes, n_steps=3)
    np.testing.assert_allclose(run.told[-1]["age"], [50, 60, 70])
    assert list(run.told[-1]["sex"]) == ["M", "F", "F"]
    travel.interpolate(Path("run"), tmp_path / "between", "sub-50", "sub-51", n_steps=3)
    assert run.told[-1]["age"].iloc[1] == pytest.approx((50 + run.pools.prepared.scans.at["sub-51", "age"]) / 2)
    travel.traverse(Path("run"), tmp_path / "along", direction="pc1", scan="sub-50", n_steps=3)
    assert list(run.told[-1]["age"]) == [50, 50, 50]


@pytest.mark.usefixtures("undrawn")
def test_less_than_no_grey_matter_is_not_written(run: Run, tmp_path: Path) -> None:
    folder = travel.traverse(Path("run"), tmp_path / "out", direction="group", range_units=30, n_steps=3)
    assert steps_of(folder).min() == 0
    drawn = run.decode(run.space.values[:44].mean(axis=0) + 30 * np.array(record_of(folder)["direction"]["step"]))
    assert record_of(folder)["clipped_ml"] == pytest.approx(-drawn[drawn < 0].sum() * 0.064, rel=1e-3)


@pytest.mark.usefixtures("undrawn")
def test_intensities_are_no_volumes(run: Run, tmp_path: Path) -> None:
    config = run.pools.config
    run.pools = replace(run.pools, config=replace(config, recipe=replace(config.recipe, target="t1w")))
    folder = travel.traverse(Path("run"), tmp_path / "out", direction="age", n_steps=3)
    table = table_of(folder)
    expected = run.decode(run.space.values[:44].mean(axis=0)).reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(table["step_02"], expected, rtol=1e-4)
    assert "regression_change" not in table
    assert " ml" not in record_of(folder)["Description"]


@pytest.mark.usefixtures("undrawn")
def test_everything_is_marked_as_synthetic(run: Run, tmp_path: Path) -> None:
    folder = travel.traverse(Path("run"), tmp_path / "new" / "out", direction="pc1", n_steps=2)
    volumes = {"synthetic_step-01.nii.gz", "synthetic_step-02.nii.gz", "synthetic_steps.nii.gz"}
    assert {file.name for file in folder.iterdir()} == volumes | {"effects.tsv", "travel.json"}
    for name in volumes:
        assert nib.load(folder / name).header["descrip"].item() == b"synthetic (nilatent)"
        np.testing.assert_array_equal(nib.load(folder / name).affine, run.pools.volumes.grid.affine)
    record = record_of(folder)
    assert record["Synthetic"] is True
    assert record["asked"]["model_hash"] == "abc"
    assert set(record["outputs"]) == volumes | {"effects.tsv"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.slow
def test_pictures_go_through_the_largest_change(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[strip.Strip] = []
    draw = strip.draw
    monkeypatch.setattr(strip, "draw", lambda one: shown.append(one) or draw(one))
    folder = travel.traverse(Path("run"), tmp_path / "out", direction="age", n_steps=3)
    assert {"strip.png", "strip.svg", "steps.gif", "slider.html"} <= {file.name for file in folder.iterdir()}
    assert "nobody's scan" in (folder / "slider.html").read_text(encoding="utf-8")
    # The region that ages lies at the left.
    assert -16 <= shown[0].positions_mm[0] <= -4
    assert np.isnan(shown[0].differences[0, 0]).all()
    inside = run.pools.volumes.mask
    np.testing.assert_array_equal(shown[0].differences[1][inside], 0)
    expected = (steps_of(folder)[..., 2] - steps_of(folder)[..., 1])[inside]
    np.testing.assert_allclose(shown[0].differences[2][inside], expected, atol=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_the_same_again_is_there_already_and_nothing_else_is_overwritten(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    folder = travel.traverse(Path("run"), out, direction="pc1", n_steps=3)
    before = (folder / "travel.json").stat().st_mtime_ns
    travel.traverse(Path("run"), out, direction="pc1", n_steps=3)
    assert (folder / "travel.json").stat().st_mtime_ns == before
    with pytest.raises(SettingError, match="holds another drawing"):
        travel.traverse(Path("run"), out, direction="pc1", n_steps=5)
    (folder / "effects.tsv").unlink()
    with pytest.raises(SettingError, match="nothing is overwritten"):
        travel.traverse(Path("run"), out, direction="pc1", n_steps=3)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SettingError, match="holds other files"):
        travel.traverse(Path("run"), tmp_path / "notes", direction="pc1")


def test_what_fails_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(travel_files, "_draw", broken)
    with pytest.raises(OSError, match="disk full"):
        travel.traverse(Path("run"), tmp_path / "out", direction="pc1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("undrawn")
def test_a_raw_head_is_drawn_in_its_own_space(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def native(image: nib.Nifti1Image, side_car: Path) -> nib.Nifti1Image:
        asked.append(side_car)
        return nib.Nifti1Image(image.get_fdata(dtype=np.float32)[::-1], np.diag([-4.0, 4, 4, 1]))

    monkeypatch.setattr(travel_files, "to_native", native)
    run.pools.prepared.scans["recipe"] = "t1"
    folder = travel.interpolate(Path("run"), tmp_path / "out", "sub-50", "sub-51", n_steps=2, space="subject")
    assert asked == [Path("/maps/sub-50_probseg.json")] * 2
    written = nib.load(folder / "synthetic_step-02_space-orig.nii.gz")
    assert written.header["descrip"].item() == b"synthetic (nilatent)"
    assert written.affine[0, 0] == -4
    assert nib.load(folder / "synthetic_steps_space-orig.nii.gz").shape == (*SHAPE, 2)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"direction": "agge"}, "Did you mean age or pls:age"),
        ({"direction": "age", "scan": "sub-5"}, "There is no scan 'sub-5'.*Did you mean sub-5"),
        ({"direction": "age", "n_steps": 1}, "between 2 and 25"),
        ({"direction": "age", "n_steps": 26}, "between 2 and 25"),
        ({"direction": "age", "range_units": 0.0}, "above 0"),
        ({"direction": "age", "range_units": float("nan")}, "above 0"),
        ({"direction": "age", "space": "mars"}, "one of model, subject"),
        ({"direction": "age", "space": "subject"}, "nobody's space"),
        ({"direction": "age", "space": "subject", "scan": "sub-01"}, "no way back"),
    ],
)
def test_what_cannot_be_is_refused(run: Run, tmp_path: Path, changed: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        travel.traverse(Path("run"), tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


def test_a_direction_that_cannot_be_fitted_says_why(run: Run, tmp_path: Path) -> None:
    run.space = replace(run.space, told=("age",))
    with pytest.raises(SettingError, match=r"told of it.*counterfactual"):
        travel.traverse(Path("run"), tmp_path / "out", direction="age")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, "Nothing is to change"), ({"agee": "1"}, "'agee' is not in the cohort"), ({"age": "old"}, "holds numbers")],
)
def test_changes_that_cannot_be_are_refused(run: Run, tmp_path: Path, changes: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        travel.counterfactual(Path("run"), tmp_path / "out", scan="sub-50", changes=changes)


def test_between_a_scan_and_itself_is_no_way(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="Name two scans"):
        travel.interpolate(Path("run"), tmp_path / "out", "sub-50", "sub-50")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, list[tuple[tuple, dict]]]]:
    """Run a command line whose verbs only write down what they are called with."""
    calls: list[tuple[tuple, dict]] = []
    for name in ("traverse", "interpolate", "counterfactual"):
        monkeypatch.setattr(travel, name, lambda *given, **named: calls.append((given, named)) or Path("out"))
    app = typer.Typer()
    for command in (commands.traverse, commands.interpolate, commands.counterfactual):
        app.command()(command)

    def call(*words: str) -> tuple[int, str, list[tuple[tuple, dict]]]:
        done = CliRunner().invoke(app, list(words))
        return done.exit_code, done.output, calls

    return call


def test_commands_hand_their_options_on(called: Callable[..., tuple[int, str, list[tuple[tuple, dict]]]]) -> None:
    code, output, calls = called("traverse", "run", "out", "--direction", "pc1", "--range", "1.5", "--n-steps", "7")
    assert (code, output.strip()) == (0, str(Path("out") / "slider.html"))
    called("interpolate", "run", "out", "a", "b", "--space", "subject")
    called("counterfactual", "run", "out", "--scan", "a", "--change", "age=+10", "--change", "group=x=y")
    given = {"direction": "pc1", "n_steps": 7, "range_units": 1.5, "scan": "", "space": "model"}
    assert calls[0] == ((Path("run"), Path("out")), given)
    assert calls[1] == ((Path("run"), Path("out"), "a", "b"), {"n_steps": 5, "space": "subject"})
    assert calls[2][1] == {"scan": "a", "changes": {"age": "+10", "group": "x=y"}, "n_steps": 5, "space": "model"}


@pytest.mark.parametrize("change", ["age", "=3", "age="])
def test_a_change_without_a_value_is_refused(
    called: Callable[..., tuple[int, str, list[tuple[tuple, dict]]]], change: str
) -> None:
    code, _, calls = called("counterfactual", "run", "out", "--scan", "a", "--change", change)
    assert code != 0
    assert calls == []


def test_help_starts_without_torch() -> None:
    code = "import nilatent.cli.travel, sys; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_maps_off_the_template_brain_are_refused_in_native_space(run: Run, tmp_path: Path) -> None:
    run.pools.prepared.scans["recipe"] = "t1"
    with pytest.raises(GridError, match="not in template space"):
        travel.traverse(Path("run"), tmp_path / "out", direction="pc1", scan="sub-50", space="subject")
