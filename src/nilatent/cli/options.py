"""What commands share: their options, and what they do with them."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

DONE, SOME_FAILED, BAD_USAGE = 0, 1, 2
DEMO_SUBJECTS = 160


class Until(StrEnum):
    """Last stage of a run."""

    divided = "split"
    model = "model"
    latents = "latents"
    findings = "findings"
    report = "report"


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


class SeenBefore(StrEnum):
    """What to do with subjects that a model or a head knows."""

    refuse = "refuse"
    leave_out = "leave out"
    by_scan = "by scan"


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
Columns = Annotated[list[str] | None, typer.Option(help="Our name of a column = the source's: sex=gender.")]
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
    typer.Option(
        "--dask",
        help="Prepare, and train folds, on the workers of a dask scheduler: tcp://HOST:8786, or its scheduler file.",
    ),
]

Devices = Annotated[
    int | None,
    typer.Option(min=1, help="Train on so many GPUs (or processes, on a processor) of each machine."),
]
Nodes = Annotated[int | None, typer.Option(min=1, help="Train on so many machines, each of which runs this command.")]


def column_aliases(column: list[str] | None) -> dict[str, str]:
    """Our names of columns to the source's."""
    aliases = {}
    for pair in column or []:
        ours, joined, theirs = pair.partition("=")
        if not (ours and joined and theirs):
            raise typer.BadParameter(f"--column is OURS=THEIRS, such as sex=gender; got '{pair}'.")
        aliases[ours] = theirs
    return aliases


def named_images(modality: list[str] | None) -> dict[str, str]:
    """Names of further images to the suffix or column that holds them."""
    images = {}
    for pair in modality or []:
        name, joined, source = (part.strip() for part in pair.partition("="))
        if not (name and joined and source) or name in images:
            raise typer.BadParameter(
                f"--modality is NAME=SUFFIX or NAME=COLUMN, each name once, such as flair=FLAIR; got '{pair}'."
            )
        images[name] = source
    return images


def named_tables(table: list[str] | None) -> dict[str, list[str]]:
    """Names of tables to their columns."""
    tables = {}
    for pair in table or []:
        name, joined, columns = pair.partition("=")
        listed = [column.strip() for column in columns.split(",") if column.strip()]
        if not (name.strip() and joined and listed) or name.strip() in tables:
            raise typer.BadParameter(
                f"--table is NAME=COLUMN,COLUMN, each name once, such as scores=BDI,MADRS; got '{pair}'."
            )
        tables[name.strip()] = listed
    return tables


def n_processes(n_procs: int, *, scheduler: str = "") -> int:
    """The number asked for, or as many as fit; none on this machine where a scheduler is named."""
    if scheduler and n_procs:
        raise typer.BadParameter("--n-procs is for this machine and --dask for others. Give one of the two.")
    if n_procs:
        return n_procs
    from nilatent.preprocess.workers import fitting_processes

    return fitting_processes()


def as_labels(given: list[str] | None) -> list[str]:
    """Labels given by commas, spaces or repetition."""
    return [label for text in given or [] for label in text.replace(",", " ").split()]


def on_machines(devices: int | None, num_nodes: int | None) -> dict[str, Any]:
    """Settings of devices and machines, where they were given."""
    given = {"training.devices": devices, "training.num_nodes": num_nodes}
    return {name: value for name, value in given.items() if value is not None}


def list_failures(n_scans: int, excluded: "pd.DataFrame", without: "pd.DataFrame | None" = None) -> None:
    """Say which scans, and which of their further images, failed and why, and leave with the exit code that says so."""
    failed = excluded[excluded["stage"] != "study"]
    if not failed.empty:
        typer.echo(f"{len(failed)} left out, {n_scans} done:", err=True)
    for row in failed.itertuples():
        typer.echo(f"  {row.scan_id} [{row.stage}, {row.rule}]: {row.reason}", err=True)
    if without is not None and not without.empty:
        typer.echo(f"{len(without)} further images could not be used; their scans went on without them:", err=True)
        for row in without.itertuples():
            typer.echo(f"  {row.scan_id} [{row.modality}, {row.rule}]: {row.reason}", err=True)
    if not failed.empty or (without is not None and not without.empty):
        raise typer.Exit(SOME_FAILED)


def run_again(
    folder: Path, *, until: str, only: list[str] | None = None, overrides: dict[str, Any] | None = None
) -> None:
    """Go on with a run folder by its own settings."""
    from nilatent.config import read_config
    from nilatent.pipeline import run as run_river

    run_river([], folder, read_config(folder / "study.toml", overrides=overrides), until=until, only=only or [])
