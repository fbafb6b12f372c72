import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from nilatent.errors import CohortError, ScanError
from nilatent.map_names import CAT12_SPACE, SPM_SPACE
from nilatent.preprocess.gm import check_alike, is_map, modulation, prepare_map
from nilatent.preprocess.space import load_scan
from nilatent.volumes import Grid, template

# Boxes that the tools write: shape, voxel side in mm, position of voxel 0 in mm (x first axis may run to the left).
BOXES = {
    "CAT12 1.5 mm": ((121, 145, 121), 1.5, (90, -126, -72), -1),
    "CAT12.8 1.5 mm": ((113, 137, 113), 1.5, (84, -120, -72), -1),
    "OASIS and SPM 2 mm": ((91, 109, 91), 2.0, (90, -126, -72), -1),
    "FSL 2 mm": ((91, 109, 91), 2.0, (-90, -126, -72), 1),
    "fMRIPrep 2 mm": ((97, 115, 97), 2.0, (-96, -132, -78), 1),
    "3 mm": ((61, 73, 61), 3.0, (90, -126, -72), -1),
}
GRID = Grid.mni(6.0)


def affine_of(side, corner, x_sign):
    affine = np.diag([x_sign * side, side, side, 1.0])
    affine[:3, 3] = corner
    return affine


def as_seen(image, shape, affine, sigma_mm=0.0):
    """A template image on another tool's box, averaged over its voxels as that tool would."""
    data = image.get_fdata(dtype=np.float32)
    side = abs(affine[0, 0])
    data = ndimage.gaussian_filter(data, np.hypot(0.4 * np.sqrt(side**2 - 1), sigma_mm))
    there = np.linalg.inv(image.affine) @ affine
    return ndimage.affine_transform(data, there[:3, :3], there[:3, 3], output_shape=shape, order=1).astype(np.float32)


@pytest.fixture(scope="module")
def maps():
    """Template tissues and T1 on the OASIS box, and its affine."""
    shape, side, corner, sign = BOXES["OASIS and SPM 2 mm"]
    affine = affine_of(side, corner, sign)
    return {name: as_seen(template(name), shape, affine) for name in ("gm", "wm", "csf", "t1")}, affine


def prepared(folder, name, data, affine, *, code=2, description="", dtype=np.float32, grid=GRID):
    image = nib.Nifti1Image(data, affine)
    image.header["descrip"] = description.encode()
    image.set_data_dtype(dtype)
    image.set_sform(affine, code)
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    nib.save(image, path)
    return prepare_map(load_scan(path), grid, path=path)


@pytest.mark.parametrize("box", BOXES)
def test_every_tools_box_gives_the_same_map_and_keeps_the_volume(tmp_path, box):
    shape, side, corner, sign = BOXES[box]
    affine = affine_of(side, corner, sign)
    data = as_seen(template("gm"), shape, affine)
    made = prepared(tmp_path, "mwp1sub-01.nii.gz", data, affine)
    reference = template("gm", GRID).get_fdata(dtype=np.float32)
    assert made.measures["gm_ml"] == pytest.approx(float(data.sum()) * side**3 / 1000, rel=0.01)
    assert np.corrcoef(made.maps["gm"].ravel(), reference.ravel())[0, 1] > 0.985
    assert made.measures["template_correlation"] > 0.97


def test_left_stays_left_in_a_map_stored_to_the_left(tmp_path, maps):
    data, affine = maps[0]["gm"].copy(), maps[1]
    world = affine @ (20, 50, 45, 1)
    assert world[0] > 0
    data[:45] *= 0.5  # the right half: x runs to the left in this box
    made = prepared(tmp_path, "mwp1sub-01.nii.gz", data, affine).maps["gm"]
    right = GRID.affine[0, 3] + 6.0 * np.arange(GRID.shape[0]) > 3
    left = GRID.affine[0, 3] + 6.0 * np.arange(GRID.shape[0]) < -3
    assert made[right].sum() == pytest.approx(0.5 * made[left].sum(), rel=0.03)


def test_a_map_stored_in_eight_bits_with_a_slope_is_the_same_map(tmp_path, maps):
    data, affine = maps[0]["gm"], maps[1]
    whole = prepared(tmp_path, "mwp1a.nii", data, affine).maps["gm"]
    packed = prepared(tmp_path, "mwp1b.nii", data, affine, dtype=np.uint8).maps["gm"]
    np.testing.assert_allclose(packed, whole, atol=data.max() / 255)


def test_a_little_below_nothing_is_nothing(tmp_path, maps, rng):
    data, affine = maps[0]["gm"], maps[1]
    below = np.where(data < 0.01, rng.uniform(-0.08, 0, data.shape), data).astype(np.float32)
    made, clipped = (
        prepared(tmp_path, f"mwp1{name}.nii.gz", values, affine)
        for name, values in (("below", below), ("clipped", np.maximum(below, 0)))
    )
    np.testing.assert_allclose(made.maps["gm"], clipped.maps["gm"], atol=1e-6)
    assert made.measures["gm_ml"] == pytest.approx(float(below[below > 0].sum()) * 0.008, rel=0.01)


NAMED = {
    "mwp1sub-01_T1w.nii": ("CAT12", True, CAT12_SPACE, None),
    "CAT12.8.2_r2166/mri/m0wp1sub-01_T1w.nii": ("CAT12.8.2_r2166", "nonlinear", CAT12_SPACE, None),
    "deepmriprep/sub-01/s6mwp1sub-01.nii.gz": ("deepmriprep", True, CAT12_SPACE, 6.0),
    "rp1sub-01_affine.nii": ("CAT12", False, CAT12_SPACE, None),
    "smwc1sub-01.nii": ("SPM", True, SPM_SPACE, "unknown"),
    "mwrc1OAS1_0001_MR1_mpr_anon_fslswapdim_bet.nii.gz": ("SPM", True, SPM_SPACE, None),
    "sub-01_space-MNI152NLin6Asym_res-2_label-GM_probseg.nii.gz": (
        "BIDS derivatives",
        False,
        "MNI152NLin6Asym",
        None,
    ),
    "sub-01_T1w_segm-graymatter_space-Ixi549Space_modulated-on_fwhm-8mm_probability.nii.gz": (
        "SPM12 through Clinica",
        True,
        "Ixi549Space",
        8.0,
    ),
    "sub-01_struc_GM_to_template_GM_mod.nii.gz": ("FSL-VBM", "nonlinear", "MNI152NLin6Asym", None),
    "sub-01_space-MNI152NLin2009aSym_res-2_label-GM_desc-unmodulatedSmooth1p5_probseg.nii.gz": (
        "BIDS derivatives",
        False,
        "MNI152NLin2009aSym",
        1.5,
    ),
    "grey_of_subject_7.nii.gz": ("unknown", "unknown", "unknown", None),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_a_map_is_goes_to_the_side_car(tmp_path, maps, name):
    notes = prepared(tmp_path, name, maps[0]["gm"], maps[1]).notes
    found = notes["MapMadeBy"], notes["Modulated"], notes["SourceSpace"], notes.get("SmoothedBefore")
    assert found == NAMED[name]


def test_the_maker_of_bids_maps_is_read_from_their_data_set(tmp_path, maps):
    described = {"GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.1.2"}]}
    (tmp_path / "dataset_description.json").write_text(json.dumps(described))
    name = "sub-01/ses-1/anat/sub-01_ses-1_space-MNI152NLin2009cAsym_label-GM_probseg.nii.gz"
    assert prepared(tmp_path, name, maps[0]["gm"], maps[1]).notes["MapMadeBy"] == "fMRIPrep 23.1.2"
    (tmp_path / "dataset_description.json").write_text("[1, 2")
    assert prepared(tmp_path, name, maps[0]["gm"], maps[1]).notes["MapMadeBy"] == "BIDS derivatives"


def test_what_spm_wrote_into_the_header_is_read(tmp_path, maps):
    grey, affine = maps[0]["gm"], maps[1]
    words = "Jac. sc. warped tissue class 1 - conv(8,8,8)"
    notes = prepared(tmp_path, "renamed.nii", grey, affine, description=words, code=4).notes
    assert (notes["Modulated"], notes["SmoothedBefore"], notes["SourceSpace"]) == (True, 8.0, "MNI152, by its header")
    words = "Warped tissue class 1 - conv(4,9,6)"
    assert prepared(tmp_path, "renamed.nii", grey, affine, description=words).notes["SmoothedBefore"] == 9
    words = "Smoothed (10x10x10 subopt) warped"
    assert prepared(tmp_path, "renamed.nii", grey, affine, description=words).notes["SmoothedBefore"] == 10
    for words, rule in [("Warped tissue class 2", "shows grey matter"), ("Tissue class 1", "lies in MNI space")]:
        with pytest.raises(ScanError, match=rule):
            prepared(tmp_path, "renamed.nii", grey, affine, description=words)


REFUSED = {
    "white matter by name": ("mwp2sub-01.nii", "gm", 1.0, "shows grey matter"),
    "white matter by label": ("sub-01_space-MNI152_label-WM_probseg.nii", "gm", 1.0, "shows grey matter"),
    "white matter by look": ("mwp1sub-01.nii", "wm", 1.0, "shows grey matter"),
    "fluid by look": ("mwp1sub-01.nii", "csf", 1.0, "shows grey matter"),
    "scaled T1 by look": ("mwp1sub-01.nii", "t1", 1.0, "shows grey matter"),
    "T1": ("mwp1sub-01.nii", "t1", 700.0, "range of a grey-matter map"),
    "percentages": ("mwp1sub-01.nii", "gm", 100.0, "range of a grey-matter map"),
    "scaled to 255": ("mwp1sub-01.nii", "gm", 255.0, "range of a grey-matter map"),
    "divided twice": ("mwp1sub-01.nii", "gm", 1 / 100, "range of a grey-matter map"),
    "negative": ("mwp1sub-01.nii", "gm", -1.0, "range of a grey-matter map"),
    "CAT12 native": ("p1sub-01.nii", "gm", 1.0, "lies in MNI space"),
    "CAT12 rigid": ("rp1sub-01_rigid.nii", "gm", 1.0, "lies in MNI space"),
    "SPM native": ("c1sub-01.nii", "gm", 1.0, "lies in MNI space"),
    "SPM rigid": ("rc1sub-01.nii", "gm", 1.0, "lies in MNI space"),
    "fMRIPrep native": ("sub-01_label-GM_probseg.nii", "gm", 1.0, "lies in MNI space"),
    "infant": ("sub-01_space-MNIInfant_cohort-1_label-GM_probseg.nii", "gm", 1.0, "lies in MNI space"),
}
ADVICE = {"percentages": "divide by 100", "scaled to 255": "divide by 255", "infant": "the space 'MNIInfant'"}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_grey_matter_map_in_mni_space_is_refused(tmp_path, maps, case):
    name, tissue, factor, rule = REFUSED[case]
    with pytest.raises(ScanError, match=rule) as caught:
        prepared(tmp_path, name, maps[0][tissue] * np.float32(factor), maps[1])
    assert caught.value.rule == rule
    assert name in str(caught.value)
    assert ADVICE.get(case, "") in str(caught.value)


def test_a_map_that_lies_elsewhere_is_refused(tmp_path, maps):
    grey, affine = maps[0]["gm"], maps[1].copy()
    affine[1, 3] += 30
    with pytest.raises(ScanError, match="lies in MNI space"):
        prepared(tmp_path, "mwp1a.nii", grey, affine)
    with pytest.raises(ScanError, match="field of view"):
        prepared(tmp_path, "mwp1a.nii", grey[:, :70], maps[1])


def test_a_header_that_says_mni_overrules_a_name_of_the_subjects_own_space(tmp_path, maps):
    made = prepared(tmp_path, "p1sub-01.nii", maps[0]["gm"], maps[1], code=4)
    assert made.notes["SourceSpace"] == "MNI152, by its header"


@pytest.mark.parametrize("fwhm", [4.0, 8.0, 12.0])
def test_smoothed_and_thin_maps_pass(tmp_path, maps, fwhm):
    smooth = ndimage.gaussian_filter(maps[0]["gm"], fwhm / 2.3548 / 2)
    assert prepared(tmp_path, f"s{fwhm:g}mwp1a.nii", 0.6 * smooth, maps[1]).notes["SmoothedBefore"] == fwhm


def test_a_mirrored_map_cannot_be_told_because_the_template_is_symmetric():
    grey = template("gm").get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(grey, grey[::-1])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"SmoothingFWHM": 6}', 6.0),
        ('{"SmoothingFWHM": [5, 5, 5]}', 5.0),
        ('{"SmoothingFWHM": 0}', None),
        ('{"SmoothingFWHM": "six"}', None),
        ('{"SmoothingFWHM": 1e300}', None),
        ('{"SmoothingFWHM": NaN}', None),
        ('{"nilatent": [1], "SmoothingFWHM": null}', None),
        ('{"nilatent": {"Scan": []}}', None),
        ("[1]", None),
        ("{", None),
        ("", None),
        ("\x00\x01", None),
        ("[" * 100_000, None),
    ],
)
def test_a_side_car_is_believed_or_passed_over(tmp_path, maps, content, expected):
    (tmp_path / "mwp1a.json").write_text(content)
    assert prepared(tmp_path, "mwp1a.nii.gz", maps[0]["gm"], maps[1]).notes.get("SmoothedBefore") == expected


def test_modulation_is_what_the_side_car_says_else_the_name(tmp_path):
    ours = tmp_path / "sub-1_space-MNI152NLin2009aSym_res-2_label-GM_desc-givenSmooth8_probseg.nii.gz"
    assert modulation(ours) == "unknown"
    for value, word in [(True, "all"), (False, "none"), ("nonlinear", "nonlinear"), ([], "unknown"), (1, "unknown")]:
        side_car = ours.with_name(ours.name.replace(".nii.gz", ".json"))
        side_car.write_text(json.dumps({"nilatent": {"Scan": {"Modulated": value}}}))
        assert modulation(ours) == word
    assert [modulation(tmp_path / name) for name in ("mwp1a.nii", "wp1a.nii", "m0wp1a.nii", "a.nii")] == [
        "all",
        "none",
        "nonlinear",
        "unknown",
    ]


def test_maps_that_mean_different_things_are_not_mixed():
    check_alike({"a": "all", "b": "all", "c": "unknown"})
    with pytest.raises(CohortError, match=r"'all' in 2 \(such as a\), 'none' in 1 \(such as d\)"):
        check_alike({"a": "all", "b": "all", "c": "unknown", "d": "none"})


def test_raw_scans_are_no_maps():
    for name in ("sub-01_T1w.nii.gz", "c1_T1w.nii", "p10_T1w.nii.gz", "h2020_wp1_T1w.nii", "wmsub-01.nii", "p0a.nii"):
        assert not is_map(Path(name)), name
    for name in (*NAMED, *(case[0] for case in REFUSED.values())):
        assert is_map(Path(name)) == (name != "grey_of_subject_7.nii.gz"), name
