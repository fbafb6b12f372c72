import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from nilatent import synthetic
from nilatent.analysis.latent_space import LatentSpace
from nilatent.cli.generate import generate_app
from nilatent.errors import SettingError
from nilatent.latents import make_latents, write_latents
from nilatent.pools import Pools
from nilatent.provenance import read_json
from nilatent.synthetic import Form, SamplesConfig, export_samples
from nilatent.synthetic.plan import BLOCK, form_of

ValuesOf = Callable[[Path], dict[str, np.ndarray]]


def test_a_run_is_asked_for_samples_like_its_cohort(tmp_path: Path, run: Pools) -> None:
    config = SamplesConfig(n=4, conditions=(("age", "50"),))
    table = export_samples(Path("run"), tmp_path / "made", config, like_cohort=True)
    assert set(table["age"]) == {50.0}
    assert set(table["group"]) <= {"case", "control"}
    # The same for all training scans, so nothing can be learned from it.
    assert table["sex"].isna().all()
    assert set(table["copy"]) == {"false"}
    assert "looked for, and left out" in (tmp_path / "made" / "README").read_text()


def test_a_fold_draws_from_its_own_model(tmp_path: Path, run: Pools, form: Form, values_of: ValuesOf) -> None:
    means = []
    for fold in (0, 1):
        export_samples(Path("run"), tmp_path / str(fold), SamplesConfig(n=16), fold=fold)
        means.append(np.mean(list(values_of(tmp_path / str(fold)).values()), axis=0))
        side_car = read_json(next((tmp_path / str(fold)).glob("sub-*/anat/*.json")))
        assert side_car["nilatent"]["Model"].endswith(f"folds/{fold}")
    assert np.corrcoef(*means)[0, 1] < 0.5
    with pytest.raises(SettingError, match="there is no 2"):
        export_samples(Path("run"), tmp_path / "none", SamplesConfig(n=1), fold=2)


def test_copies_of_training_scans_are_caught_in_a_run(
    tmp_path: Path, run: Pools, monkeypatch: pytest.MonkeyPatch, space: LatentSpace
) -> None:
    def scan(latents: np.ndarray, told: pd.DataFrame | None) -> Iterator[np.ndarray]:
        yield run.volumes.masked(np.zeros(len(latents), dtype=int)) + np.float32(1e-4)

    def mixed(latents: np.ndarray, told: pd.DataFrame | None) -> Iterator[np.ndarray]:
        yield from scan(latents, told) if len(latents) == BLOCK else space.draw_latents(latents, told)

    monkeypatch.setattr(synthetic, "study_space", lambda _: replace(space, draw_latents=mixed))
    assert export_samples(Path("run"), tmp_path / "refused", SamplesConfig(n=3)).empty
    assert len(pd.read_csv(tmp_path / "refused" / "excluded.tsv", sep="\t")) == 3
    kept = export_samples(Path("run"), tmp_path / "kept", SamplesConfig(n=3, allow_copies=True))
    assert list(kept["copy"]) == ["true"] * 3


def test_too_few_people_say_what_a_copy_is(
    tmp_path: Path, run: Pools, monkeypatch: pytest.MonkeyPatch, space: LatentSpace
) -> None:
    monkeypatch.setattr(synthetic, "study_space", lambda _: replace(space, training=np.arange(len(space.scans)) < 11))
    with pytest.raises(SettingError, match="--allow-copies"):
        export_samples(Path("run"), tmp_path / "refused", SamplesConfig(n=1))
    table = export_samples(Path("run"), tmp_path / "made", SamplesConfig(n=1, allow_copies=True))
    assert set(table["copy"]) == {"unknown"}


def test_the_form_of_a_run_is_that_of_its_maps(run: Pools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    latents = make_latents(
        np.zeros((2, 1)), np.zeros((2, 1)), scan=["a", "b"], subject=["a", "b"], subject_in_training=[True, False],
        part=["train", "test"], model_hash="of-the-fold", volumes_hash="",
    )  # fmt: skip
    write_latents(latents, tmp_path)
    form = form_of(run, tmp_path)
    assert (form.target, form.description) == ("gm", "modulated")
    assert form.inputs["model"] == "of-the-fold"
    assert form.inputs["volumes"] == run.volumes.content_hash


def command(*arguments: object) -> Result:
    app = typer.Typer()
    app.add_typer(generate_app, name="generate")
    return CliRunner().invoke(app, ["generate", "samples", *map(str, arguments)])


def test_the_command_writes_what_the_function_writes(
    tmp_path: Path, run: Pools, form: Form, values_of: ValuesOf
) -> None:
    said = ("--n", 4, "--density", "prior", "--seed", 3, "--fold", 1)
    assert command("run", tmp_path / "told", *said).exit_code == 0
    export_samples(Path("run"), tmp_path / "called", SamplesConfig(n=4, density="prior", seed=3), fold=1)
    one, other = (values_of(tmp_path / name) for name in ("told", "called"))
    np.testing.assert_array_equal(np.stack(list(one.values())), np.stack(list(other.values())))
    like = command("run", tmp_path / "like", "--n", 2, "--condition", "age=50", "--like-cohort")
    assert like.exit_code == 0
    assert pd.read_csv(tmp_path / "like" / "participants.tsv", sep="\t")["group"].notna().all()


def test_the_command_says_what_was_left_out(tmp_path: Path, run: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    class Everything:
        def flag(self, images: np.ndarray) -> np.ndarray:
            return np.ones(len(images), dtype=bool)

    monkeypatch.setattr(synthetic, "fit_copy_rule", lambda *_given, **_named: Everything())
    result = command("run", tmp_path / "made", "--n", 2)
    assert result.exit_code == 1
    assert "2 of 2 left out" in result.output
    assert command("run", tmp_path / "all", "--n", 2, "--allow-copies").exit_code == 0


@pytest.mark.parametrize("wrong", [("--condition", "age"), ("--condition", "=3"), ("--n", 0), ("--density", "kde")])
def test_the_command_refuses_what_it_does_not_know(tmp_path: Path, wrong: tuple[object, ...]) -> None:
    assert command("run", tmp_path / "made", *wrong).exit_code == 2


def test_help_is_there_without_a_network() -> None:
    code = (
        "import sys; sys.argv = ['generate', '--help']\n"
        "from nilatent.cli.generate import generate_app\n"
        "try: generate_app()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'nibabel'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
