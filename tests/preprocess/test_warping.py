from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from nilatent.preprocess import resampling, warping
from nilatent.volumes import Grid, template_array


def test_a_field_comes_back_from_its_file(rng):
    field = rng.normal(0, 3, (3, 5, 7, 6)).astype(np.float32)
    image = warping.itk_field(field, np.diag([2.0, 2, 2, 1]))
    assert image.shape == (5, 7, 6, 1, 3)
    np.testing.assert_allclose(warping.displacement_of(image), field, rtol=1e-6)


def test_ants_moves_an_image_to_where_the_field_says(rng, tmp_path):
    ants = pytest.importorskip("ants")
    grid = Grid.mni(6.0)
    data = np.zeros((27, 31, 29), dtype=np.float32)
    data[18:22, 8:12, 14:19] = 1
    affine = np.diag([-4.0, 4, 4, 1])
    affine[:3, 3] = (60, -70, -50)
    field = np.zeros((3, *grid.shape), dtype=np.float32)
    # Ten right, twenty back, five down: every axis another way, so that no sign can hide.
    field[0], field[1], field[2] = 10, -20, -5
    nib.save(warping.itk_field(field, grid.affine), tmp_path / "xfm.nii.gz")
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "moving.nii.gz")
    nib.save(grid.to_image(np.zeros(grid.shape)), tmp_path / "fixed.nii.gz")
    moved = ants.apply_transforms(
        ants.image_read(str(tmp_path / "fixed.nii.gz")),
        ants.image_read(str(tmp_path / "moving.nii.gz")),
        [str(tmp_path / "xfm.nii.gz")],
    ).numpy()
    moved_from = grid.affine.copy()
    moved_from[:3, 3] += field[:, 0, 0, 0]
    expected = resampling.look_up(data, affine, grid.shape, moved_from, order=1)
    assert moved.sum() > 1
    np.testing.assert_allclose(moved, expected, atol=1e-3)


class Engine:
    """Stands in for ants: keeps the images it is given, and finds the field it was told to, in its own convention (LPS)."""

    def __init__(self, found):
        self.found, self.given = found, []
        self.internal = SimpleNamespace(get_pointer_string=lambda _: "image")

    def from_numpy(self, data, **_):
        self.given.append(data)
        return data

    def registration(self, command, _):
        start = command[command.index("--output") + 1]
        for name, vector in self.found.items():
            field = np.broadcast_to(np.float32(vector), (3, 4, 5, 1, 3))
            nib.save(nib.Nifti1Image(field, np.eye(4)), f"{start}0{name}.nii.gz")


def test_the_engine_sees_a_brain_in_the_units_of_the_template(tmp_path, monkeypatch, rng):
    brain = np.zeros(Grid.mni(warping.SPACING_MM).shape, dtype=np.float32)
    brain[10:60, 12:80, 9:70] = rng.uniform(0.01, 1, (50, 68, 61))
    brain[30, 30, 30] = 5  # a vessel
    engine = Engine({"Warp": (1, 2, 3), "InverseWarp": (-1, -2, -3)})
    monkeypatch.setattr(warping, "require", lambda *_, **__: engine)
    for unit in (1, 700, 1e-3):
        forward, inverse = warping.register_syn(brain * np.float32(unit), work=tmp_path)
    assert (forward[:, 1, 2, 3].tolist(), inverse[:, 1, 2, 3].tolist()) == ([-1, -2, 3], [1, 2, -3])
    np.testing.assert_array_equal(engine.given[0], template_array("t1", warping.SPACING_MM))
    top = np.quantile(brain[brain > 0], 0.998)
    for moving in engine.given[1::2]:
        np.testing.assert_allclose(moving, np.minimum(brain / top, 1), atol=1e-5)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_syn_undoes_a_known_wave(tmp_path, monkeypatch):
    pytest.importorskip("ants")
    monkeypatch.setattr(warping, "ITERATIONS", "20x5x0")
    grid = Grid.mni(warping.SPACING_MM)
    brain = template_array("t1", warping.SPACING_MM)
    y = np.indices(grid.shape)[1] * grid.spacing_mm
    wave = np.zeros((3, *grid.shape), dtype=np.float32)
    wave[0] = 4 * np.sin(y / 30)
    still = np.zeros_like(wave)
    moved = resampling.resample_warped(
        [brain], grid.affine, grid, to_grid=np.eye(4), warp=resampling.Warp(wave, still, grid), modulate=[False]
    )[0]
    forward, inverse = warping.register_syn(moved, work=tmp_path)
    inside = template_array("mask", warping.SPACING_MM) > 0.9
    # The brain was looked up at p + wave(p), so the warp that finds it again is the wave's opposite.
    assert np.abs(forward[0] + wave[0])[inside].mean() < 0.4 * np.abs(wave[0])[inside].mean()
    assert np.abs(inverse[0] - wave[0])[inside].mean() < 0.4 * np.abs(wave[0])[inside].mean()
    assert not list(tmp_path.iterdir())
