"""Commands about the model: trained, searched, used."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nilatent.cli.options import Devices, Nodes, Objective, RunFolder, n_processes, on_machines, run_again

if TYPE_CHECKING:
    pass


def train(folder: RunFolder, devices: Devices = None, num_nodes: Nodes = None) -> None:
    """Train the model of a run folder on its volumes; resumes where it was stopped.

    Several machines that share the folder train together: torchrun or SLURM starts this command on each of them.
    """
    run_again(folder, until="model", overrides=on_machines(devices, num_nodes))
    typer.echo(str(folder / "model"))


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
    typer.echo(str(search_settings(folder, settings, n_procs=n_processes(0))))


def encode(folder: RunFolder) -> None:
    """Write the latents of a run folder: posterior means, the same for a scan alone or in any batch."""
    run_again(folder, until="latents")
    typer.echo(str(folder / "latents.tsv"))
