"""Slices of volumes and maps on the template; every slice says where left and right are.

Volumes are RAS: the first axis grows to the right. Slices are shown as in MNI papers (neurological convention):
left is on the left, which every slice says itself.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine

from nilatent.errors import GridError
from nilatent.plots import style

Plane = Literal["sagittal", "coronal", "axial"]

_AXIS: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
_LETTER: dict[Plane, str] = {"sagittal": "x", "coronal": "y", "axial": "z"}
_EDGES: dict[Plane, tuple[str, str]] = {"sagittal": ("P", "A"), "coronal": ("L", "R"), "axial": ("L", "R")}
_PANEL = "#000000"
_MARK = "#ffffff"

VOXEL, VOXEL_CHANGE = "value of a voxel", "change of a voxel"
"""Labels of colour bars where the kind of image is not known: a fraction of tissue, or an intensity."""
WIDTH_INCHES = 8.5
BAR_INCHES = 0.8
LABEL_CHARACTERS = 30
"""Of a line beside a colour bar that is as high as a map: no line is longer than the bar."""

AXIAL_MM = (-36.0, -24.0, -12.0, 0.0, 12.0, 24.0, 36.0, 52.0)
CORONAL_MM = (-80.0, -60.0, -40.0, -24.0, -8.0, 8.0, 28.0, 48.0)
"""Positions of the mosaic in mm: the same in every report, so that two reports can be laid side by side."""


@dataclass(frozen=True, eq=False)
class Cut:
    """One plane through a volume, ready for `imshow(origin="lower")`.

    Attributes
    ----------
    values : (vertical, horizontal) array
        Vertical grows upwards or to the front, horizontal to the right (sagittal: to the front).
    extent
        Left, right, bottom and top edge in mm.
    plane
        Which of the three planes.
    position_mm
        Centre of the voxels shown, in mm; None when it is not known.
    """

    values: np.ndarray
    extent: tuple[float, float, float, float]
    plane: Plane
    position_mm: float | None


def cut(values: np.ndarray, affine: np.ndarray, *, plane: Plane, position_mm: float) -> Cut:
    """The plane of a RAS volume nearest to a position.

    Parameters
    ----------
    values : (x, y, z) array
        Volume on a RAS grid without rotation.
    affine : (4, 4) array
        Voxel to mm.
    plane, position_mm
        Which plane, and where in mm along its axis; outside the volume the nearest end is taken.

    Raises
    ------
    GridError
        When the affine is rotated or flipped: left and right could not be told from it.
    """
    if values.ndim != 3:
        raise GridError(f"a slice needs a volume of three axes, this one has {values.ndim}. Give one volume.")
    linear = affine[:3, :3]
    if np.any(np.diag(linear) <= 0) or not np.allclose(linear, np.diag(np.diag(linear)), atol=1e-4):
        raise GridError(
            f"slices need a RAS grid without rotation, the affine is {np.round(linear, 3).tolist()}. "
            "Put the volume on a Grid first."
        )
    axis = _AXIS[plane]
    index = round(float((position_mm - affine[axis, 3]) / linear[axis, axis]))
    index = min(max(index, 0), values.shape[axis] - 1)
    across, up = (other for other in range(3) if other != axis)
    edges = [
        float(affine[other, 3] + (voxel - 0.5) * linear[other, other])
        for other in (across, up)
        for voxel in (0, values.shape[other])
    ]
    return Cut(
        np.take(values, index, axis=axis).T,
        (edges[0], edges[1], edges[2], edges[3]),
        plane,
        float(affine[axis, 3] + index * linear[axis, axis]),
    )


def show(
    axes: Axes, shown: Cut, *, norm: Normalize, colour_map: str | Colormap, mark: bool = True, position: bool = True
) -> AxesImage:
    """Draw a cut and mark its sides.

    Parameters
    ----------
    axes, shown
        Where and what. Not-a-number is transparent.
    norm, colour_map
        Values to colours.
    mark, position
        Write the side letters; write the position in mm. An overlay on a marked slice needs neither.
    """
    image = axes.imshow(
        shown.values, origin="lower", extent=shown.extent, norm=norm, cmap=colour_map, interpolation="none"
    )
    if mark:
        axes.set_facecolor(_PANEL)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        for x, letter, side in zip((0.03, 0.97), _EDGES[shown.plane], ("left", "right"), strict=True):
            _write(axes, x, 0.97, letter, size=7.5, ha=side, va="top")
    if position and shown.position_mm is not None:
        _write(axes, 0.03, 0.03, _place(shown.plane, shown.position_mm), size=7.3, ha="left", va="bottom")
    return image


def _write(axes: Axes, x: float, y: float, words: str, *, size: float, ha: str, va: str) -> None:
    # Inside its panel by construction, so the layout need not measure it: with dozens of panels that takes seconds.
    # The shade keeps white letters legible over light parts of a map; an outline would turn them into paths.
    shade = {"facecolor": _PANEL, "alpha": 0.55, "lw": 0, "pad": 0.8}
    written = axes.text(x, y, words, transform=axes.transAxes, color=_MARK, fontsize=size, ha=ha, va=va, bbox=shade)
    written.set_in_layout(False)


def in_panel(axes: Axes, shown: Cut, *, width: float, height: float) -> None:
    """Show a cut in the middle of a panel of the given size, in its own units, so that panels of two planes align."""
    left, right, bottom, top = shown.extent
    axes.set_xlim((left + right - width) / 2, (left + right + width) / 2)
    axes.set_ylim((bottom + top - height) / 2, (bottom + top + height) / 2)


def _place(plane: Plane, position_mm: float) -> str:
    """Position in words; a sagittal slice says which half of the brain it is in."""
    words = f"{_LETTER[plane]} {position_mm:.0f} mm".replace("-", "−")
    if plane != "sagittal":
        return words
    return f"{words} ({'L' if position_mm < 0 else 'R' if position_mm > 0 else 'L|R'})"


def colour_bar(
    drawn: Figure | SubFigure,
    axes: list[Axes],
    norm: Normalize,
    colour_map: str,
    label: str,
    *,
    extend: str = "neither",
    wrap: int = LABEL_CHARACTERS,
) -> None:
    """A colour bar with its unit beside the given axes, in lines of so many characters.

    `extend` says at which end values go beyond it. Lines that are longer than the bar would be cut off.
    """
    bar = drawn.colorbar(ScalarMappable(norm, colour_map), ax=axes, shrink=0.8, aspect=24, pad=0.012, extend=extend)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)
    bar.set_label("\n".join(textwrap.wrap(style.plain(label), wrap)), fontsize=8)


def scale(values: np.ndarray, *, limits: tuple[float, float] | None) -> tuple[Normalize, str]:
    """Norm and colour map of a map: diverging about zero when it has both signs, else from zero to its largest.

    Parameters
    ----------
    values : array
        What is shown; not-a-number counts for nothing.
    limits
        Ends of the scale where they are fixed, so that maps can be compared; None takes them from the values.
    """
    finite = values[np.isfinite(values)]
    signed = bool(finite.size) and float(finite.min()) < 0
    largest = float(np.max(np.abs(finite), initial=0.0)) or 1.0
    low, high = limits if limits is not None else (-largest if signed else 0.0, largest)
    return Normalize(low, high, clip=True), style.SIGNED_MAP if signed else style.AMOUNT_MAP


@mpl.rc_context(style.STYLE)
def draw_map(
    image: nib.Nifti1Image, *, background: nib.Nifti1Image, label: str, limits: tuple[float, float] | None = None
) -> Figure:
    """A map over the template, in axial and coronal slices at fixed positions.

    Parameters
    ----------
    image
        Map on a RAS grid; zero and not-a-number are left transparent.
    background
        Template in [0, 1] on any RAS grid in the same space.
    label
        What the colour bar shows, with its unit.
    limits
        Ends of the colour scale; None takes them from the map.

    Returns
    -------
    Figure
        Two rows of slices, all marked L and R.
    """
    values = np.asarray(image.dataobj, dtype=np.float32)
    values = np.where(values == 0, np.nan, values)
    anatomy = np.asarray(background.dataobj, dtype=np.float32)
    norm, colour_map = scale(values, limits=limits)
    planes: tuple[tuple[Plane, tuple[float, ...]], ...] = (("axial", AXIAL_MM), ("coronal", CORONAL_MM))
    first = [cut(anatomy, affine_of(background), plane=plane, position_mm=0.0) for plane, _ in planes]
    drawn, panels = mosaic([first[0]] * len(AXIAL_MM), n_rows=2, second=first[1])
    for row, (plane, positions) in zip(panels, planes, strict=True):
        for axes, position_mm in zip(row, positions, strict=True):
            under = cut(anatomy, affine_of(background), plane=plane, position_mm=position_mm)
            over = cut(values, affine_of(image), plane=plane, position_mm=position_mm)
            show(axes, under, norm=Normalize(0.0, 1.25), colour_map="gray")
            show(axes, over, norm=norm, colour_map=colour_map, mark=False, position=False)
            axes.set_xlim(under.extent[:2])
            axes.set_ylim(under.extent[2:])
    extend = "max" if limits is not None and float(np.nanmax(values, initial=0.0)) > limits[1] else "neither"
    colour_bar(drawn, list(panels.flat), norm, colour_map, label, extend=extend)
    return drawn


def mosaic(
    first_row: Sequence[Cut], *, n_rows: int, second: Cut | None = None, beside_inches: float = BAR_INCHES
) -> tuple[Figure, np.ndarray]:
    """Panels without gaps, as wide and high as their slices need.

    Parameters
    ----------
    first_row
        One cut per column, for its proportions.
    n_rows
        Number of rows.
    second
        Proportions of the second row where its slices are of another plane; their width is the first row's.
    beside_inches
        Room for colour bars and labels beside the panels.

    Returns
    -------
    Figure, (row, column) array of Axes
    """
    widths = [size(shown)[0] for shown in first_row]
    heights = [max(size(shown)[1] for shown in first_row)] * n_rows
    if second is not None:
        heights[1] = size(second)[1]
    inches = (WIDTH_INCHES - beside_inches) / sum(widths)
    drawn = style.figure(WIDTH_INCHES, inches * sum(heights) + 0.05)
    drawn.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0))
    ratios = {"height_ratios": heights, "width_ratios": widths}
    return drawn, drawn.subplots(n_rows, len(widths), squeeze=False, gridspec_kw=ratios)


def size(shown: Cut) -> tuple[float, float]:
    """Width and height of a cut, in the unit of its extent."""
    left, right, bottom, top = shown.extent
    return right - left, top - bottom


def affine_of(image: nib.Nifti1Image) -> np.ndarray:
    """Affine of an image that has one.

    Raises
    ------
    GridError
        When the image has none.
    """
    if image.affine is None:
        raise GridError("a map without an affine cannot be placed in the brain. Write it with Grid.to_image.")
    return np.asarray(image.affine, dtype=np.float64)
