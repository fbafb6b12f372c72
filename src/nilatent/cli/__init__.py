"""The command line: each command reads nouns from disk, calls one public function and writes the noun back."""

import sys

import typer

from nilatent.cli.explore import explore
from nilatent.cli.generate import generate_app
from nilatent.cli.model import encode, predict, search, train
from nilatent.cli.options import BAD_USAGE
from nilatent.cli.scans import native, prepare, simulate
from nilatent.cli.study import analyse, demo, doctor, report, run
from nilatent.cli.travel import counterfactual, interpolate, traverse
from nilatent.errors import NilatentError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learn latent representations of 3D brain MRI, and say with honest statistics what they know.",
)
for command in (run, demo, simulate, prepare, native, train, search, encode, predict, analyse, report, explore, doctor):
    app.command()(command)
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
    except OSError as error:
        # A full disk, a folder that cannot be written, a file where a folder should be.
        typer.echo(
            f"{type(error).__name__}: {error}. Check that the place exists, is writable and has room; what was finished "
            "is kept, and the same command goes on from there.",
            err=True,
        )
        sys.exit(BAD_USAGE)
