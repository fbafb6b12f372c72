"""A study over years, from sessions with days to the report: visits uneven, some missed, age written once per subject."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nilatent.cohort import load_cohort
from nilatent.finding import read_finding
from nilatent.simulate import SimulationConfig, simulate

Call = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def followed(tmp_path: Path) -> Path:
    """Sessions with days and no age; rows of one subject out of order, one first scan and one row lost."""
    config = SimulationConfig(n_subjects=30, seed=5, spacing_mm=6.0, n_sessions=3, missed_fraction=0.2)
    source = simulate(tmp_path / "source", config)
    several = [path for path in sorted(source.glob("sub-*")) if len(list(path.glob("ses-*"))) == 3]
    for path in source.glob("sub-*/*_sessions.tsv"):
        table = pd.read_csv(path, sep="\t")
        table = table.assign(days=(365.25 * table["years"]).round().astype(int))[["session_id", "days"]]
        if path.parent == several[0]:
            table = table.iloc[::-1]
        if path.parent == several[1]:
            table = table.iloc[:-1]
        table.to_csv(path, sep="\t", index=False)
        path.with_suffix(".json").unlink()
    shutil.rmtree(several[2] / "ses-01")
    return source


def test_sessions_with_days_become_rates_and_a_section_of_the_report(followed: Path, nilatent: Call, tmp_path: Path):
    out = tmp_path / "out"
    study = ("--group", "group", "--contrast", "patient:control", "--covariates", "age,sex", "--n-procs", "1")
    done = nilatent("run", followed, out, *study)
    # One scan has no row among the sessions of its subject: it is listed, and all others are there.
    assert done.returncode == 1, done.stderr
    assert "no row in sub-" in done.stdout + done.stderr
    found, scans = read_finding(out / "findings" / "longitudinal"), load_cohort(out / "prepared").scans
    assert (found.not_run, found.n_scans, found.n_subjects) == ("", len(scans), 30)
    assert (found.settings["time"], found.settings["unit"], found.settings["n_models"]) == ("days", "days", 2)
    rates = found.data["subject_rate"]
    truth = pd.read_csv(followed / "truth" / "scans.tsv", sep="\t").assign(
        subject_id=lambda table: table["scan_id"].str[:7]
    )
    loss = truth.groupby("subject_id")["disease_per_year"].first().loc[list(rates["subject"].values)]
    assert np.corrcoef(rates.sel(region="Hippocampus_L"), -loss)[0, 1] > 0.6
    rows = found.table[(found.table["what"] == "difference in rate") & (found.table["kind"] == "regions")]
    assert rows["measure"].head(4).str.contains("Hippocampus|Temporal").all()
    assert (rows["drawn_low"] < rows["drawn"]).all()
    assert (rows["drawn"] < rows["drawn_high"]).all()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "linear mixed models" in page
    assert "is the same at all visits of every subject" in page
