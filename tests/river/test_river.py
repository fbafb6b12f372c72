import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from tests.conftest import once
from tests.river.conftest import command_line

from nilatent import pipeline
from nilatent.cohort import load_cohort
from nilatent.config import read_config
from nilatent.finding import read_finding
from nilatent.simulate import SimulationConfig, simulate

Call = Callable[..., subprocess.CompletedProcess[str]]
STUDY = ("--group", "group", "--contrast", "patient:control", "--covariates", "age,sex", "--n-procs", "1")


@pytest.fixture(scope="session")
def finished(simulated: Path, settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made once for all workers; each has a copy, since two may not work in one folder."""

    def run(root: Path) -> None:
        root.mkdir()
        # A relative folder, as users type it.
        command = command_line("run", simulated, "out", "--config", settings, *STUDY)
        subprocess.run(command, check=True, capture_output=True, cwd=root)

    made = once("run", run, tmp_path_factory)
    return Path(shutil.copytree(made / "out", tmp_path_factory.mktemp("run") / "out"))


def test_every_pool_is_left_on_disk(finished: Path):
    wanted = [
        "study.toml", "cohort/scans.tsv", "cohort/excluded.tsv", "prepared/quality.tsv", "volumes/volumes.npy", "split.tsv",
        "model/config.toml", "model/weights.safetensors", "model/history.tsv", "latents.tsv", "latents.nc", "regions.tsv",
        "findings/reconstruction/table.tsv", "findings/projections/table.tsv", "findings/lrcp/table.tsv", "report.html",
        "folds/1/model/weights.safetensors", "folds/1/latents.nc", "folds/1/errors.tsv", "findings/agnostic/table.tsv",
        "findings/error_profile/finding.json", "findings/prediction/table.tsv",
        "findings/leaks/table.tsv", "findings/harmonise/finding.json", "heads/sex/head.json",
        "heads/patient-control/weights.safetensors", "findings/normative/finding.json",
    ]  # fmt: skip
    assert [name for name in wanted if not (finished / name).is_file()] == []


def test_rows_of_every_pool_are_the_same_scans(finished: Path):
    ids = [
        set(pd.read_csv(finished / name, sep="\t", dtype=str)["scan_id"])
        for name in ("cohort/scans.tsv", "split.tsv", "latents.tsv", "regions.tsv")
    ]
    assert len(ids[0]) == 26
    assert ids.count(ids[0]) == 4


def test_lrcp_table_has_the_promised_columns_and_order(finished: Path):
    table = read_finding(finished / "findings" / "lrcp").table
    promised = ["name", "label", "a", "p_a", "bal_acc", "p_d", "p", "grade", "badge", "rank"]
    assert list(table.columns[:10]) == promised
    assert list(table["rank"]) == sorted(table["rank"])
    assert ((table["p"] >= table["p_a"] - 1e-12) & (table["p"] >= table["p_d"] - 1e-12)).all()


def test_report_opens_with_the_verdict_and_loads_nothing(finished: Path):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "PCA of equal size" in page
    assert 'src="http' not in page


def test_second_run_computes_nothing_again(
    finished: Path, simulated: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    # The page is written anew by every run, which the first one showed.
    monkeypatch.setattr(pipeline.River, "report", lambda _: None)
    before = {
        path: path.stat().st_mtime_ns for path in finished.glob("*/*") if path.parent.name in ("volumes", "model")
    }
    done = pipeline.run([simulated], finished, read_config(finished / "study.toml"))
    assert done.excluded.empty
    assert capfd.readouterr().err.count("up to date") == 26
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_predicts_is_blind_to_whom_it_predicts(finished: Path):
    table = read_finding(finished / "findings" / "prediction").table
    assert set(table["target"]) == {"patient:control", "sex", "age"}
    assert {"latents", "latents + residuals", "regions", "voxel PCA", "covariates"} <= set(table["features"])
    assert (table["n_scans"] == 26).all()
    # The sex is not predicted from itself: age is left of the covariates, and the table says how well that does.
    of_sex = table[(table["target"] == "sex") & (table["features"] == "covariates")]
    assert (of_sex["value"] < 1).all()
    checks = read_finding(finished / "findings" / "leaks").table.set_index("check")["verdict"]
    assert checks["encoder and its test subjects"] == "clean"


def test_a_frozen_head_speaks_of_scans_from_elsewhere(finished: Path, here: Call, tmp_path: Path):
    elsewhere = simulate(tmp_path / "elsewhere", SimulationConfig(n_subjects=5, seed=8, spacing_mm=6.0))
    refused = here("predict", finished, "sex", elsewhere, tmp_path / "out", "--n-procs", 1)
    assert refused.returncode == 2
    assert "LeakageError" in refused.stderr
    done = here("predict", finished, "sex", elsewhere, tmp_path / "out", "--n-procs", 1, "--seen", "by scan")
    assert done.returncode == 0, done.stderr
    told = pd.read_csv(tmp_path / "out" / "predictions.tsv", sep="\t", dtype={"scan_id": str})
    assert list(told["scan_id"]) == [f"sub-{number:03d}" for number in range(1, 6)]
    np.testing.assert_allclose(told[["score_F", "score_M"]].sum(axis=1), 1)
    known = pd.read_csv(elsewhere / "participants.tsv", sep="\t")["sex"]
    assert list(told["known"]) == list(known)
    assert (tmp_path / "out" / "findings" / "external" / "finding.json").is_file()
    own = here("predict", finished, "sex", finished.parent / "absent", tmp_path / "other")
    assert own.returncode == 2


@pytest.mark.slow
def test_one_command_trains_on_some_data_sets_and_judges_another(
    simulated: Path, settings: Path, nilatent: Call, tmp_path: Path
):
    clinic = simulate(tmp_path / "clinic", SimulationConfig(n_subjects=24, seed=9, spacing_mm=6.0))
    own = tmp_path / "own.toml"
    own.write_text(settings.read_text().replace("folds = 2", "folds = 0"))
    out = tmp_path / "out"
    command = command_line("run", simulated, clinic, out, "--config", own, *STUDY, "--train-on", "simulated")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parts = pd.read_csv(out / "split.tsv", sep="\t", dtype=str)
    of_clinic = parts["scan_id"].str.startswith("clinic_")
    assert set(parts.loc[of_clinic, "part"]) == {"test"}
    assert set(parts.loc[~of_clinic, "part"]) == {"train", "validation", "test"}
    table = read_finding(out / "findings" / "prediction").table
    assert (table["n_scans"] == (parts["part"] == "test").sum()).all()
    mapped = read_finding(out / "findings" / "normative").settings["mapped"]
    maps = out / "findings" / "normative" / "maps"
    assert {path.name for path in maps.iterdir()} == {f"{scan}.nii.gz" for scan in mapped}
    assert len(mapped) == 2
    subjects = {path.name for path in (out / "subjects").iterdir()}
    assert {"index.html", "clinic_sub-001.html"} <= subjects
    assert "learnt from simulated alone" in (out / "report.html").read_text(encoding="utf-8")


def test_a_map_of_the_findings_goes_back_to_one_scan(finished: Path, here: Call, tmp_path: Path):
    image = finished / "findings" / "lrcp" / "score.nii.gz"
    result = here("native", finished, image, tmp_path / "back", "--participant-label", "001")
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "back").iterdir()
    original = load_cohort(finished / "cohort").scans.at["sub-001", "path"]
    assert nib.load(path).shape == nib.load(original).shape
    # The simulated maps lie on the template's grid already, so the way back changes nothing.
    np.testing.assert_allclose(nib.load(path).get_fdata(), nib.load(image).get_fdata(), atol=1e-4)


def test_same_seed_gives_identical_latents(finished: Path, simulated: Path, tmp_path: Path):
    # The first run was a process of its own.
    pipeline.run([simulated], tmp_path / "again", read_config(finished / "study.toml"), until="latents")
    assert (tmp_path / "again/latents.tsv").read_bytes() == (finished / "latents.tsv").read_bytes()


def test_too_few_subjects_still_give_regions_and_a_report(source: Path, here: Call, tmp_path: Path):
    table = pd.read_csv(source / "participants.tsv", sep="\t", dtype=str)
    keep = table["participant_id"].iloc[:6]
    listed = [path for path in sorted(source.rglob("*.nii.gz")) if path.name.split("_")[0] in set(keep)]
    rows = pd.DataFrame({"participant_id": [path.name.split("_")[0] for path in listed], "path": listed})
    rows.to_csv(tmp_path / "few.tsv", sep="\t", index=False)
    result = here("run", tmp_path / "few.tsv", tmp_path / "out", "--n-procs", "1")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out/regions.tsv").is_file()
    assert not (tmp_path / "out/model").exists()
    assert "too few subjects (6" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_without_a_group_lrcp_says_why_it_was_not_run(finished: Path, settings: Path, here: Call, tmp_path: Path):
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    shutil.copy(settings, copy / "study.toml")
    result = here("analyse", copy, "lrcp")
    assert result.returncode == 0, result.stderr
    assert read_finding(copy / "findings/lrcp").not_run == "no group column"


def damage(source: Path) -> dict[str, str]:
    """Damage seven scans in six ways; returns the rule that each must be listed under."""
    images = sorted(source.rglob("*.nii.gz"))
    images = [path for path in images if path.name.startswith("sub-")]
    names = [path.name.split("_")[0] for path in images]
    whole = images[0].read_bytes()
    images[0].write_bytes(whole[: len(whole) // 2])
    first = nib.load(images[1])
    nib.save(nib.Nifti1Image(np.stack([first.get_fdata()] * 2, axis=3), first.affine), images[1])
    values = nib.load(images[2]).get_fdata()
    values[5, 5, 5] = np.nan
    nib.save(nib.Nifti1Image(values, first.affine), images[2])
    table = source / "participants.tsv"
    table.write_text("".join(line for line in table.open() if not line.startswith(names[3] + "\t")))
    images[4].write_bytes(images[5].read_bytes())
    images[6].unlink()
    return dict(
        zip(
            names[:7],  # of two subjects with one image, nobody can say whose it is
            ["cut short", "three dimensions", "finite", "participants.tsv", "duplicated", "duplicated", "absent"],
            strict=True,
        )
    )


def test_seven_bad_scans_are_named_and_the_others_finish(source: Path, here: Call, tmp_path: Path):
    expected = damage(source)
    result = here("prepare", source, tmp_path / "out", "--spacing-mm", "6", "--n-procs", "1")
    assert result.returncode == 1, result.stderr
    excluded = pd.read_csv(tmp_path / "out/excluded.tsv", sep="\t", dtype=str).set_index("scan_id")
    assert set(excluded.index) == set(expected)
    for scan_id, word in expected.items():
        said = f"{excluded.at[scan_id, 'rule']} {excluded.at[scan_id, 'reason']}"
        assert word in said
        assert scan_id in said
        assert scan_id in result.stderr
    assert len(pd.read_csv(tmp_path / "out/scans.tsv", sep="\t")) == 19


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent-folder", "out"], "There is no source absent-folder"),
        (["{source}", "out", "--group", "gruop"], "Did you mean 'group'"),
        (["{source}", "out", "--column", "sex"], "OURS=THEIRS"),
        (["{source}", "out", "--group", "group", "--contrast", "patient:healthy"], "no value 'healthy'"),
        (["{source}"], "Missing argument"),
    ],
)
def test_bad_usage_is_refused_in_words_with_exit_code_2(
    arguments: list[str], words: str, simulated: Path, here: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = here("run", *(text.replace("{source}", str(simulated)) for text in arguments))
    assert result.returncode == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


def test_truth_is_written_beside_the_simulated_scans(simulated: Path):
    truth = json.loads((simulated / "truth.json").read_text())
    assert truth


@pytest.mark.slow
def test_scans_left_out_follow_the_source_though_nothing_is_computed_again(
    source: Path, nilatent: Call, tmp_path: Path
):
    out, table = tmp_path / "out", source / "participants.tsv"
    before = table.read_text()
    assert nilatent("run", source, out, *STUDY).returncode == 0
    table.write_text(before + "\t".join(["sub-999", *before.splitlines()[1].split("\t")[1:]]) + "\n")
    result = nilatent("run", source, out, *STUDY)
    assert result.returncode == 1
    assert "sub-999" in result.stderr
    assert result.stderr.count("up to date") == 25
    assert "sub-999" in (out / "report.html").read_text(encoding="utf-8")
    table.write_text(before)
    assert nilatent("run", source, out, *STUDY).returncode == 0
    # Fewer subjects than a model needs: the model of the larger study is no part of the report.
    (tmp_path / "listed.txt").write_text("\n".join(f"sub-{number:03d}" for number in range(1, 9)))
    assert nilatent("run", source, out, *STUDY, "--exclude", tmp_path / "listed.txt").returncode == 0
    assert "latent dimensions" not in (out / "report.html").read_text(encoding="utf-8")


def test_a_copied_run_does_not_read_the_first_ones_maps(finished: Path, here: Call, tmp_path: Path):
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    shutil.rmtree(copy / "volumes")
    places = {Path(path) for path in load_cohort(copy / "prepared").scans["path"]}
    assert all(path.is_relative_to(copy) for path in places)
    result = here("analyse", copy)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("up to date") == 25
