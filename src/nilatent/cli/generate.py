"""Commands that draw: synthetic cohorts, and ways through the latent space."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nilatent.cli.options import SOME_FAILED, Out, RunFolder, as_labels

generate_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Draw from the latent space of a run: images that show nobody, or somebody changed.",
)


class SampleDensity(StrEnum):
    """What samples are drawn from."""

    mixture = "mixture"
    prior = "prior"


def samples(
    run: RunFolder,
    out: Out,
    n: Annotated[int, typer.Option(min=1, help="How many; a later call with more goes on.")] = 100,
    density: Annotated[
        SampleDensity, typer.Option(help="Fitted to the latents of the training scans, or the prior of the model.")
    ] = SampleDensity.mixture,
    condition: Annotated[
        list[str] | None, typer.Option(help="Column=value that every sample has: age=70; repeat for several.")
    ] = None,
    like_cohort: Annotated[
        bool, typer.Option("--like-cohort", help="Draw age, sex and group together from the training subjects.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same samples.")] = 0,
    allow_copies: Annotated[
        bool, typer.Option("--allow-copies", help="Write also what is taken for a copy of a training scan.")
    ] = False,
    fold: Annotated[
        int | None, typer.Option(min=0, help="Draw from this cross-fitted model, not from the study's.")
    ] = None,
) -> None:
    """A synthetic cohort as a BIDS derivative, marked as such; resumes, and leaves copies of training scans out."""
    conditions = tuple(_condition(text) for text in condition or [])
    from nilatent.synthetic import SamplesConfig, export_samples

    config = SamplesConfig(n=n, density=density.value, conditions=conditions, seed=seed, allow_copies=allow_copies)
    written = export_samples(run, out, config, like_cohort=like_cohort, fold=fold)
    typer.echo(str(out))
    if len(written) < n:
        typer.echo(f"{n - len(written)} of {n} left out as copies of training scans: {out / 'excluded.tsv'}", err=True)
        raise typer.Exit(SOME_FAILED)


def _condition(text: str) -> tuple[str, str]:
    name, joined, value = (part.strip() for part in text.partition("="))
    if not (name and joined and value):
        raise typer.BadParameter(f"--condition is COLUMN=VALUE, such as age=70; got '{text}'.")
    return name, value


def across(
    run: RunFolder,
    target: Annotated[str, typer.Argument(help="The modality to predict: gm, or a name of --modality or --table.")],
    use: Annotated[
        list[str] | None, typer.Option("--from", help="From these, joined by commas; all others when none is named.")
    ] = None,
    scans: Annotated[list[str] | None, typer.Option(help="Only these scans, joined by commas.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A new folder; else generated/TARGET_from_... in the run.")
    ] = None,
) -> None:
    """One modality of the scans of a run, predicted from others by models that have not seen their subjects.

    Without --folds in the run, one model predicts all scans, and summary.tsv marks those that it has seen.
    """
    from nilatent.across import SUMMARY, predict_across

    folder = predict_across(run, target, use=as_labels(use), scans=as_labels(scans), out=out)
    typer.echo(str(folder / SUMMARY))


generate_app.command()(samples)
generate_app.command()(across)
