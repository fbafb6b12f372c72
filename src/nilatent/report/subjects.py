"""One page per subject: how far its scans lie from what the reference lets expect, in which regions, and where on the map."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from jinja2 import Template
from markupsafe import Markup
from nibabel.filebasedimages import ImageFileError

import nilatent
from nilatent.errors import FindingError
from nilatent.finding import Finding, read_finding
from nilatent.plots import brain, normative
from nilatent.provenance import atomic, file_stems
from nilatent.report import page
from nilatent.report.quality import page_file
from nilatent.volumes import Grid, template

FINDING, MAPS = Path("findings") / "normative", "maps"
FOLDER, INDEX = "subjects", "index.html"
SCRIPTS = ("report.js", "subject.js")
N_REGIONS = 12
Z_LIMITS, SHOWN_FROM = (-5.0, 5.0), 1.0
BACKGROUND_MM = 2.0
# Columns of the index after the scan, by the names that the plot gives them; covariates come between.
LISTED = ("group", "deviates", "p", "q", "mahalanobis", "n_extreme", "region", "region_z", "note")
LISTED_CAPTION = "One row per scan, those that deviate most first; each leads to the page of its subject."


@dataclass(frozen=True)
class Part:
    """What the page says of one scan; `absent` says why there is no map."""

    title: str
    sentences: tuple[str, ...]
    pictures: tuple[page.Picture, ...]
    regions: page.Sheet | None
    absent: str


def build_subjects(folder: Path) -> list[Path]:
    """Write `subjects/index.html` and one page per subject into a run folder.

    Parameters
    ----------
    folder
        A run folder with the finding in `findings/normative/`, and maps of z as `findings/normative/maps/<scan>.nii.gz`
        for those scans that have one.

    Returns
    -------
    list[Path]
        The index, then the pages, those that deviate most first; none when the analysis was not run. Every file is
        complete by itself, and the same folder gives the same bytes. Pages of an earlier call that are no longer wanted
        are removed.

    Raises
    ------
    FindingError
        When the finding is missing, damaged or another one.
    """
    folder = Path(folder)
    found = read_finding(folder / FINDING)
    if found.name != "normative":
        raise FindingError(
            f"{folder / FINDING} holds the finding '{found.name}'. Run `nilatent analyse normative` again."
        )
    place = folder / FOLDER
    stems = {} if found.not_run else file_stems(found.table["subject_id"], taken=[Path(INDEX).stem])
    names = {subject: f"{stem}.html" for subject, stem in stems.items()}
    for old in place.glob("*.html"):
        if old.name not in {INDEX, *names.values()} or found.not_run:
            old.unlink()
    if found.not_run:
        return []
    look = page.environment().get_template("subject.html.j2")
    written = [_write(place / INDEX, look, _index(found, names))]
    for subject, rows in found.table.groupby("subject_id", sort=False):
        parts = [_part(found, row, folder / FINDING / MAPS) for _, row in rows.iterrows()]
        written.append(_write(place / names[str(subject)], look, _subject(found, rows, parts)))
    return written


def _write(path: Path, look: Template, values: Mapping[str, object]) -> Path:
    usual = {"index": "", "facts": (), "parts": (), "listed": None, "links": (), "caveats": ()}
    scripts = [page_file(name) for name in SCRIPTS]
    html = look.render(
        usual | dict(values),
        css=Markup(page_file("report.css")),
        scripts=[Markup(script) for script in scripts],
        policy=page.policy(scripts),
        version=nilatent.__version__,
    )
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _index(found: Finding, names: Mapping[str, str]) -> dict[str, object]:
    columns = [(name, (name.replace("_", " "), "")) for name in _covariates(found)]
    known = [(name, normative.COLUMN_NAMES[name]) for name in LISTED]
    shown = dict([("scan_id", ("scan", "")), known[0], *columns, *known[1:]])
    table = found.table.assign(deviates=np.where(found.table["deviates"], "yes", "no"))
    return {
        "title": f"Deviation of {found.n_subjects} subjects",
        "verdict": found.answer,
        "listed": page.sheet(table.assign(note=table["note"].replace("", np.nan)), LISTED_CAPTION, names=shown),
        "links": [names[str(subject)] for subject in found.table["subject_id"]],
        "caveats": found.caveats,
    }


def _subject(found: Finding, rows: pd.DataFrame, parts: list[Part]) -> dict[str, object]:
    first = rows.iloc[0]
    facts = [("subject", str(first["subject_id"])), ("group", str(first["group"]) or page.MISSING)]
    facts += [(name.replace("_", " "), _value(first[name])) for name in _covariates(found)]
    facts.append(("scans" if len(rows) > 1 else "scan", page.number_text(len(rows))))
    return {
        "title": f"Deviation of {first['subject_id']}",
        "verdict": _verdict(first, found),
        "index": INDEX,
        "facts": facts,
        "parts": parts,
        "caveats": found.caveats,
    }


def _covariates(found: Finding) -> list[str]:
    site = found.settings["site"]
    names = [*found.settings["covariates"], *([site] if site else [])]
    return [name for name in names if name in found.table]


def _value(value: Any) -> str:
    if isinstance(value, int | float):
        return page.number_text(float(value))
    return page.MISSING if pd.isna(value) else str(value)


def _expected(found: Finding) -> str:
    names = [name.replace("_", " ") for name in _covariates(found)]
    return f"the {found.settings['n_reference']} reference subjects ({found.settings['reference']}) let expect" + (
        f" at this {', '.join(names)}" if names else ""
    )


def _verdict(row: "pd.Series[Any]", found: Finding) -> str:
    scan = row["scan_id"]
    if pd.isna(row["p"]):
        return f"{scan} was not judged: {row['note'] or 'nothing of it could be compared'}."
    does = "deviates from" if row["deviates"] else "lies within"
    beyond = "what" if row["deviates"] else "the range of what"
    return (
        f"{scan} {does} {beyond} {_expected(found)} (p = {page.number_text(row['p'])}; q over scans "
        f"{page.number_text(row['q'])}, asked for at most {found.settings['alpha']:g})."
    )


def _part(found: Finding, row: "pd.Series[Any]", maps: Path) -> Part:
    scan = str(row["scan_id"])
    if pd.isna(row["p"]):
        return Part(scan, (_verdict(row, found),), (), None, "")
    pictures = [
        page.picture(
            normative.draw_place(found, scan),
            f"place-{scan}",
            caption="Where this scan lies among the reference scans, each judged by a model that was not fitted on its subject.",
            alternative="Strips of dots, one per measure. The sentences above give the same in words.",
        )
    ]
    shown, absent = _map(scan, maps)
    return Part(scan, _sentences(found, row), tuple(pictures + shown), _regions(found, scan), absent)


def _map(scan: str, maps: Path) -> tuple[list[page.Picture], str]:
    path = maps / f"{scan}.nii.gz"
    if not path.is_file():
        return [], "There is no map of this scan: only those that deviate most have one (normative.n_maps)."
    try:
        image = nib.load(path)
        z = image.get_fdata(dtype=np.float32)
    except (OSError, EOFError, ValueError, ImageFileError):
        return [], f"The map {MAPS}/{path.name} cannot be read. Run `nilatent analyse normative` again."
    # What is zero is transparent, so that the anatomy is seen between what deviates.
    shown = nib.Nifti1Image(np.where(np.abs(z) >= SHOWN_FROM, z, np.float32(0)), image.affine)
    drawn = brain.draw_map(shown, background=_background(), label="z (below 0: less than expected)", limits=Z_LIMITS)
    caption = (
        f"Voxels with |z| of at least {SHOWN_FROM:g} on the MNI152 template; left is on the left. Not corrected for the number "
        "of voxels: a third of a brain like the reference lies beyond 1, and one in twenty beyond 1.96."
    )
    alternative = "Axial and coronal slices of the template with the z of this scan. The table names the regions."
    return [page.picture(drawn, f"map-{scan}", caption=caption, alternative=alternative)], ""


def _sentences(found: Finding, row: "pd.Series[Any]") -> tuple[str, ...]:
    words = [_on_regions(found, row)]
    if not pd.isna(row["mahalanobis"]):
        words.append(_on_latents(found, row))
    if not pd.isna(row["error_region_z"]):
        worse = "worse" if row["error_region_z"] > 0 else "better"
        words.append(
            f"The model, which has not seen the subject, reconstructs {row['error_region']} most unexpectedly: {worse} than in "
            f"the reference (z = {page.number_text(row['error_region_z'])}, p over all regions "
            f"{page.number_text(row['p_error'])})."
        )
    return tuple(words)


def _on_regions(found: Finding, row: "pd.Series[Any]") -> str:
    number = page.number_text
    beyond = (
        f"{number(row['n_extreme'])} of {found.data.sizes['region']} regions lie beyond 1.96, and "
        f"{number(row['n_expected'])} are expected on average"
    )
    if not pd.isna(row["p_extreme"]):
        beyond += f" (p by rank among held-out reference scans {number(row['p_extreme'])})"
    less = "less" if row["region_z"] < 0 else "more"
    return (
        f"{beyond}. {row['region']} deviates most, with {less} grey matter than expected (z = {number(row['region_z'])}, p over "
        f"all regions {number(row['p_regions'])}). The mean z over regions is {number(row['mean_z'])}."
    )


def _on_latents(found: Finding, row: "pd.Series[Any]") -> str:
    number = page.number_text
    usual = float(found.table.loc[found.table["reference"], "mahalanobis"].median())
    words = f"In latent space it lies {number(row['mahalanobis'])} SD from what is expected; half of the held-out reference "
    words += f"scans lie beyond {number(usual)}"
    if pd.isna(row["p_latents"]):
        return f"{words}."
    return f"{words} (p = {number(row['p_latents'])}, by rank {number(row['p_rank'])})."


def _regions(found: Finding, scan: str) -> page.Sheet:
    one = found.data.sel(scan=scan)
    table = pd.DataFrame(
        {"region": one["region"].values.astype(str), "z": one["z"].values, "error_z": one["error_z"].values}
    ).dropna(subset="z")
    order = table["z"].abs().sort_values(ascending=False, kind="stable").index[:N_REGIONS]
    names = {"region": ("region", ""), "z": ("z", "Below 0: less grey matter than expected")}
    if table["error_z"].notna().any():
        names["error_z"] = ("z of error", "Above 0: reconstructed worse than expected")
    return page.sheet(table.loc[order], f"The {len(order)} regions that deviate most.", names=names)


@cache
def _background() -> nib.Nifti1Image:
    return template("t1", Grid.mni(BACKGROUND_MM))
