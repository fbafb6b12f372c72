"""Commands about the model: trained, searched, used."""

from pathlib import Path
from typing import Annotated

import typer

from nilatent.cli.options import (
    Columns,
    Devices,
    Nodes,
    Objective,
    Out,
    Procs,
    RunFolder,
    SeenBefore,
    Sources,
    column_aliases,
    list_failures,
    n_processes,
    on_machines,
    run_again,
)


def train(
    folder: RunFolder,
    devices: Devices = None,
    num_nodes: Nodes = None,
    fold: Annotated[
        int | None,
        typer.Option(
            min=0, help="Train the cross-fitted model of this fold alone, from 0, as a task of an array of jobs does."
        ),
    ] = None,
) -> None:
    """Train the model of a run folder on its volumes; resumes where it was stopped.

    Several machines that share the folder train together: torchrun or SLURM starts this command on each of them.
    """
    if fold is not None:
        from nilatent.config import read_config
        from nilatent.pipeline import train_one_fold

        train_one_fold(folder, read_config(folder / "study.toml", overrides=on_machines(devices, num_nodes)), fold)
        typer.echo(str(folder / "folds" / str(fold)))
        return
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


def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a run, or of its model.")],
    head: Annotated[str, typer.Argument(help="Folder of a head, or the name of one in the run's heads/.")],
    sources: Sources,
    out: Out,
    column: Columns = None,
    image: Annotated[str, typer.Option(help="Which image of a folder: auto, T1w or GM.")] = "auto",
    seen: Annotated[
        SeenBefore, typer.Option(help="What to do with subjects that the model or the head knows, by name or by scan.")
    ] = SeenBefore.refuse,
    allow_other_preparation: Annotated[
        bool,
        typer.Option("--allow-other-preparation", help="Go on with scans that were made otherwise than the model's."),
    ] = False,
    n_procs: Procs = 0,
) -> None:
    """What a frozen model and head say of scans from elsewhere; nothing is fitted to them."""
    aliases, processes = column_aliases(column), n_processes(n_procs)
    from nilatent.external import PredictConfig
    from nilatent.external import predict as predict_sources
    from nilatent.head import named_head

    of_run = (model / "model" / "config.toml").is_file()
    place = named_head(model / "heads", head) if of_run else None
    done = predict_sources(
        model / "model" if of_run else model,
        Path(head) if place is None else place,
        sources,
        out,
        config=PredictConfig(
            column_aliases=aliases,
            image=image,
            seen=seen.value,
            allow_other_preparation=allow_other_preparation,
        ),
        study=model if of_run else None,
        n_procs=processes,
    )
    typer.echo(done.finding.answer)
    typer.echo(str(out / "predictions.tsv"))
    list_failures(len(done.predictions), done.excluded)
