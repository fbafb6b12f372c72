"""Mosaic row of a scan: its slices side by side in grey, and the outlines of tissues that are laid over them."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr
from PIL import Image

PLANES = ("axial", "coronal", "sagittal")
GAP = 4
# Outlines are drawn on a canvas that is finer than the slices, so that they stay thin and even.
FINER = 2
SCAN_COLOUR = "#ffb000"
TEMPLATE_COLOUR = "#3fc1ff"
"""Amber and sky blue: apart for every kind of colour vision, and both bright on grey."""
BRAIN, TISSUE = 1, 2
"""Codes of the outlines: around all that has a label, drawn wide, and around grey and white matter, drawn thin."""
INSIDE_OPACITY = {SCAN_COLOUR: 0.75, TEMPLATE_COLOUR: 0.65}
"""The folds of the template are nobody's folds, so its inner edges stay behind."""
GREY_QUALITY = 72


@dataclass(frozen=True)
class Panel:
    """Where a slice stands on the canvas: plane, position in mm, and left, top, width and height in pixels of 1 mm."""

    plane: str
    position_mm: float
    left: int
    top: int
    width: int
    height: int


def panels(mosaic: xr.Dataset) -> list[Panel]:
    """The slices of a row from left to right, each in the middle of the height.

    Parameters
    ----------
    mosaic
        As `preprocess.mosaic` leaves it: `<plane>_scan` with the dimensions position, vertical and horizontal.
    """
    sizes = {plane: mosaic[f"{plane}_scan"].shape for plane in PLANES}
    tallest = max(height for _, height, _ in sizes.values())
    placed, left = [], 0
    for plane, (_, height, width) in sizes.items():
        for position in mosaic[f"{plane}_mm"].to_numpy():
            placed.append(Panel(plane, float(position), left, (tallest - height) // 2, width, height))
            left += width + GAP
    return placed


def size(mosaic: xr.Dataset) -> tuple[int, int]:
    """Width and height of the canvas in pixels of 1 mm."""
    placed = panels(mosaic)
    return placed[-1].left + placed[-1].width, max(panel.height for panel in placed)


def grey(mosaic: xr.Dataset) -> npt.NDArray[np.uint8]:
    """Slices of the scan side by side, (height, width) of the canvas; the top of the head, or its front, is up."""
    return _canvas(mosaic, {plane: mosaic[f"{plane}_scan"].to_numpy() for plane in PLANES})


def lines(mosaic: xr.Dataset) -> npt.NDArray[np.uint8]:
    """Outlines of the tissues on a canvas twice as fine: 0, `BRAIN` or `TISSUE`.

    Parameters
    ----------
    mosaic
        With `<plane>_tissue`: 0 background, 1 grey, 2 white, 3 fluid.
    """
    drawn = {}
    for plane in PLANES:
        tissue = mosaic[f"{plane}_tissue"].to_numpy()
        codes = np.zeros((len(tissue), FINER * tissue.shape[1], FINER * tissue.shape[2]), dtype=np.uint8)
        codes[_outline(tissue > 0, wide=True)] = BRAIN
        for inside in ((tissue == 1) | (tissue == 2), tissue == 2):
            codes[_outline(inside, wide=False) & (codes == 0)] = TISSUE
        drawn[plane] = codes
    return _canvas(mosaic, drawn, finer=FINER)


def _outline(inside: npt.NDArray[np.bool_], *, wide: bool) -> npt.NDArray[np.bool_]:
    """Pixels of a finer canvas along a mask's edge, one or two on either side; (slice, vertical, horizontal)."""
    fine = np.repeat(np.repeat(inside, FINER, axis=1), FINER, axis=2).astype(np.uint16)
    for axis in (1, 2, 1, 2):
        fine = _blurred(fine, axis)
    # Blurring rounds the steps of the voxels and moves no straight edge; each pass weighs 4.
    smooth = fine > 4**4 // 2
    edge = _differs(smooth)
    return edge | _differs(edge) if wide else edge


def _differs(values: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels with a neighbour of another value, above, below or beside."""
    found = np.zeros(values.shape, dtype=bool)
    later, earlier = slice(1, None), slice(-1)
    for one, other in (((..., later, slice(None)), (..., earlier, slice(None))), ((..., later), (..., earlier))):
        differs = values[one] != values[other]
        found[one] |= differs
        found[other] |= differs
    return found


def _blurred(values: npt.NDArray[np.uint16], axis: int) -> npt.NDArray[np.uint16]:
    wide = np.pad(values, [(1, 1) if at == axis else (0, 0) for at in range(3)], mode="edge")
    before, after = (
        tuple(part if at == axis else slice(None) for at in range(3)) for part in (slice(-2), slice(2, None))
    )
    return np.asarray(wide[before] + 2 * values + wide[after], dtype=np.uint16)


def _canvas(mosaic: xr.Dataset, cuts: Mapping[str, npt.NDArray[np.uint8]], *, finer: int = 1) -> npt.NDArray[np.uint8]:
    width, height = size(mosaic)
    canvas = np.zeros((finer * height, finer * width), dtype=np.uint8)
    counts = dict.fromkeys(PLANES, 0)
    for panel in panels(mosaic):
        cut = cuts[panel.plane][counts[panel.plane]]
        counts[panel.plane] += 1
        rows = slice(finer * panel.top, finer * (panel.top + panel.height))
        columns = slice(finer * panel.left, finer * (panel.left + panel.width))
        canvas[rows, columns] = cut[::-1]
    return canvas


def encode_grey(canvas: npt.NDArray[np.uint8]) -> bytes:
    """A grey canvas as WebP."""
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "WEBP", quality=GREY_QUALITY, method=2)
    return buffer.getvalue()


def encode_lines(codes: npt.NDArray[np.uint8], colour: str) -> bytes:
    """Outlines in one colour (`SCAN_COLOUR` or `TEMPLATE_COLOUR`), clear elsewhere, as WebP without loss."""
    table = np.zeros((3, 4), dtype=np.uint8)
    table[[BRAIN, TISSUE], :3] = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    table[BRAIN, 3], table[TISSUE, 3] = 255, round(255 * INSIDE_OPACITY[colour])
    buffer = io.BytesIO()
    Image.fromarray(table[codes]).save(buffer, "WEBP", lossless=True, method=1, quality=20)
    return buffer.getvalue()
