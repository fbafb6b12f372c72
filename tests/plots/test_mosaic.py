import io

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from nilatent.plots import mosaic

SIZES = {"axial": (2, 17, 13), "coronal": (1, 15, 13), "sagittal": (1, 15, 17)}


@pytest.fixture
def slices() -> xr.Dataset:
    """Dark slices with a square of label 2 in a square of label 1 in the first axial one, and a bright corner."""
    variables = {}
    for plane, shape in SIZES.items():
        scan, tissue = np.zeros((2, *shape), dtype=np.uint8)
        if plane == "axial":
            scan[0, -1, 0] = 255
            tissue[0, 4:13, 3:10] = 1
            tissue[0, 7:10, 5:8] = 2
        dims = (f"{plane}_mm", *{"axial": "yx", "coronal": "zx", "sagittal": "zy"}[plane])
        variables[f"{plane}_scan"] = (dims, scan)
        variables[f"{plane}_tissue"] = (dims, tissue)
        variables[f"{plane}_mm"] = (f"{plane}_mm", np.arange(shape[0], dtype=float))
    return xr.Dataset(variables)


def test_slices_stand_side_by_side_with_the_top_up(slices: xr.Dataset) -> None:
    canvas = mosaic.grey(slices)
    assert canvas.shape == (17, 2 * 13 + 13 + 17 + 3 * mosaic.GAP)
    assert canvas[0, 0] == 255
    assert canvas.sum() == 255
    lefts = [panel.left for panel in mosaic.panels(slices)]
    assert lefts == [0, 17, 34, 51]
    assert [panel.top for panel in mosaic.panels(slices)] == [0, 0, 1, 1]
    assert mosaic.size(slices) == canvas.shape[::-1]


def test_outlines_lie_on_the_edges_of_the_labels(slices: xr.Dataset) -> None:
    codes = mosaic.lines(slices)[::-1]
    # Voxel edges are at even numbers of the finer canvas: the brain's lower edge lies between its rows 7 and 8.
    assert list(np.flatnonzero(codes[:, 12] == mosaic.BRAIN)) == [6, 7, 8, 9, 24, 25, 26, 27]
    assert list(np.flatnonzero(codes[:, 12] == mosaic.TISSUE)) == [13, 14, 19, 20]
    assert codes[16, 12] == 0
    assert (codes[:, 30:] == 0).all()


def test_grey_alone_and_fluid_alone_have_the_edges_they_should(slices: xr.Dataset) -> None:
    fluid = slices.assign(axial_tissue=slices["axial_tissue"].where(slices["axial_tissue"] != 1, 3))
    assert list(np.flatnonzero(mosaic.lines(fluid)[::-1][:, 12] == mosaic.TISSUE)) == [13, 14, 19, 20]
    grey = slices.assign(axial_tissue=slices["axial_tissue"].where(slices["axial_tissue"] != 2, 1))
    assert not (mosaic.lines(grey) == mosaic.TISSUE).any()


def test_pictures_come_back_as_they_were(slices: xr.Dataset, rng: np.random.Generator) -> None:
    codes = mosaic.lines(slices)
    shown = np.asarray(Image.open(io.BytesIO(mosaic.encode_lines(codes, mosaic.SCAN_COLOUR))).convert("RGBA"))
    assert (shown[codes == 0, 3] == 0).all()
    assert (shown[codes == mosaic.BRAIN] == (0xFF, 0xB0, 0x00, 255)).all()
    assert (shown[codes == mosaic.TISSUE, 3] == 191).all()
    smooth = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)
    back = np.asarray(Image.open(io.BytesIO(mosaic.encode_grey(smooth))).convert("L"))
    assert np.abs(back.astype(int) - smooth).mean() < 4
