"""The report: a list over the files of a run, written as one page that opens by double click and needs no network."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import nibabel as nib
import pandas as pd

import nilatent
from nilatent.finding import Finding
from nilatent.plots import brain, style
from nilatent.provenance import atomic
from nilatent.report import methods, page, people, study
from nilatent.report.maps import maps_of
from nilatent.report.sections import SECTIONS, Drawing, FindingSection
from nilatent.report.subjects import build_subjects
from nilatent.report.viewer import RegionMap, ScanViewer, region_map, scan_viewer, words
from nilatent.tables import image_files
from nilatent.viewed import Viewed, read_viewed
from nilatent.volumes import Grid, template

__all__ = ["SECTIONS", "FindingSection", "build", "embedded"]

TITLE = "Study report: "
NOT_ASKED = "this run did not include it"
BACKGROUND_MM = 2.0


def build(run_folder: Path, *, png: bool = False) -> Path:
    """Write `report.html`, `figures/*.svg` and, where deviations were measured, `subjects/*.html` into a run folder.

    Parameters
    ----------
    run_folder
        What `nilatent run` or `nilatent demo` wrote; stages that were not run may be absent.
    png
        Write `figures/*.png` at 300 dots per inch too; the page itself can save any figure so.

    Returns
    -------
    Path
        The report. The same folder gives the same bytes.

    Raises
    ------
    FindingError
        When the folder is not a run.
    """
    run = study.read_run(Path(run_folder))
    sections = sections_of(run)
    paragraphs, references = methods.numbered(methods.paragraphs(run))
    html = page.render(
        page.Page(
            title=title_of(run),
            verdict=verdict(run),
            version=nilatent.__version__,
            facts=facts_of(run),
            sections=sections,
            paragraphs=paragraphs,
            references=references,
            provenance=study.provenance_sheets(run),
            settings=study.settings_text(run),
            regions=_region_map(run),
        )
    )
    for section in sections:
        for shown in section.pictures:
            with atomic(run.folder / "figures" / f"{shown.name}.svg") as temporary:
                temporary.write_text(shown.svg, encoding="utf-8")
            if png and shown.drawn is not None:
                with atomic(run.folder / "figures" / f"{shown.name}.png") as temporary:
                    temporary.write_bytes(style.to_png(shown.drawn))
    path = run.folder / "report.html"
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    if "normative" in run.findings:
        build_subjects(run.folder)
    return path


def embedded(run_folder: Path) -> str:
    """How many scans' volumes the report of a run folder holds, and which; empty when it holds none.

    Parameters
    ----------
    run_folder
        As in :func:`build`.
    """
    viewed = _viewed(study.read_run(Path(run_folder)))
    return words(viewed) if viewed is not None else ""


def _viewed(run: study.Run) -> Viewed | None:
    """What the reconstruction left to be looked at, unless it is of another model."""
    return read_viewed(run.folder / "findings" / "reconstruction") if run.done("reconstruction") else None


def _viewer(run: study.Run) -> ScanViewer | None:
    viewed = _viewed(run)
    target = str(run.settings.get("recipe", {}).get("target", "gm"))
    return scan_viewer(viewed, target=target) if viewed is not None else None


def _region_map(run: study.Run) -> RegionMap | None:
    names = study.region_labels(run)
    return region_map(names, run.settings.get("atlas", {})) if names else None


def verdict(run: study.Run) -> str:
    """The first sentence of the page: whether the model beats the mean image and PCA of equal size."""
    found = run.findings.get("reconstruction")
    if found is not None and not found.not_run:
        return re.split(r"(?<=\.)\s+(?=[A-Z])", found.answer, maxsplit=1)[0]
    reason = found.not_run if found is not None else NOT_ASKED
    return f"No model was judged on held-out scans: {reason.rstrip('.')}."


def sections_of(run: study.Run) -> tuple[page.Section, ...]:
    """Every section of the report of a run, in order; one that was not run says why."""
    return (
        people.cohort_section(run),
        study.quality_section(run),
        study.regions_section(run),
        study.training_section(run),
        *(_finding_section(spec, run) for spec in SECTIONS),
    )


def title_of(run: study.Run) -> str:
    """What the page is called, by its data sets."""
    return TITLE + ", ".join(sorted(map(str, run.cohort.scans["dataset"].unique())))


def facts_of(run: study.Run) -> tuple[tuple[str, str], ...]:
    """What is counted at the top of the page, as (name, number)."""
    scans = run.cohort.scans
    n_subjects, n_sources = scans["subject_id"].nunique(), scans["dataset"].nunique()
    facts = [
        (len(scans), "scan" if len(scans) == 1 else "scans"),
        (n_subjects, "person" if n_subjects == 1 else "persons"),
        (n_sources, "data set" if n_sources == 1 else "data sets"),
        (len(run.cohort.excluded), "left out"),
    ]
    if not run.parts.empty:
        facts.append((int((run.parts["part"] == "test").sum()), "held out"))
    if run.n_latent is not None:
        facts.append((run.n_latent, "latent dimensions"))
    return tuple((name, page.number_text(number)) for number, name in facts)


def _finding_section(spec: FindingSection, run: study.Run) -> page.Section:
    found = run.findings.get(spec.finding)
    if found is None or found.not_run:
        reason = found.not_run if found is not None else NOT_ASKED
        question = found.question if found is not None else ""
        return page.Section(spec.title, spec.finding, spec.lead, question=question, not_run=reason)
    pictures = [
        _picture(draw, name, found, fallback=name == found.name and spec.scatter is not None)
        for name, draw in {found.name: spec.draw, **spec.more}.items()
    ]
    table = page.sheet(_yes_or_no(found.table), f"{spec.title}, in numbers.", names=spec.names)
    return page.Section(
        spec.title,
        spec.finding,
        spec.lead,
        question=found.question,
        answer=found.answer,
        n_scans=found.n_scans,
        n_subjects=found.n_subjects,
        pictures=(*pictures, *_map_pictures(spec, found)),
        maps=maps_of(found, spec.maps),
        sheets=(table,) if len(found.table) else (),
        caveats=found.caveats,
        files=(f"findings/{found.name}/table.tsv", *(f"findings/{found.name}/{name}.nii.gz" for name in found.maps)),
        scatter=spec.scatter(found, _scatter_columns(run)) if spec.scatter is not None else None,
        viewer=_viewer(run) if spec.scatter is not None else None,
        sliders=spec.sliders(found) if spec.sliders is not None else (),
    )


def _yes_or_no(table: pd.DataFrame) -> pd.DataFrame:
    """The table with truth values in words."""
    answers = {str(name): table[name].map({True: "yes", False: "no"}) for name in table.select_dtypes(bool)}
    return table.assign(**answers)


def _picture(draw: Drawing, name: str, found: Finding, *, fallback: bool) -> page.Picture:
    # The first line of a draw function says what the figure shows: written once, beside the code that draws it.
    caption = (draw.__doc__ or name).splitlines()[0]
    return page.picture(draw(found), name, caption=caption, alternative=f"{caption} {found.answer}", fallback=fallback)


def _map_pictures(spec: FindingSection, found: Finding) -> Sequence[page.Picture]:
    shown = {
        name: (label if isinstance(label, str) else label(found), limits)
        for name, (label, limits) in spec.maps.items()
        if name in found.maps
    }
    if not shown:
        return ()
    background = _background()
    return [
        page.picture(
            brain.draw_map(found.maps[name], background=background, label=label, limits=limits),
            f"{found.name}-{name}",
            caption=f"Map: {label}, on the MNI152 template; left is on the left.",
            alternative=f"Axial and coronal slices of the template with the map: {label}. The table gives the values.",
        )
        for name, (label, limits) in shown.items()
    ]


@cache
def _background() -> nib.Nifti1Image:
    return template("t1", Grid.mni(BACKGROUND_MM))


def _scatter_columns(run: study.Run) -> pd.DataFrame:
    """Columns a scatter may be coloured by: the group first, then the rest of the cohort and the part of the split."""
    hidden = ["subject_id", "session_id", "source_id", "path", "gm_path", "sha256", *image_files(run.cohort.scans)]
    columns = run.cohort.scans.drop(columns=hidden, errors="ignore")
    if not run.parts.empty:
        columns = columns.join(run.parts.set_index("scan_id")["part"], how="left")
    first = [name for name in (run.group, "dataset", "age", "sex", "part") if name and name in columns]
    return columns[[*first, *(name for name in columns if name not in first)]]
