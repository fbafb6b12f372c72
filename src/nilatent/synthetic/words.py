"""What a synthetic data set says of itself, so that nobody takes it for scans of people."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nilatent.preprocess.bids import BIDS_VERSION
from nilatent.provenance import atomic, versions, write_json

MARK = "synthetic"
"""In the name of every subject and image, in every header and in a column of the table."""
PERSONAL = ("age", "sex", "group")
"""Columns that a reader looks for; n/a where nothing was said of them."""
# No part of BIDS.
OTHERS = (f"{MARK}.json", "excluded.tsv", "images.tsv", "provenance.json")
MEANINGS = {
    "participant_id": "Number of the sample; nobody",
    MARK: "true: drawn by a model; this person does not exist",
    "density": "What it was drawn from: mixture (fitted to the latents of the training scans) or prior (of the model)",
    "seed": "Seed of all draws",
    "distance": "Mahalanobis distance of its latents from the centre of the density, over the root of their number: about 1 "
    "is usual, 2 and more far outside",
    "beyond_training": "true: a number it is conditioned on lies outside the range of the training scans, so it is a guess",
    "copy": "true: taken for a copy of a training scan and written because that was asked for; unknown: not looked for",
    "clipped_share": "Values below 0 that were set to 0, as a share of the sum of the others",
}
README = """# Synthetic scans: nobody in this data set exists

Every image of this folder was drawn by a model (nilatent). None shows a person, none is evidence about people, and none
belongs into a study as a participant. The word "synthetic" stands in every name, in the header of every image (descrip),
in every side-car (`"Synthetic": true`) and in the column `synthetic` of `participants.tsv`: leave it there.

- {image}
- An image is what the model expects at one place of its latent space: smoother than a scan, without a scanner's noise.
- Age, sex and group are what a sample was asked to look like (n/a: not asked); nobody was measured, and numbers that
  were drawn like those of training subjects are near theirs, not theirs.
- `participants.tsv` says of each how usual it is among the training scans (`distance`), whether a condition lies beyond
  them (`beyond_training`), and how much of it was below 0 and set to 0 (`clipped_share`).
- `synthetic.json`: model, density, conditions and seed; `excluded.tsv`: samples that were refused, and why.
- The export is whole when `provenance.json` exists. The same command goes on with one that was interrupted.

Density: {density}.
Conditions: {conditions}.
Distance of scans from its centre (about 1 is expected; unseen scans far below 1 mean that the model spreads its
training scans more widely than others, and samples with them): {distances}.
Copies of training scans: {copies}.
"""
IMAGES = {
    "gm": "`sub-*/anat/*_label-GM_*_probseg.nii.gz`: grey-matter maps on the grid of the study (MNI152NLin2009aSym).",
    "t1w": "`sub-*/anat/*_T1w.nii.gz`: T1 intensities on the grid of the study (MNI152NLin2009aSym); `images.tsv` lists "
    "them for programs that expect raw scans under this name.",
}


def describe(out: Path, target: str, said: Mapping[str, Any]) -> None:
    """Write ``synthetic.json``, ``dataset_description.json``, ``README`` and ``.bidsignore``, before any image.

    Parameters
    ----------
    out : Path
        Folder of the data set.
    target : {"gm", "t1w"}
        What the images show.
    said : Mapping
        What samples follow from, in words; see :class:`nilatent.synthetic.plan.Plan`.
    """
    write_json(out / f"{MARK}.json", said)
    made = {"Name": "nilatent", "Version": versions().get("nilatent", "unknown"), "Description": "Drawn by a model"}
    described = {
        "Name": "Synthetic scans drawn by nilatent: nobody in this data set exists",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [made],
    }
    write_json(out / "dataset_description.json", described)
    _write(out / ".bidsignore", "".join(f"{name}\n" for name in OTHERS))
    conditions = ", ".join(f"{name} = {value}" for name, value in said["conditions"].items())
    drawn = ", ".join(said["drawn like the training subjects"])
    words = "; ".join(
        text for text in (conditions, f"{drawn} drawn like the training subjects" if drawn else "") if text
    )
    distances = ", ".join(f"{name} scans {value:.2f} (median)" for name, value in said["distance of scans"].items())
    text = README.format(
        image=IMAGES[target],
        density=said["density"],
        conditions=words or "none",
        distances=distances or "unknown",
        copies=said["copies"],
    )
    _write(out / "README", text)


def dictionary(columns: Iterable[str]) -> dict[str, dict[str, str]]:
    """What the columns of ``participants.tsv`` mean, in the form of a BIDS side-car."""
    asked = {name: {"Description": "What the sample was asked to look like; nobody was measured"} for name in columns}
    if "age" in asked:
        asked["age"]["Units"] = "years"
    return asked | {name: {"Description": MEANINGS[name]} for name in columns if name in MEANINGS}


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
