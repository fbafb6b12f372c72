"""The command of a container: the river by the two levels of a BIDS App."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nilatent.cli.options import Config, Out, Preset, Procs, Seed, as_labels, list_failures, n_processes

# Flags of a BIDS App are written with underscores; ours with dashes are taken too.
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--participant-label",
        "--participant_label",
        help="Only these participants, with or without sub-: several by spaces, commas or repetition.",
    ),
]
SessionLabels = Annotated[
    list[str] | None,
    typer.Option("--session-label", "--session_label", help="Only these sessions: several by commas or repetition."),
]


class Level(StrEnum):
    """What a BIDS App looks at."""

    participant = "participant"
    group = "group"


def _say_version(wanted: bool) -> None:
    if wanted:
        from nilatent import __version__

        typer.echo(__version__)
        raise typer.Exit


def bids_app(
    context: typer.Context,
    bids_dir: Annotated[Path, typer.Argument(help="BIDS folder; only read.")],
    output_dir: Out,
    analysis_level: Annotated[
        Level,
        typer.Argument(
            help="participant: prepare scans, in several calls if wished; group: the whole river, to the report."
        ),
    ],
    participant_label: Labels = None,
    session_label: SessionLabels = None,
    config: Config = None,
    preset: Annotated[Preset, typer.Option(help="Resolution and size for a kind of machine.")] = Preset.cpu_small,
    seed: Seed = None,
    n_procs: Procs = 0,
    skip_bids_validation: Annotated[
        bool,
        typer.Option(
            "--skip-bids-validation",
            "--skip_bids_validation",
            help="Take a folder without a dataset_description.json that names data set and version of BIDS.",
        ),
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """The river as a BIDS App: BIDS_DIR OUTPUT_DIR participant|group, with the same settings at both levels.

    The participant level fills OUTPUT_DIR/prepared, and several calls may share it at the same time. The group level finds
    what is done there, prepares what is missing, and goes on as `nilatent run` does.
    """
    labels = _labels(participant_label, session_label, list(context.args))
    sessions = as_labels(session_label)
    if analysis_level is Level.group and (labels or sessions):
        raise typer.BadParameter(
            "The group level is about all participants. Leave people out by a list: study.exclude in the TOML of --config.",
            param_hint="--participant-label",
        )
    if not skip_bids_validation:
        _check_described(bids_dir)
    processes = n_processes(n_procs)
    from nilatent.config import read_config

    settings = read_config(config, preset=preset.value, overrides={} if seed is None else {"seed": seed})
    if analysis_level is Level.group:
        from nilatent.pipeline import run

        outcome = run([bids_dir], output_dir, settings, n_procs=processes)
        typer.echo(str(outcome.report))
        list_failures(outcome.n_scans, outcome.excluded, outcome.without)
        return
    if settings.recipe.within_subject and sessions:
        raise typer.BadParameter(
            "It would make a template of a part of a person's visits. Divide the cohort by --participant-label.",
            param_hint="--session-label",
        )
    from nilatent.cohort import read_cohort, select
    from nilatent.preprocess.recipe import prepare

    study = settings.study
    cohort = read_cohort([bids_dir], suffix=study.image, column_aliases=study.columns)
    part = select(cohort, labels, sessions=sessions)
    # Tables of the whole cohort are the group level's, so that any number of these calls may share the folder.
    done = prepare(part, output_dir / "prepared", settings.recipe, n_procs=processes, tables=False)
    typer.echo(str(output_dir / "prepared"))
    list_failures(len(done.scans), done.excluded)


def _labels(given: list[str] | None, sessions: list[str] | None, beyond: list[str]) -> list[str]:
    """Participants, those included that follow the first one without a flag of their own: ``--participant_label 01 02``."""
    odd = [word for word in beyond if word.startswith("-")]
    if odd or (beyond and (not given or sessions)):
        raise typer.BadParameter(
            f"'{(odd or beyond)[0]}' belongs to no option. After BIDS_DIR, OUTPUT_DIR and the level come options only; give "
            "several labels by commas."
        )
    return as_labels([*(given or []), *beyond])


def _check_described(folder: Path) -> None:
    """Refuse a folder that does not say it is BIDS; the scans themselves are judged one by one when they are read."""
    place = folder / "dataset_description.json"
    try:
        described = json.loads(place.read_text(encoding="utf-8-sig"))
        missing = [name for name in ("Name", "BIDSVersion") if not described.get(name)]
        wrong = f"lacks {' and '.join(missing)}" if missing else ""
    except FileNotFoundError:
        wrong = "does not exist"
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        wrong = f"cannot be read ({type(error).__name__})"
    if wrong:
        raise typer.BadParameter(
            f"{place} {wrong}, so {folder} is no BIDS data set. Mend it, or give --skip-bids-validation.",
            param_hint="BIDS_DIR",
        )
