"""Commands about a study: the whole river, and what is asked of it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nilatent.cli.options import (
    DEMO_SUBJECTS,
    SOME_FAILED,
    Columns,
    Config,
    Dask,
    Devices,
    ModelName,
    Out,
    Preset,
    Procs,
    RunFolder,
    Seed,
    Sources,
    Until,
    column_aliases,
    list_failures,
    n_processes,
    named_images,
    named_tables,
    on_machines,
    run_again,
)


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
    given |= {f"study.columns.{ours}": theirs for ours, theirs in column_aliases(column).items()}
    return {name: value for name, value in given.items() if value is not None}


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
    column: Columns = None,
    exclude: Annotated[Path | None, typer.Option(help="File with one scan or subject per line to leave out.")] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(help="Further images of the scans, NAME=SUFFIX or NAME=COLUMN: flair=FLAIR; repeat for several."),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(help="Measurements beside the images, NAME=COLUMNS: scores=BDI,MADRS; repeat for several."),
    ] = None,
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
    train_on: Annotated[
        list[str] | None,
        typer.Option(help="Train on these data sets alone; repeat for several. The others are new to it."),
    ] = None,
    n_procs: Procs = 0,
    dask: Dask = "",
    until: Annotated[
        Until, typer.Option(help="Last stage; split: scans are prepared, packed and divided, and nothing is trained.")
    ] = Until.report,
) -> None:
    """From scans to a report: the whole river; resumes, and skips what is finished."""
    overrides = _study(group, contrast, covariates, site, column, exclude, seed) | on_machines(devices, None)
    overrides |= {"model.name": model.value} if model else {}
    overrides |= {"folds": folds} if folds else {}
    overrides |= {"split.train_on": train_on} if train_on else {}
    overrides |= {f"study.modalities.{name}": source for name, source in named_images(modality).items()}
    overrides |= {f"study.tables.{name}": columns for name, columns in named_tables(table).items()}
    processes = n_processes(n_procs, scheduler=dask)
    from nilatent.config import read_config
    from nilatent.pipeline import run as run_river

    settings = read_config(config, preset=preset.value, overrides=overrides | ({"remedy": True} if remedy else {}))
    outcome = run_river(sources, out, settings, n_procs=processes, scheduler=dask, until=until.value)
    typer.echo(str(outcome.report if until is Until.report else out))
    list_failures(outcome.n_scans, outcome.excluded, outcome.without)


def demo(
    out: Annotated[Path, typer.Argument(help="Folder that receives the results.")] = Path("demo"),
    n_subjects: Annotated[int, typer.Option(min=40, help="Simulated subjects.")] = DEMO_SUBJECTS,
    seed: Annotated[int, typer.Option(help="Seed of everything that draws.")] = 0,
    n_procs: Procs = 0,
) -> None:
    """Simulate a cohort with planted atrophy and run the whole river on it."""
    from nilatent.pipeline import demonstrate

    outcome = demonstrate(out, n_subjects=n_subjects, seed=seed, n_procs=n_processes(n_procs))
    typer.echo(f"The report is at {outcome.report}")
    list_failures(outcome.n_scans, outcome.excluded)


def analyse(
    folder: RunFolder,
    names: Annotated[list[str] | None, typer.Argument(help="Which analyses; all when none is named.")] = None,
) -> None:
    """Run analyses of a run folder.

    There are reconstruction, projections, lrcp, error_profile, agnostic, prediction, harmonise, normative, leaks, sensitivity,
    counterfactual, fidelity, blur, longitudinal, multimodal and fusion.
    """
    run_again(folder, until="findings", only=names)
    typer.echo(str(folder / "findings"))


def report(
    folder: RunFolder,
    other: Annotated[Path | None, typer.Argument(help="A second run folder, shown beside the first.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File or folder of the page of two studies.")] = None,
    png: Annotated[bool, typer.Option("--png", help="Write figures/*.png at 300 dots per inch too.")] = False,
) -> None:
    """Write report.html from the files of a run folder; of two, one page that shows them side by side."""
    if other is not None:
        from nilatent.report.compare import compare

        typer.echo(str(compare(folder, other, out)))
        return
    if out is not None:
        raise typer.BadParameter(
            "It is for two studies; the report of one is written into its folder.", param_hint="--out"
        )
    from nilatent.report import build, embedded

    typer.echo(str(build(folder, png=png)))
    if said := embedded(folder):
        typer.echo(said)


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
