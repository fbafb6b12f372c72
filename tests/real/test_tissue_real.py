"""Tissues of real scans beside tissue maps drawn by hand."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from nilatent.preprocess import quality, t1
from nilatent.preprocess.space import load_scan
from nilatent.volumes import Grid

pytestmark = pytest.mark.real

# Labels of the manual maps, and of ours.
MANUAL = {"csf": 1, "gm": 2, "wm": 3}
OURS = {"gm": 1, "wm": 2, "csf": 3}


@pytest.fixture
def real():
    if "NILATENT_REAL_DATA" not in os.environ:
        pytest.skip("NILATENT_REAL_DATA names no folder")
    return Path(os.environ["NILATENT_REAL_DATA"])


def prepared(path, work):
    pytest.importorskip("ants")
    return t1.prepare_t1(load_scan(path), Grid.mni(4.0), path=path, work=work)


@pytest.mark.parametrize(("scan", "least", "most"), [("1007", 0.91, 0.3), ("1036", 0.89, 0.25), ("1122", 0.89, 0.15)])
def test_grey_and_white_matter_agree_with_manual_maps(real, tmp_path, scan, least, most):
    folder = real / "oasis_miccai2012" / scan
    found = prepared(folder / f"{scan}_T1w_brain.nii.gz", tmp_path).tissues
    manual = np.rint(load_scan(folder / f"{scan}_tissues_manual.nii.gz").data)
    for name in ("gm", "wm"):
        assert quality.dice(found == OURS[name], manual == MANUAL[name]) > least - 0.02 * (name == "wm")
    # The manual fluid is little but ventricles; without their mixture twice as much of these walls would be grey.
    ventricles = ndimage.binary_opening(manual == MANUAL["csf"])
    walls = (
        ndimage.binary_dilation(ventricles)
        & (manual != MANUAL["gm"])
        & ~ndimage.binary_dilation(manual == MANUAL["gm"])
    )
    assert (found[walls] == OURS["gm"]).mean() < most


def test_volumes_of_a_scan_of_low_contrast_are_plausible(real, tmp_path):
    path = real / "ds002748_depression" / "sub-45" / "anat" / "sub-45_T1w.nii.gz"
    measures = prepared(path, tmp_path).measures
    assert 0.42 < measures["gm_ml"] / measures["tiv_ml"] < 0.6
    assert 0.2 < measures["wm_ml"] / measures["tiv_ml"] < 0.45
