"""The command line: each command reads nouns from disk, calls one public function and writes the noun back."""

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nilatent.errors import NilatentError

if TYPE_CHECKING:
    import pandas as pd

    from nilatent.cohort import Cohort

DONE, SOME_FAILED, BAD_USAGE = 0, 1, 2
DEMO_SUBJECTS = 160

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learn latent representations of 3D brain MRI, and say with honest statistics what they know.",
)


class Preset(StrEnum):
    """Resolution and size for a kind of machine."""

    cpu_small = "cpu-small"
    cpu = "cpu"
    gpu = "gpu"
    gpu_large = "gpu-large"


class ModelName(StrEnum):
    """Which network."""

    autoencoder = "autoencoder"
    vae = "vae"
    spatial_vae = "spatial_vae"


class Objective(StrEnum):
    """What a search of settings takes for better."""

    auto = "auto"
    elbo = "elbo"
    front = "front"
    size = "size"


class Kind(StrEnum):
    """What to simulate."""

    gm = "gm"
    t1 = "t1"


class Confound(StrEnum):
    """What a simulated group is entangled with."""

    none = "none"
    age = "age"
    site = "site"


Out = Annotated[Path, typer.Argument(help="Folder that receives the results.")]
RunFolder = Annotated[Path, typer.Argument(help="Folder that `nilatent run` filled.")]
Sources = Annotated[
    list[Path],
    typer.Argument(help="BIDS folders, derivatives, CAT12 folders, or tables with columns path, participant_id."),
]
Config = Annotated[Path | None, typer.Option(help="TOML file with settings; flags win over it.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything that draws.")]
Subjects = Annotated[
    list[str] | None, typer.Option(help="Only these subjects, with or without sub-; several by commas or repeated.")
]
Sessions = Annotated[
    list[str] | None, typer.Option(help="Only these sessions, with or without ses-; several likewise.")
]
Procs = Annotated[
    int,
    typer.Option(
        "--n-procs", min=0, help="Processes; 0 takes a core each, as far as 2 GB of memory are free for each."
    ),
]
Dask = Annotated[
    str,
    typer.Option("--dask", help="Prepare on the workers of a dask scheduler: tcp://HOST:8786, or its scheduler file."),
]

Devices = Annotated[
    int | None,
    typer.Option(min=1, help="Train on so many GPUs (or processes, on a processor) of each machine."),
]
Nodes = Annotated[int | None, typer.Option(min=1, help="Train on so many machines, each of which runs this command.")]


def _processes(n_procs: int, *, scheduler: str = "") -> int:
    if scheduler and n_procs:
        raise typer.BadParameter("--n-procs is for this machine and --dask for others. Give one of the two.")
    if n_procs:
        return n_procs
    from nilatent.preprocess.workers import fitting_processes

    return fitting_processes()


def _labels(given: list[str] | None) -> list[str]:
    return [label for text in given or [] for label in text.replace(",", " ").split()]


def _study(
    group: str | None,
    contrast: str | None,
    covariates: str | None,
    site: str | None,
    column: list[str] | None,
    exclude: Path | None,
    seed: int | None,
) -> dict[str, Any]:
    given = {
        "study.group": group,
        "study.contrast": contrast,
        "study.covariates": None
        if covariates is None
        else [name.strip() for name in covariates.split(",") if name.strip()],
        "study.site": site,
        "study.exclude": None if exclude is None else str(exclude.resolve()),
        "seed": seed,
    }
    for pair in column or []:
        ours, joined, theirs = pair.partition("=")
        if not (ours and joined and theirs):
            raise typer.BadParameter(f"--column is OURS=THEIRS, such as sex=gender; got '{pair}'.")
        given[f"study.columns.{ours}"] = theirs
    return {name: value for name, value in given.items() if value is not None}


def _machines(devices: int | None, num_nodes: int | None) -> dict[str, Any]:
    given = {"training.devices": devices, "training.num_nodes": num_nodes}
    return {name: value for name, value in given.items() if value is not None}


def _close(n_scans: int, excluded: "pd.DataFrame") -> None:
    failed = excluded[excluded["stage"] != "study"]
    if failed.empty:
        return
    typer.echo(f"{len(failed)} left out, {n_scans} done:", err=True)
    for row in failed.itertuples():
        typer.echo(f"  {row.scan_id} [{row.stage}, {row.rule}]: {row.reason}", err=True)
    raise typer.Exit(SOME_FAILED)


@app.command()
def run(
    sources: Sources,
    out: Out,
    config: Config = None,
    preset: Annotated[Preset, typer.Option(help="Resolution and size for a kind of machine.")] = Preset.cpu_small,
    group: Annotated[str | None, typer.Option(help="Column of the group.")] = None,
    contrast: Annotated[
        str | None, typer.Option(help="A:B, two values of the group; A against the reference B. Several: A:B,C:B.")
    ] = None,
    covariates: Annotated[str | None, typer.Option(help="Columns to remove, joined by commas.")] = None,
    site: Annotated[str | None, typer.Option(help="Column of the scanner or centre.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="Our name of a column = the source's: sex=gender.")] = None,
    exclude: Annotated[Path | None, typer.Option(help="File with one scan or subject per line to leave out.")] = None,
    seed: Seed = None,
    model: Annotated[ModelName | None, typer.Option(help="Which network.")] = None,
    devices: Devices = None,
    remedy: Annotated[
        bool,
        typer.Option("--remedy", help="Train again, at most thrice, with what the diagnosis of a failure advises."),
    ] = False,
    folds: Annotated[
        int, typer.Option(min=0, help="Cross-fitting: so many further models, each scan judged by one blind to it.")
    ] = 0,
    n_procs: Procs = 0,
    dask: Dask = "",
) -> None:
    """From scans to a report: the whole river; resumes, and skips what is finished."""
    overrides = _study(group, contrast, covariates, site, column, exclude, seed) | _machines(devices, None)
    overrides |= {"model.name": model.value} if model else {}
    overrides |= {"folds": folds} if folds else {}
    processes = _processes(n_procs, scheduler=dask)
    from nilatent.config import read_config
    from nilatent.pipeline import run as run_river

    settings = read_config(config, preset=preset.value, overrides=overrides | ({"remedy": True} if remedy else {}))
    outcome = run_river(sources, out, settings, n_procs=processes, scheduler=dask)
    typer.echo(str(outcome.report))
    _close(outcome.n_scans, outcome.excluded)


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder that receives the results.")] = Path("demo"),
    n_subjects: Annotated[int, typer.Option(min=40, help="Simulated subjects.")] = DEMO_SUBJECTS,
    seed: Annotated[int, typer.Option(help="Seed of everything that draws.")] = 0,
    n_procs: Procs = 0,
) -> None:
    """Simulate a cohort with planted atrophy and run the whole river on it."""
    from nilatent.pipeline import demonstrate

    outcome = demonstrate(out, n_subjects=n_subjects, seed=seed, n_procs=_processes(n_procs))
    typer.echo(f"The report is at {outcome.report}")
    _close(outcome.n_scans, outcome.excluded)


@app.command()
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
    null: Annotated[bool, typer.Option("--null", help="No effect of the group.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    n_procs: Procs = 0,
) -> None:
    """A BIDS folder of simulated scans with planted truth (truth.json, truth maps)."""
    from nilatent.simulate import SimulationConfig
    from nilatent.simulate import simulate as simulate_cohort

    settings = SimulationConfig(
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
    typer.echo(str(simulate_cohort(out, settings, n_procs=_processes(n_procs))))


@app.command()
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
    }
    subjects, sessions = _labels(participant_label), _labels(session_label)
    processes = _processes(n_procs, scheduler=dask)
    from nilatent.cohort import read_cohort, select, write_cohort
    from nilatent.config import read_config
    from nilatent.preprocess.recipe import prepare as prepare_cohort

    settings = read_config(config, overrides={name: value for name, value in given.items() if value is not None})
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
    _close(len(done.scans), done.excluded)


def _quality_page(done: "Cohort", out: Path) -> None:
    from nilatent.errors import MissingExtraError
    from nilatent.extras import require
    from nilatent.finding import write_finding
    from nilatent.preprocess.quality import quality

    write_finding(quality(done, folder=out), out / "quality")
    try:
        for module in ("jinja2", "matplotlib", "plotly"):
            require(module, extra="report")
    except MissingExtraError as error:
        # The scans are prepared and their measures are written; only the page is missing.
        typer.echo(f"No quality page: {error}", err=True)
        return
    from nilatent.report.quality import build

    typer.echo(str(build(out)))


def _again(folder: Path, *, until: str, only: list[str] | None = None, overrides: dict[str, Any] | None = None) -> None:
    from nilatent.config import read_config
    from nilatent.pipeline import run as run_river

    run_river([], folder, read_config(folder / "study.toml", overrides=overrides), until=until, only=only or [])


@app.command()
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
    subjects, sessions = _labels(participant_label), _labels(session_label)
    from nilatent.cohort import load_cohort, select
    from nilatent.preprocess.native import write_native

    of_run = (folder / "prepared" / "scans.tsv").is_file()
    prepared = select(load_cohort(folder / "prepared" if of_run else folder), subjects, sessions=sessions)
    originals = load_cohort(folder / "cohort") if of_run else None
    prepared = replace(prepared, excluded=prepared.excluded.iloc[:0])
    done = write_native(prepared, image, out, labels=labels, originals=originals)
    typer.echo(str(out))
    _close(len(done.scans), done.excluded)


@app.command()
def train(folder: RunFolder, devices: Devices = None, num_nodes: Nodes = None) -> None:
    """Train the model of a run folder on its volumes; resumes where it was stopped.

    Several machines that share the folder train together: torchrun or SLURM starts this command on each of them.
    """
    _again(folder, until="model", overrides=_machines(devices, num_nodes))
    typer.echo(str(folder / "model"))


@app.command()
def search(
    folder: RunFolder,
    n_trials: Annotated[int | None, typer.Option(min=1, help="Trials in all; may be raised later.")] = None,
    objective: Annotated[Objective | None, typer.Option(help="What counts as better; auto follows the model.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with all settings, in place of the folder's study.toml.")
    ] = None,
) -> None:
    """Search settings of the model on the validation scans of a run folder; goes on where it was stopped."""
    given = {"search.n_trials": n_trials, "search.objective": objective.value if objective else None}
    from nilatent.config import read_config
    from nilatent.pipeline import search_settings

    overrides = {name: value for name, value in given.items() if value is not None}
    settings = read_config(folder / "study.toml" if config is None else config, overrides=overrides)
    typer.echo(str(search_settings(folder, settings, n_procs=_processes(0))))


@app.command()
def encode(folder: RunFolder) -> None:
    """Write the latents of a run folder: posterior means, the same for a scan alone or in any batch."""
    _again(folder, until="latents")
    typer.echo(str(folder / "latents.tsv"))


@app.command()
def analyse(
    folder: RunFolder,
    names: Annotated[list[str] | None, typer.Argument(help="Which analyses; all when none is named.")] = None,
) -> None:
    """Run analyses of a run folder: reconstruction, projections, lrcp, error_profile, agnostic."""
    _again(folder, until="findings", only=names)
    typer.echo(str(folder / "findings"))


@app.command()
def report(folder: RunFolder) -> None:
    """Write report.html from the files of a run folder."""
    from nilatent.report import build

    typer.echo(str(build(folder)))


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(help="Where results would be written.")] = Path(),
) -> None:
    """What is installed, what the machine has, and what to do where something is off."""
    from nilatent.doctor import examine

    checks = examine(folder)
    width = max(len(check.subject) for check in checks)
    for check in checks:
        typer.echo(f"{'!' if check.mend else ' '} {check.subject:<{width}}  {check.found}")
        if check.mend:
            typer.echo(f"  {'':<{width}}  -> {check.mend}")
    if any(check.mend for check in checks):
        raise typer.Exit(SOME_FAILED)


def main() -> None:
    """Entry point: errors the user can mend are printed as one paragraph, without a traceback."""
    try:
        app()
    except NilatentError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(BAD_USAGE)
    except OSError as error:
        # A full disk, a folder that cannot be written, a file where a folder should be.
        typer.echo(
            f"{type(error).__name__}: {error}. Check that the place exists, is writable and has room; what was finished "
            "is kept, and the same command goes on from there.",
            err=True,
        )
        sys.exit(BAD_USAGE)
