"""The command line: each command reads nouns from disk, calls one public function and writes the noun back."""

import sys

import typer

from nilatent.cli.bids_app import bids_app
from nilatent.cli.explore import explore
from nilatent.cli.generate import generate_app
from nilatent.cli.model import encode, predict, search, train
from nilatent.cli.options import BAD_USAGE
from nilatent.cli.scans import native, prepare, simulate
from nilatent.cli.study import analyse, demo, doctor, report, run
from nilatent.cli.travel import counterfactual, interpolate, traverse
from nilatent.errors import NilatentError
from nilatent.extras import missing_extra

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learn latent representations of 3D brain MRI, and say with honest statistics what they know.",
)
for command in (run, demo, simulate, prepare, native, train, search, encode, predict, analyse, report, explore, doctor):
    app.command()(command)
# BIDS Apps write several labels after one flag; those beyond the first come as arguments nobody asked for.
app.command(context_settings={"allow_extra_args": True})(bids_app)
for way in (traverse, interpolate, counterfactual):
    generate_app.command()(way)
app.add_typer(generate_app, name="generate")


def main() -> None:
    """Entry point: errors the user can mend are printed as one paragraph, without a traceback."""
    try:
        app()
    except NilatentError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(BAD_USAGE)
    except ModuleNotFoundError as error:
        told = missing_extra(error)
        if told is None:
            raise
        typer.echo(f"{type(told).__name__}: {told}", err=True)
        sys.exit(BAD_USAGE)
    except OSError as error:
        # A full disk, a folder that cannot be written, a file where a folder should be.
        typer.echo(
            f"{type(error).__name__}: {error}. Check that the place exists, is writable and has room; what was finished "
            "is kept, and the same command goes on from there.",
            err=True,
        )
        sys.exit(BAD_USAGE)
