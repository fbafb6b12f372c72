"""The report: a list over the files of a run, written as one page that opens by double click and needs no network."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd
from matplotlib.figure import Figure

import nilatent
from nilatent.finding import Finding
from nilatent.plots import (
    agnostic,
    blur,
    brain,
    counterfactual,
    error_profile,
    fidelity,
    fusion,
    harmonise,
    leaks,
    longitudinal,
    lrcp,
    normative,
    prediction,
    projections,
    reconstruction,
    sensitivity,
)
from nilatent.plots import search as search_plot
from nilatent.provenance import atomic
from nilatent.report import methods, page, study
from nilatent.report.slider import Slider, direction_sliders
from nilatent.report.subjects import build_subjects
from nilatent.volumes import Grid, template

__all__ = ["SECTIONS", "FindingSection", "build"]


Drawing = Callable[[Finding], Figure]


@dataclass(frozen=True)
class FindingSection:
    """How a finding is shown.

    Attributes
    ----------
    title, finding
        Heading, and the name of the finding under `findings/`.
    draw
        Its figure.
    lead
        What the section is about, in one sentence.
    names
        Columns of its table that are shown, to (shown name, explanation); see `page.sheet`.
    more
        Further figures: stem of the file to function.
    maps
        Maps that are drawn on the template, to the label of the colour bar and its limits.
    scatter
        Values of an interactive scatter, from the finding and the table of scans; None for none.
    sliders
        Sliders through drawn pictures, from the finding; None for none.
    """

    title: str
    finding: str
    draw: Drawing
    lead: str
    names: Mapping[str, tuple[str, str]]
    more: Mapping[str, Drawing] = field(default_factory=dict)
    maps: Mapping[str, tuple[str, tuple[float, float] | None]] = field(default_factory=dict)
    scatter: Callable[[Finding, pd.DataFrame], dict[str, Any]] | None = None
    sliders: Callable[[Finding], tuple[Slider, ...]] | None = None


SECTIONS: tuple[FindingSection, ...] = (
    FindingSection(
        "Search of settings",
        "search",
        search_plot.draw,
        "Whether other settings of the model do better than those given, judged on the validation scans alone.",
        search_plot.COLUMN_NAMES,
        more={"search-seeds": search_plot.draw_seeds},
    ),
    FindingSection(
        "Reconstruction",
        "reconstruction",
        reconstruction.draw,
        "What survives the way through the latents and back, on scans the model has never seen.",
        reconstruction.COLUMN_NAMES,
        more={
            "reconstruction-regions": reconstruction.draw_regions,
            "reconstruction-slices": reconstruction.draw_slices,
        },
        maps=reconstruction.MAPS,
    ),
    FindingSection(
        "Latent space",
        "projections",
        projections.draw,
        "How the scans lie to one another in the latents, and what that order follows.",
        projections.COLUMN_NAMES,
        more={
            "projections-spaces": projections.draw_spaces,
            "projections-quality": projections.draw_quality,
            "projections-relations": projections.draw_relations,
        },
        scatter=projections.scatter,
    ),
    FindingSection(
        "Regions (LRCP)",
        "lrcp",
        lrcp.draw,
        "Which regions the latents carry, and whether what they carry tells the groups apart.",
        lrcp.COLUMN_NAMES,
        more={"lrcp-profile": lrcp.draw_profile},
        maps=lrcp.MAPS,
    ),
    FindingSection(
        "Error profile",
        "error_profile",
        error_profile.draw,
        "Which regions tell how well a brain is reconstructed by a model that has not seen it.",
        error_profile.COLUMN_NAMES,
        maps=error_profile.MAPS,
    ),
    FindingSection(
        "Agnostic validation",
        "agnostic",
        agnostic.draw,
        "What can be certified whatever the distribution of the data: bounds on the error for people not in the study.",
        agnostic.COLUMN_NAMES,
        maps=agnostic.MAPS,
    ),
    FindingSection(
        "Prediction",
        "prediction",
        prediction.draw,
        "What can be told of people from their latents, beside what simpler numbers tell.",
        prediction.COLUMN_NAMES,
        more={"prediction-curves": prediction.draw_curves, "prediction-calls": prediction.draw_calls},
    ),
    FindingSection(
        "Harmonisation",
        "harmonise",
        harmonise.draw,
        "Whether the scanner can be told from the measures, before and after site effects are removed.",
        harmonise.COLUMN_NAMES,
    ),
    FindingSection(
        "Normative deviation",
        "normative",
        normative.draw,
        "How far each brain lies from what is expected of its age, sex and site; every subject has a page in subjects/.",
        normative.COLUMN_NAMES,
        maps=normative.MAPS,
    ),
    FindingSection(
        "Directions in the latent space",
        "sensitivity",
        sensitivity.draw,
        "What changes in a brain when its latents move: with age, from group to group, along single latents.",
        sensitivity.COLUMN_NAMES,
        more={"sensitivity-strips": sensitivity.draw_strips},
        maps=sensitivity.MAPS,
        sliders=direction_sliders,
    ),
    FindingSection(
        "Counterfactuals",
        "counterfactual",
        counterfactual.draw,
        "What the model expects of unseen brains ten years older or as another group, and whether other brains agree.",
        counterfactual.COLUMN_NAMES,
        more={"counterfactual-example": counterfactual.draw_example},
    ),
    FindingSection(
        "Synthetic brains",
        "fidelity",
        fidelity.draw,
        "Whether brains drawn from the latent space look like held-out brains, are copies of training scans, or are of use.",
        fidelity.COLUMN_NAMES,
        more={"fidelity-strip": fidelity.draw_strip},
    ),
    FindingSection(
        "Why is it blurry",
        "blur",
        blur.draw,
        "How much of the detail of a scan is drawn, whether it is the right detail, and what takes the rest.",
        blur.COLUMN_NAMES,
    ),
    FindingSection(
        "Change over years",
        "longitudinal",
        longitudinal.draw,
        "How fast regions and latents change in each group, by mixed models of every visit, and what a later scan looks like.",
        longitudinal.COLUMN_NAMES,
        maps=longitudinal.MAPS,
    ),
    FindingSection(
        "Fusion",
        "fusion",
        fusion.draw,
        "Whether several kinds of measurement together tell more than the best one alone, and which carries what.",
        fusion.COLUMN_NAMES,
    ),
    FindingSection(
        "Leak audit",
        "leaks",
        leaks.draw,
        "Whether anything lets a result look better than it is.",
        leaks.COLUMN_NAMES,
    ),
)
"""The findings of the page, in order. One that is absent from the run becomes a line "not run"."""

NOT_ASKED = "this run did not include it"
BACKGROUND_MM = 2.0


def build(run_folder: Path) -> Path:
    """Write `report.html`, `figures/*.svg` and, where deviations were measured, `subjects/*.html` into a run folder.

    Parameters
    ----------
    run_folder
        What `nilatent run` or `nilatent demo` wrote; stages that were not run may be absent.

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
    sections = (
        study.cohort_section(run),
        study.quality_section(run),
        study.regions_section(run),
        study.training_section(run),
        *(_finding_section(spec, run) for spec in SECTIONS),
    )
    paragraphs, references = methods.numbered(methods.paragraphs(run))
    html = page.render(
        page.Page(
            title=_title(run),
            verdict=verdict(run),
            version=nilatent.__version__,
            facts=_facts(run),
            sections=sections,
            paragraphs=paragraphs,
            references=references,
            provenance=study.provenance_sheets(run),
            settings=study.settings_text(run),
        )
    )
    for section in sections:
        for shown in section.pictures:
            with atomic(run.folder / "figures" / f"{shown.name}.svg") as temporary:
                temporary.write_text(shown.svg, encoding="utf-8")
    path = run.folder / "report.html"
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    if "normative" in run.findings:
        build_subjects(run.folder)
    return path


def verdict(run: study.Run) -> str:
    """The first sentence of the page: whether the model beats the mean image and PCA of equal size."""
    found = run.findings.get("reconstruction")
    if found is not None and not found.not_run:
        return re.split(r"(?<=\.)\s+(?=[A-Z])", found.answer, maxsplit=1)[0]
    reason = found.not_run if found is not None else NOT_ASKED
    return f"No model was judged on held-out scans: {reason.rstrip('.')}."


def _title(run: study.Run) -> str:
    return "Study report: " + ", ".join(sorted(map(str, run.cohort.scans["dataset"].unique())))


def _facts(run: study.Run) -> tuple[tuple[str, str], ...]:
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
    table = page.sheet(found.table, f"{spec.title}, in numbers.", names=spec.names)
    return page.Section(
        spec.title,
        spec.finding,
        spec.lead,
        question=found.question,
        answer=found.answer,
        n_scans=found.n_scans,
        n_subjects=found.n_subjects,
        pictures=(*pictures, *_map_pictures(spec, found)),
        sheets=(table,) if len(found.table) else (),
        caveats=found.caveats,
        files=(f"findings/{found.name}/table.tsv", *(f"findings/{found.name}/{name}.nii.gz" for name in found.maps)),
        scatter=spec.scatter(found, _scatter_columns(run)) if spec.scatter is not None else None,
        sliders=spec.sliders(found) if spec.sliders is not None else (),
    )


def _picture(draw: Drawing, name: str, found: Finding, *, fallback: bool) -> page.Picture:
    # The first line of a draw function says what the figure shows: written once, beside the code that draws it.
    caption = (draw.__doc__ or name).splitlines()[0]
    return page.picture(draw(found), name, caption=caption, alternative=f"{caption} {found.answer}", fallback=fallback)


def _map_pictures(spec: FindingSection, found: Finding) -> Sequence[page.Picture]:
    shown = {name: look for name, look in spec.maps.items() if name in found.maps}
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
    hidden = ["subject_id", "session_id", "source_id", "path", "sha256"]
    columns = run.cohort.scans.drop(columns=hidden, errors="ignore")
    if not run.parts.empty:
        columns = columns.join(run.parts.set_index("scan_id")["part"], how="left")
    first = [name for name in (run.group, "dataset", "age", "sex", "part") if name and name in columns]
    return columns[[*first, *(name for name in columns if name not in first)]]
