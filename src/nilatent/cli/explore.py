"""The command that looks into a run."""

from typing import Annotated

import typer

from nilatent.cli.options import RunFolder


def explore(
    run: RunFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine alone; 0 takes a free one.")] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page, or only print its address.")
    ] = True,
) -> None:
    """Look into the latent space of a run: any scan behind its point, two side by side, sliders that draw as they move.

    The page is served to this machine alone, under an address with a token, until Ctrl+C; nothing is written into the run.
    """
    from nilatent.explore import explore as serve

    serve(run, port=port, open_browser=browser, say=typer.echo)
