"""Real scans with a header that was turned, shifted, scaled or emptied, or mirrored with the data, end in the same place."""

import os
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nilatent.errors import ScanError
from nilatent.preprocess import registration, resampling, space, t1, tissue
from nilatent.volumes import Grid, template_array

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    # deepbet loads its network in a way that newer versions of torch deprecate.
    pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning"),
]

SCANS = {
    "ds002748": "ds002748_depression/sub-01/anat/sub-01_T1w.nii.gz",
    "oasis": "oasis_miccai2012/1000/1000_T1w_brain.nii.gz",
    "ixi": "ixi_2mm_rawheads/IXI012-HH-1211_T1w.nii.gz",
    "ds000011": "ds000011_rawheads/sub-01/anat/sub-01_T1w.nii.gz",
}
TOLERANCE_MM = 0.5


def path_of(name):
    folder = os.environ.get("NILATENT_REAL_DATA")
    if not folder:
        pytest.skip("NILATENT_REAL_DATA names no folder")
    return Path(folder) / SCANS[name]


def stripped(path):
    """The scan, its brain alone, cut to its box, and the affine of the box."""
    scan = space.load_scan(path)
    mask = tissue.stripped_mask(scan.data, scan.voxel_ml)
    if mask is None:
        pytest.importorskip("deepbet")
        mask = tissue.brain_mask(scan.data, scan.affine)
    box, affine = resampling.box_around(mask, scan.affine, margin_mm=8.0)
    return scan, np.where(mask, scan.data, 0).astype(np.float32)[box], affine


def mapping(path):
    scan, brain, affine = stripped(path)
    start, _ = registration.register_affine(brain, affine)
    return scan, registration.refine_affine(brain, affine, start)[0]


@cache
def undisturbed(name):
    return mapping(path_of(name))[1]


def displacement_mm(found, reference):
    """Mean over points of the template brain."""
    grid = Grid.mni(4.0)
    points = np.argwhere(template_array("mask", 4.0) > 0.5) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    moved = (found @ np.linalg.inv(reference) @ np.c_[points, np.ones(len(points))].T)[:3].T
    return np.linalg.norm(moved - points, axis=1).mean()


def disturbed(image, kind):
    """(4, 4) that was put before the affine of the header."""
    matrix = np.eye(4)
    if kind.startswith("turn"):
        matrix[:3, :3] = Rotation.from_euler(kind[-1], 30, degrees=True).as_matrix()
    elif kind.startswith("shift"):
        matrix["xyz".index(kind[-1]), 3] = 60
    else:
        matrix[:3, :3] *= float(kind.split()[1])
    return matrix


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize(
    "kind", ["turn x", "turn y", "turn z", "shift x", "shift y", "shift z", "scale 0.9", "scale 1.1"]
)
def test_a_wrong_header_leads_to_the_same_place(tmp_path, name, kind):
    image = nib.load(path_of(name))
    change = disturbed(image, kind)
    turned = nib.Nifti1Image(np.asarray(image.dataobj), change @ image.affine)
    nib.save(turned, tmp_path / "scan.nii.gz")
    _, found = mapping(tmp_path / "scan.nii.gz")
    assert displacement_mm(found @ change, undisturbed(name)) < TOLERANCE_MM


@pytest.mark.parametrize("name", SCANS)
def test_a_header_that_says_nothing_is_noted_and_fits_but_for_left_and_right(tmp_path, name):
    image = nib.load(path_of(name))
    data = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    unsaid = nib.Nifti1Image(data, None)
    unsaid.header.set_zooms(image.header.get_zooms()[:3])
    unsaid.set_sform(None, code=0)
    unsaid.set_qform(None, code=0)
    nib.save(unsaid, tmp_path / "scan.nii.gz")
    if name == "ixi":
        # A head that is stored lying on its face and does not say so: deepbet finds no brain in it, and it is refused.
        with pytest.raises(ScanError, match="does not say which way up it lies"):
            t1.prepare_t1(space.load_scan(tmp_path / "scan.nii.gz"), Grid.mni(4.0), path=tmp_path, work=tmp_path)
        return
    scan, found = mapping(tmp_path / "scan.nii.gz")
    assert scan.oriented_by == "nothing"
    change = scan.stored_affine @ np.linalg.inv(image.affine)
    mirror = np.diag([np.sign(np.linalg.det(change)), 1, 1, 1])
    # The template is symmetric, so a mirrored brain fits as well as the true one: nothing can tell which it is.
    assert displacement_mm(mirror @ found @ change, undisturbed(name)) < 2.0


@pytest.mark.parametrize("name", SCANS)
def test_left_stays_left_when_the_storage_is_flipped(tmp_path, name):
    image = nib.load(path_of(name))
    data = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    # A bright ball in the white matter of the left hemisphere, placed by the undisturbed mapping.
    place = np.linalg.inv(undisturbed(name)) @ (-27, -20, 28, 1)
    points = np.einsum("ij,j...->i...", image.affine[:3, :3], np.indices(data.shape))
    away = np.linalg.norm(points + (image.affine[:3, 3] - place[:3]).reshape(3, 1, 1, 1), axis=0)
    data[away < 5] = 3 * data.max()
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = data.shape[0] - 1
    nib.save(nib.Nifti1Image(data[::-1], image.affine @ flip), tmp_path / "scan.nii.gz")
    scan, brain, affine = stripped(tmp_path / "scan.nii.gz")
    assert scan.stored_axes[0] != nib.aff2axcodes(image.affine)[0]
    start, _ = registration.register_affine(brain, affine)
    found, _ = registration.refine_affine(brain, affine, start)
    grid = Grid.mni(2.0)
    moved = resampling.resample(brain, affine, grid, to_grid=found, modulate=False)
    voxel = np.unravel_index(moved.argmax(), grid.shape)
    np.testing.assert_allclose((grid.affine @ (*voxel, 1))[:3], (-27, -20, 28), atol=6)
