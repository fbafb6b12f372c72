import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import Normalize

from nilatent.errors import GridError
from nilatent.plots import brain, style

AFFINE = np.array([[4.0, 0, 0, -28], [0, 4, 0, -50], [0, 0, 4, -20], [0, 0, 0, 1]])


def numbered() -> np.ndarray:
    return np.arange(15 * 17 * 13, dtype=float).reshape(15, 17, 13)


@pytest.mark.parametrize(("plane", "axis"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
def test_cut_takes_the_plane_of_its_position(plane: brain.Plane, axis: int) -> None:
    position_mm = float(AFFINE[axis, 3] + 4 * 5 + 1.4)
    shown = brain.cut(numbered(), AFFINE, plane=plane, position_mm=position_mm)
    np.testing.assert_array_equal(shown.values, np.take(numbered(), 5, axis=axis).T)
    assert shown.position_mm == AFFINE[axis, 3] + 20


def test_a_voxel_lands_at_its_millimetres() -> None:
    values = np.zeros((15, 17, 13))
    values[2, 9, 6] = 1  # x = -20 mm, left; y = -14 mm
    shown = brain.cut(values, AFFINE, plane="axial", position_mm=4.0)
    row, column = np.argwhere(shown.values)[0]
    left, right, bottom, top = shown.extent
    assert left + (column + 0.5) / 15 * (right - left) == pytest.approx(-20)
    assert bottom + (row + 0.5) / 17 * (top - bottom) == pytest.approx(-14)


@pytest.mark.parametrize("place", [-1e3, 1e3])
def test_positions_outside_take_the_end(place: float) -> None:
    shown = brain.cut(numbered(), AFFINE, plane="axial", position_mm=place)
    np.testing.assert_array_equal(shown.values, numbered()[:, :, 0 if place < 0 else 12].T)


def test_flipped_grid_is_refused() -> None:
    with pytest.raises(GridError, match="RAS"):
        brain.cut(numbered(), np.diag([-4.0, 4, 4, 1]), plane="axial", position_mm=0)


def test_every_panel_says_left_and_right() -> None:
    image = nib.Nifti1Image(numbered().astype(np.float32), AFFINE)
    drawn = brain.draw_map(image, background=image, label="size (mm)")
    panels = [axes for axes in drawn.axes if axes.images and axes.get_label() != "<colorbar>"]
    assert len(panels) == 16
    for axes in panels:
        words = {text.get_text(): text.get_position()[0] for text in axes.texts}
        assert words["L"] < words["R"]
    assert "size (mm)" in style.to_svg(drawn)


def test_sagittal_slices_say_their_half() -> None:
    axes = style.figure(2, 2).add_subplot()
    shown = brain.cut(numbered(), AFFINE, plane="sagittal", position_mm=-20.0)
    brain.show(axes, shown, norm=Normalize(0, 1), colour_map="gray")
    assert "x −20 mm (L)" in [text.get_text() for text in axes.texts]


def test_scale_is_symmetric_for_signed_maps_and_fixed_when_asked() -> None:
    norm, colour_map = brain.scale(np.array([-1.0, 3.0, np.nan]), limits=None)
    assert (norm.vmin, norm.vmax, colour_map) == (-3.0, 3.0, style.SIGNED_MAP)
    norm, colour_map = brain.scale(np.array([0.5, 3.0]), limits=None)
    assert (norm.vmin, norm.vmax, colour_map) == (0.0, 3.0, style.AMOUNT_MAP)
    assert brain.scale(np.array([0.5, 3.0]), limits=(0.0, 1.0))[0].vmax == 1.0
