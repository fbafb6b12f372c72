"""A strip of brains that change step by step: all steps side by side, one step as a frame, and the frames as a moving picture."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from nilatent.errors import GridError
from nilatent.finding import Finding
from nilatent.plots import brain, style

MAX_COLUMNS = 9
"""Steps shown side by side; of more, so many at even distances."""
PLANES: tuple[tuple[brain.Plane, int], ...] = (("axial", 2), ("coronal", 1), ("sagittal", 0))
DIRECTION_PLANES: tuple[brain.Plane, ...] = ("axial", "coronal")
FRAME_INCHES, FRAME_DPI = 7.2, 110
BESIDE_INCHES = 2.3
"""Room for the labels of the rows and for two colour bars."""
LABEL_CHARACTERS = 120
"""Of all labels in a row together."""
# A handful of voxels would make all other differences look like none.
DIFFERENCE_QUANTILE = 0.999
MILLISECONDS, MILLISECONDS_AT_ENDS = 350, 900


@dataclass(frozen=True, eq=False)
class Strip:
    """What is drawn.

    Parameters
    ----------
    title : str
        What changes from step to step.
    labels : tuple[str, ...]
        Of each step, short.
    values : ndarray
        (step, x, y, z) images on a RAS grid.
    differences : ndarray
        (step, x, y, z) images minus that of the reference step; NaN outside the mask, which is left black.
    affine : ndarray
        (4, 4) voxel to mm.
    positions_mm : tuple[float, float, float]
        Where the sagittal, the coronal and the axial slice lie.
    unit : str
        Of the values.
    reference : str
        Label of the step that the differences are from.

    Raises
    ------
    GridError
        When there are not as many labels, values and differences.
    """

    title: str
    labels: tuple[str, ...]
    values: np.ndarray
    differences: np.ndarray
    affine: np.ndarray
    positions_mm: tuple[float, float, float]
    unit: str
    reference: str

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        if self.values.shape != self.differences.shape or len(self.labels) != len(self.values) or not self.labels:
            raise GridError(
                f"A strip has one label, image and difference per step, got {len(self.labels)}, {self.values.shape} and "
                f"{self.differences.shape}. Give as many of each."
            )

    @property
    def amount(self) -> Normalize:
        """Grey levels, the same for all steps."""
        low, high = float(min(self.values.min(), 0.0)), float(self.values.max())
        return Normalize(low, high if high > low else low + 1.0, clip=True)

    @property
    def change(self) -> Normalize:
        """Colours of the differences about zero, the same for all steps."""
        sizes = np.abs(self.differences[np.isfinite(self.differences) & (self.differences != 0)])
        farthest = float(np.quantile(sizes, DIFFERENCE_QUANTILE)) if sizes.size else 1.0
        return Normalize(-farthest, farthest, clip=True)


@mpl.rc_context(style.STYLE)
def draw(strip: Strip) -> Figure:
    """All steps side by side: an axial and a coronal slice, each above its difference from the reference step."""
    steps = np.unique(np.linspace(0, len(strip.labels) - 1, MAX_COLUMNS).round().astype(int))
    planes = PLANES[:2]
    width, height = _panel(strip, planes)
    blank = brain.Cut(np.empty((0, 0)), (0.0, width, 0.0, height), "axial", None)
    drawn, panels = brain.mosaic([blank] * len(steps), n_rows=2 * len(planes), beside_inches=BESIDE_INCHES)
    for column, step in enumerate(steps):
        panels[0, column].set_title(
            style.plain(strip.labels[step], width=LABEL_CHARACTERS // len(steps)), fontsize=7.5, pad=3
        )
        for row, plane in enumerate(planes):
            above, below = panels[2 * row : 2 * row + 2, column]
            _pair(above, below, strip, int(step), plane, size=(width, height))
    for row, words in enumerate(("drawn", "change") * len(planes)):
        panels[row, 0].set_ylabel(words, fontsize=8.0)
    _bars(drawn, strip, list(panels.flat))
    drawn.suptitle(style.plain(strip.title), fontsize=9.5, x=0.01, ha="left")
    return drawn


@mpl.rc_context(style.STYLE)
def draw_frame(strip: Strip, step: int) -> Figure:
    """One step in three planes, above its difference from the reference step; every frame has the same scales."""
    width, height = _panel(strip, PLANES)
    inches = (FRAME_INCHES - 1.7) / (3 * width)
    drawn = style.figure(FRAME_INCHES, 2 * inches * height + 0.55)
    panels = drawn.subplots(2, 3, squeeze=False)
    for column, plane in enumerate(PLANES):
        above, below = panels[:, column]
        _pair(above, below, strip, step, plane, size=(width, height))
    for row, words in enumerate(("drawn", "change")):
        panels[row, 0].set_ylabel(words, fontsize=8.0)
    _bars(drawn, strip, list(panels.flat))
    drawn.suptitle(style.plain(strip.labels[step]), fontsize=9.5, x=0.01, ha="left")
    return drawn


@mpl.rc_context(style.STYLE)
def draw_direction(finding: Finding, name: str, step: float) -> Figure:
    """One step along a direction, above its change from the middle; every step has the same scales.

    Parameters
    ----------
    finding
        Of `sensitivity`: data `axial` (shown, step, x, y), `coronal` (shown, step, x, z) and the same of the change.
    name, step
        One of its `shown` and one of its `step`.
    """
    one = finding.data.sel(shown=name)
    amount = Normalize(0.0, max(float(one[plane].max()) for plane in DIRECTION_PLANES) or 1.0, clip=True)
    farthest = max(float(np.abs(one[f"{plane}_change"]).max()) for plane in DIRECTION_PLANES) or 1.0
    change = Normalize(-farthest, farthest, clip=True)
    drawn = style.figure(FRAME_INCHES, FRAME_INCHES * 0.72)
    panels = drawn.subplots(2, len(DIRECTION_PLANES), squeeze=False)
    for column, plane in enumerate(DIRECTION_PLANES):
        for row, (kind, norm, colours) in enumerate(
            ((plane, amount, "gray"), (f"{plane}_change", change, style.SIGNED_MAP))
        ):
            values = one[kind].sel(step=step)
            across, up = (np.asarray(one[axis].values, dtype=float) for axis in values.dims)
            edges = [end for mm in (across, up) for end in (1.5 * mm[0] - 0.5 * mm[1], 1.5 * mm[-1] - 0.5 * mm[-2])]
            extent = (edges[0], edges[1], edges[2], edges[3])
            shown = brain.Cut(values.values.T, extent, plane, float(one[f"{plane}_mm"]))
            brain.show(panels[row, column], shown, norm=norm, colour_map=colours)
    for row, (words, norm, colours) in enumerate((("drawn", amount, "gray"), ("change", change, style.SIGNED_MAP))):
        panels[row, 0].set_ylabel(words, fontsize=8.0)
        brain.colour_bar(drawn, list(panels[row]), norm, colours, brain.VOXEL if row == 0 else brain.VOXEL_CHANGE)
    return drawn


def to_png(drawn: Figure, *, dpi: int = FRAME_DPI) -> bytes:
    """PNG of a figure on white, without a date, so that the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context(style.STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        drawn.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def to_gif(frames: Sequence[bytes]) -> bytes:
    """An animated GIF that goes through PNG frames there and back, without end."""
    pictures = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    # One palette of all frames: with one each, a colour would change although its value does not.
    width, height = pictures[0].size
    together = Image.new("RGB", (width, height * len(pictures)))
    for number, picture in enumerate(pictures):
        together.paste(picture, (0, number * height))
    palette = together.quantize(colors=256)
    few = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    shown = [*few, *few[-2:0:-1]]
    waits = [MILLISECONDS] * len(shown)
    waits[0] = waits[len(few) - 1] = MILLISECONDS_AT_ENDS
    buffer = io.BytesIO()
    shown[0].save(buffer, format="GIF", save_all=True, append_images=shown[1:], duration=waits, loop=0, disposal=1)
    return buffer.getvalue()


def _panel(strip: Strip, planes: Sequence[tuple[brain.Plane, int]]) -> tuple[float, float]:
    """Width and height in mm that hold a slice of each plane."""
    sizes = [
        brain.size(brain.cut(strip.values[0], strip.affine, plane=plane, position_mm=strip.positions_mm[axis]))
        for plane, axis in planes
    ]
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _pair(
    above: Axes, below: Axes, strip: Strip, step: int, plane: tuple[brain.Plane, int], *, size: tuple[float, float]
) -> None:
    """A slice and, below it, its difference over the same slice."""
    name, axis = plane
    position_mm = strip.positions_mm[axis]
    seen = brain.cut(strip.values[step], strip.affine, plane=name, position_mm=position_mm)
    change = brain.cut(strip.differences[step], strip.affine, plane=name, position_mm=position_mm)
    brain.show(above, seen, norm=strip.amount, colour_map="gray")
    brain.show(below, change, norm=strip.change, colour_map=style.SIGNED_MAP)
    for panel, shown in ((above, seen), (below, change)):
        brain.in_panel(panel, shown, width=size[0], height=size[1])


def _bars(drawn: Figure, strip: Strip, panels: list[Axes]) -> None:
    brain.colour_bar(drawn, panels, strip.amount, "gray", strip.unit)
    words = f"change from {strip.reference}"
    brain.colour_bar(drawn, panels, strip.change, style.SIGNED_MAP, words, extend="both")
