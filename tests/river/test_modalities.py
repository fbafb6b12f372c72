import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent.finding import read_finding
from nilatent.latents import read_latents
from nilatent.volumes import template_array

Call = Callable[..., subprocess.CompletedProcess[str]]


def with_second_images(simulated: Path, folder: Path) -> Path:
    """A table of the simulated scans with a column of further maps; of two scans they are absent, of one unusable."""
    rng = np.random.default_rng(0)
    people = pd.read_csv(simulated / "participants.tsv", sep="\t", dtype=str).set_index("participant_id")
    white, rows = template_array("wm", 6.0), []
    for path in sorted(simulated.glob("sub-*/**/*label-GM*.nii.gz")):
        subject = path.name.split("_")[0]
        image = nib.load(path)
        # White matter that varies with the size of the grey.
        size = np.asarray(image.get_fdata()).mean() / 0.1
        other = white * size * (1 + 0.1 * rng.standard_normal(white.shape))
        if subject == "sub-003":
            other = np.stack([other, other], axis=3)
        second = folder / path.name.replace("label-GM", "label-WM")
        nib.save(nib.Nifti1Image(other.astype(np.float32), image.affine), second)
        there = "" if subject in ("sub-001", "sub-002") else str(second)
        severity = f"{rng.normal(10, 3):.2f}" if subject != "sub-005" else "n/a"
        rows.append(
            {"participant_id": subject, "path": str(path), "second": there, "severity": severity}
            | people.loc[subject, ["age", "sex", "group"]].to_dict()
        )
    table = folder / "scans.tsv"
    pd.DataFrame(rows).to_csv(table, sep="\t", index=False)
    return table


ASK = """
import json, sys
from pathlib import Path
from nilatent.config import read_config
from nilatent.pipeline import run
asked = {"study.modalities.other": "second", "study.tables.scores": ["age", "severity"], "study.group": "group"}
config = read_config(Path(sys.argv[3]), overrides=asked)
done = run([Path(sys.argv[1])], Path(sys.argv[2]), config, until="findings", only=["multimodal", "fusion"])
print(json.dumps(done.without["scan_id"].tolist()))
"""


@pytest.mark.slow
def test_further_images_and_tables_run_through_the_river(
    simulated: Path, settings: Path, nilatent: Call, tmp_path: Path
):
    table, out = with_second_images(simulated, tmp_path), tmp_path / "out"
    command = [sys.executable, "-c", ASK, str(table), str(out), str(settings)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    # The unusable image is listed, and its scan goes on without it.
    assert json.loads(done.stdout) == ["sub-003"]
    assert "modality other: 1 images could not be used" in done.stderr
    failed = pd.read_csv(out / "modalities" / "other" / "failed.tsv", sep="\t")
    assert failed["scan_id"].tolist() == ["sub-003"]
    packed = pd.read_csv(out / "modalities" / "other" / "scans.tsv", sep="\t")
    assert len(packed) == 23
    split = pd.read_csv(out / "split.tsv", sep="\t", dtype={"scan_id": str}).set_index("scan_id")
    for fold in range(2):
        latents = read_latents(out / "folds" / str(fold) / "multimodal")
        held_out = (split["fold"] == fold).loc[latents["scan"].values].to_numpy()
        assert not latents["subject_in_training"].values[held_out].any()
    assert "other (23 of 26 scans)" in latents.attrs["caveat"]
    found = read_finding(out / "findings" / "multimodal")
    assert not found.not_run
    fused = read_finding(out / "findings" / "fusion")
    assert "joint (gm, other, scores)" in set(fused.table["features"])
    assert {"other", "scores"} <= set(fused.settings["modalities"])
    # Age is in the table: what knows it must not tell it.
    assert any("No joint latents for age" in caveat for caveat in fused.caveats)
    again = nilatent("analyse", out, "multimodal", "fusion")
    assert again.returncode == 0, again.stderr
    assert "..." not in again.stderr
    made = nilatent("generate", "across", out, "gm", "--from", "other")
    assert made.returncode == 0, made.stderr
    summary = pd.read_csv(out / "generated" / "gm_from_other" / "summary.tsv", sep="\t")
    assert (summary["from"] == "nothing: not predicted").sum() == 3
    assert summary["fvu"].median() < 1
