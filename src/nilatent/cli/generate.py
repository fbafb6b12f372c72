"""Commands that draw: synthetic cohorts, and ways through the latent space."""

from enum import StrEnum
from typing import Annotated

import typer

from nilatent.cli.options import SOME_FAILED, Out, RunFolder

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


generate_app.command()(samples)
