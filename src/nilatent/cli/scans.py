"""Commands about scans: made, prepared, and written back in their own space."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nilatent.cli.options import (
    DEMO_SUBJECTS,
    Config,
    Confound,
    Dask,
    Kind,
    Out,
    Procs,
    Sessions,
    Sources,
    Subjects,
    as_labels,
    list_failures,
    n_processes,
)

if TYPE_CHECKING:
    from nilatent.cohort import Cohort


def simulate(
    out: Out,
    kind: Annotated[Kind, typer.Option(help="Grey-matter maps, or raw T1-like heads.")] = Kind.gm,
    n_subjects: Annotated[int, typer.Option(min=2, help="How many.")] = DEMO_SUBJECTS,
    n_sessions: Annotated[int, typer.Option(min=1, help="Sessions of each subject.")] = 1,
    n_sites: Annotated[int, typer.Option(min=1, help="Scanners.")] = 2,
    spacing_mm: Annotated[float, typer.Option(help="Voxel size of grey-matter maps.")] = 4.0,
    n_causes: Annotated[
        int, typer.Option(min=0, help="Causes of differences in shape; 0: a random field for everyone.")
    ] = 0,
    confounded: Annotated[Confound, typer.Option(help="What the group is entangled with.")] = Confound.none,
    class_mediated: Annotated[
        bool, typer.Option("--class-mediated", help="The loss follows the group alone, not severity within it.")
    ] = False,
    region: Annotated[
        list[str] | None,
        typer.Option(help="AAL2 region = share of its grey matter that patients lose: Cerebelum_3_L=0.3."),
    ] = None,
    group_fraction: Annotated[float, typer.Option(help="Share of patients, 0 to 1.")] = 0.5,
    ventricles_mm: Annotated[float, typer.Option(help="How far the walls of patients' ventricles move outward.")] = 0.0,
    patient_head_size: Annotated[float, typer.Option(help="Multiplies the size of patients' heads, 0.5 to 1.5.")] = 1.0,
    follow_up_years: Annotated[
        float, typer.Option(help="Follow patients for so long: who is progressive, and when.")
    ] = 0.0,
    missed_fraction: Annotated[float, typer.Option(help="Share of later visits that do not take place, 0 to 1.")] = 0.0,
    null: Annotated[bool, typer.Option("--null", help="No effect of the group.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    n_procs: Procs = 0,
) -> None:
    """A BIDS folder of simulated scans with planted truth (truth.json, truth maps)."""
    from nilatent.simulate import SimulationConfig
    from nilatent.simulate import simulate as simulate_cohort

    regions, losses = _planted(region) if region else (SimulationConfig.regions, SimulationConfig.losses)
    settings = SimulationConfig(
        regions=regions,
        losses=losses,
        group_fraction=group_fraction,
        ventricles_mm=ventricles_mm,
        patient_head_size=patient_head_size,
        follow_up_years=follow_up_years,
        missed_fraction=missed_fraction,
        kind=kind.value,
        n_subjects=n_subjects,
        n_sessions=n_sessions,
        n_sites=n_sites,
        spacing_mm=spacing_mm,
        n_causes=n_causes,
        confounded=confounded.value,
        class_mediated=class_mediated,
        null=null,
        seed=seed,
    )
    typer.echo(str(simulate_cohort(out, settings, n_procs=n_processes(n_procs))))


def _planted(region: list[str]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    pairs = [text.partition("=") for text in region]
    try:
        return tuple(name for name, _, _ in pairs), tuple(float(loss) for _, _, loss in pairs)
    except ValueError:
        raise typer.BadParameter(
            f"--region is NAME=LOSS, such as Hippocampus_L=0.3; got '{', '.join(region)}'."
        ) from None


def prepare(
    sources: Sources,
    out: Out,
    config: Config = None,
    recipe: Annotated[str | None, typer.Option(help="t1 (raw heads), gm (maps that exist) or auto.")] = None,
    spacing_mm: Annotated[float | None, typer.Option(help="Voxel size of the output, 1 to 6 mm.")] = None,
    fwhm_mm: Annotated[float | None, typer.Option(help="Smoothing, 0 to 12 mm.")] = None,
    modulation: Annotated[bool | None, typer.Option(help="Multiply by the volume change, or do not.")] = None,
    normalisation: Annotated[str | None, typer.Option(help="affine, or syn (slower, as VBM does).")] = None,
    target: Annotated[str | None, typer.Option(help="gm (grey-matter maps) or t1w (T1 intensities).")] = None,
    within_subject: Annotated[
        bool | None, typer.Option(help="One template, affine and brain mask per person, for longitudinal studies.")
    ] = None,
    participant_label: Subjects = None,
    session_label: Sessions = None,
    n_procs: Procs = 0,
    dask: Dask = "",
) -> None:
    """Raw T1 scans or grey-matter maps to checked maps in MNI space, as a BIDS derivative.

    With labels, only those scans' files are written, so that several such calls may share one folder at the same time; a
    last call without labels finds them done and writes the tables of the whole cohort.
    """
    given = {
        "recipe.name": recipe,
        "recipe.spacing_mm": spacing_mm,
        "recipe.fwhm_mm": fwhm_mm,
        "recipe.modulation": modulation,
        "recipe.normalisation": normalisation,
        "recipe.target": target,
        "recipe.within_subject": within_subject,
    }
    subjects, sessions = as_labels(participant_label), as_labels(session_label)
    processes = n_processes(n_procs, scheduler=dask)
    from nilatent.cohort import read_cohort, select, write_cohort
    from nilatent.config import read_config
    from nilatent.preprocess.recipe import prepare as prepare_cohort

    settings = read_config(config, overrides={name: value for name, value in given.items() if value is not None})
    if settings.recipe.within_subject and sessions:
        raise typer.BadParameter(
            "It would make a template of a part of a person's visits. Divide the cohort by --participant-label.",
            param_hint="--session-label",
        )
    cohort = read_cohort(sources, suffix=settings.study.image, column_aliases=settings.study.columns)
    whole = not (subjects or sessions)
    cohort = select(cohort, subjects, sessions=sessions)
    done = prepare_cohort(cohort, out, settings.recipe, n_procs=processes, scheduler=dask, tables=whole)
    if whole:
        write_cohort(done, out)
        _quality_page(done, out)
    else:
        typer.echo(
            "A part of the cohort: run the same without labels, once all parts are done, for its tables.", err=True
        )
    typer.echo(str(out))
    list_failures(len(done.scans), done.excluded)


def _quality_page(done: "Cohort", out: Path) -> None:
    from nilatent.errors import MissingExtraError
    from nilatent.extras import require
    from nilatent.finding import write_finding
    from nilatent.preprocess.quality import quality

    write_finding(quality(done, folder=out), out / "quality")
    try:
        for module in ("jinja2", "matplotlib"):
            require(module, extra="report")
    except MissingExtraError as error:
        # The scans are prepared and their measures are written; only the page is missing.
        typer.echo(f"No quality page: {error}", err=True)
        return
    from nilatent.report.quality import build

    typer.echo(str(build(out)))


def native(
    folder: Annotated[Path, typer.Argument(help="Folder that `nilatent run` or `nilatent prepare` filled.")],
    image: Annotated[Path, typer.Argument(help="Map in template space, such as findings/lrcp/score.nii.gz.")],
    out: Out,
    labels: Annotated[
        bool, typer.Option("--labels", help="Whole numbers such as atlas labels: nearest voxel.")
    ] = False,
    participant_label: Subjects = None,
    session_label: Sessions = None,
) -> None:
    """Write a map back in each subject's own space: on the voxels, and with the orientation, of the original scan."""
    subjects, sessions = as_labels(participant_label), as_labels(session_label)
    from nilatent.cohort import load_cohort, select
    from nilatent.preprocess.native import write_native

    of_run = (folder / "prepared" / "scans.tsv").is_file()
    prepared = select(load_cohort(folder / "prepared" if of_run else folder), subjects, sessions=sessions)
    originals = load_cohort(folder / "cohort") if of_run else None
    prepared = replace(prepared, excluded=prepared.excluded.iloc[:0])
    done = write_native(prepared, image, out, labels=labels, originals=originals)
    typer.echo(str(out))
    list_failures(len(done.scans), done.excluded)
