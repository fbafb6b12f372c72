"""Commands along ways through the latent space of a run; each writes into a folder of its own and overwrites nothing."""

from enum import StrEnum
from typing import Annotated

import typer

from nilatent.cli.options import Out, RunFolder


class Space(StrEnum):
    """On which voxels volumes are written."""

    model = "model"
    subject = "subject"


Steps = Annotated[int, typer.Option(min=2, max=25, help="Images on the way.")]
InSpace = Annotated[
    Space,
    typer.Option(help="The grid of the model, or the voxels of the subject's own file (of raw heads only)."),
]


def traverse(
    run: RunFolder,
    out: Out,
    direction: Annotated[
        str,
        typer.Option(help="z003, pc1, a covariate such as age, pls:age, group, discriminant, group:patient:control."),
    ],
    n_steps: Steps = 5,
    range_units: Annotated[
        float | None,
        typer.Option(
            "--range", help="Units to either side: SD, tens of years, group differences. Left out: 2, of groups 1."
        ),
    ] = None,
    scan: Annotated[str, typer.Option(help="Move this scan; without it the mean of the training scans.")] = "",
    space: InSpace = Space.model,
) -> None:
    """Brains along a direction of the latent space: volumes, regional effects, a strip, a moving picture and a slider."""
    from nilatent.travel import traverse as walk

    folder = walk(run, out, direction=direction, n_steps=n_steps, range_units=range_units, scan=scan, space=space.value)
    typer.echo(str(folder / "slider.html"))


def interpolate(
    run: RunFolder,
    out: Out,
    scan_a: Annotated[str, typer.Argument(help="Scan at which the way begins.")],
    scan_b: Annotated[str, typer.Argument(help="Scan at which it ends.")],
    n_steps: Steps = 5,
    space: InSpace = Space.model,
) -> None:
    """Brains between two scans on a straight line in the latent space, beside cross-fades of their voxels."""
    from nilatent.travel import interpolate as walk

    folder = walk(run, out, scan_a, scan_b, n_steps=n_steps, space=space.value)
    typer.echo(str(folder / "slider.html"))


def counterfactual(
    run: RunFolder,
    out: Out,
    scan: Annotated[str, typer.Option(help="The scan.")],
    change: Annotated[
        list[str], typer.Option(help="COLUMN=VALUE, repeated: age=+10 adds, age=70 sets, group=control replaces.")
    ],
    n_steps: Steps = 5,
    space: InSpace = Space.model,
) -> None:
    """A brain as the model expects it ten years older, or as a control: what differs between people, not a forecast."""
    changes = {}
    for pair in change:
        column, joined, value = pair.partition("=")
        if not (column and joined and value) or column in changes:
            raise typer.BadParameter(f"--change is COLUMN=VALUE, each column once, such as age=+10; got '{pair}'.")
        changes[column] = value
    from nilatent.travel import counterfactual as walk

    folder = walk(run, out, scan=scan, changes=changes, n_steps=n_steps, space=space.value)
    typer.echo(str(folder / "slider.html"))
