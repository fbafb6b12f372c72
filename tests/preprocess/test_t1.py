import numpy as np
import pytest

from nilatent.errors import ScanError
from nilatent.preprocess import intensity, registration, resampling, t1, tissue, warping
from nilatent.preprocess.derivative import SPACE
from nilatent.preprocess.space import Scan
from nilatent.volumes import Grid, template

THERE, BACK = f"from-T1w_to-{SPACE}_mode-image_xfm", f"from-{SPACE}_to-T1w_mode-image_xfm"


def test_the_strip_loses_what_lies_far_from_the_template_and_its_holes():
    grid = Grid.mni(4.0)
    # A scan whose space is 5 mm to the right of the template's, over a larger field.
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = (-103, -140, -120)
    to_template = np.eye(4)
    to_template[0, 3] = -5
    brain = resampling.pull([template("mask", grid)], (54, 62, 58), affine, to_template)[0] > 0.5
    dirty = brain.copy()
    dirty[20:34, 20:34, 3:9] = True  # neck
    dirty[26, 30, 30] = False
    found = t1.refined_mask(dirty, affine, to_template)
    assert found[brain].all()
    assert not found[20:34, 20:34, 3:9].any()
    outside_ml = (found & ~brain).sum() * 0.064
    assert outside_ml < 0.02 * brain.sum() * 0.064


def test_tissues_alone_are_modulated(rng):
    grid = Grid.mni(6.0)
    affine = np.diag([5.0, 5, 5, 1])
    affine[:3, 3] = (-60, -80, -50)
    data = np.zeros((25, 25, 23), dtype=np.float32)
    data[6:18, 6:18, 6:16] = 1
    to_template = np.diag([1.2, 1.1, 1.0, 1])
    images = {"gm": data, "t1w": data}
    moved = t1._on_grid(images, affine, grid, to_template, warp=None, modulation=True)
    np.testing.assert_allclose(moved["gm"] * 1.32, moved["t1w"], rtol=1e-5)
    plain = t1._on_grid(images, affine, grid, to_template, warp=None, modulation=False)
    np.testing.assert_array_equal(plain["gm"], moved["t1w"])


def test_transforms_of_an_affine_are_inverses_of_each_other(rng):
    to_template = np.eye(4)
    to_template[:3] += rng.normal(0, 0.2, (3, 4))
    written = t1._transforms((9, 9, 9), np.eye(4), to_template, None)
    assert written == {
        f"{THERE}.txt": registration.itk_text(to_template),
        f"{BACK}.txt": registration.itk_text(np.asarray(np.linalg.inv(to_template))),
    }


def test_transforms_with_a_warp_cover_the_scan_and_lead_to_the_template():
    grid = Grid.mni(6.0)
    forward = np.zeros((3, *grid.shape), dtype=np.float32)
    forward[1] = 4
    warp = resampling.Warp(forward, -forward, grid)
    to_template = np.diag([1.1, 1.0, 0.9, 1])
    affine = np.diag([1.0, 1.5, 3.0, 1])
    affine[:3, 3] = (-20, -30, -10)
    written = t1._transforms((41, 33, 15), affine, to_template, warp)
    assert set(written) == {f"{THERE}.nii.gz", f"{BACK}.nii.gz"}
    back = written[f"{BACK}.nii.gz"]
    last = back.affine @ (*np.array(back.shape[:3]) - 1, 1)
    assert (last[:3] >= (affine @ (40, 32, 14, 1))[:3] - 1e-6).all()
    point = back.affine @ (3, 4, 5, 1)
    moved = point[:3] + warping.displacement_of(back)[:, 3, 4, 5]
    np.testing.assert_allclose(moved, (to_template @ point)[:3] - (0, 4, 0), atol=1e-4)
    there = written[f"{THERE}.nii.gz"]
    on_grid = there.affine @ (7, 8, 9, 1)
    in_scan = np.linalg.inv(to_template) @ (on_grid + np.array([0, 4, 0, 0]))
    found = on_grid[:3] + warping.displacement_of(there)[:, 7, 8, 9]
    np.testing.assert_allclose(found, in_scan[:3], atol=1e-3)


TO_TEMPLATE = np.diag([1.25, 1.1, 1.15, 1.0])
TO_TEMPLATE[:3, 3] = (4, -6, 5)
WHITE, NOISE = 120.0, 3.0


@pytest.fixture
def known(rng, monkeypatch):
    """A head whose mask, field, affine and tissues the engines' stand-ins know: (scan, mask, tissues, seen by engines)."""
    shape, affine = (47, 59, 51), np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = (-95, -112, -110)
    mask, gm, wm = (
        part > 0.5
        for part in resampling.pull([template(name) for name in ("mask", "gm", "wm")], shape, affine, TO_TEMPLATE)
    )
    parts = [part.astype(np.float32) for part in (mask & gm, mask & wm & ~gm, mask & ~gm & ~wm)]
    brain = 80 * parts[0] + WHITE * parts[1] + 30 * parts[2] + rng.normal(0, NOISE, shape)
    field = np.exp(0.2 * np.indices(shape)[0] / shape[0]).astype(np.float32)
    head = np.where(mask, brain, rng.uniform(1, 20, shape)) * field
    seen = {}

    def cut(values, data):
        # What the engines are given is a box of the scan: find it by its first value.
        start = np.argwhere(seen["head"] == data.ravel()[0])[0]
        return values[tuple(slice(at, at + side) for at, side in zip(start, data.shape, strict=True))]

    def bias_field(data, inside, voxel_mm):
        seen["cropped"] = data
        return cut(field, data)

    def segment(values, inside, priors, voxel_mm):
        seen["segmented"] = values
        return tuple(cut(part, seen["cropped"]) for part in parts)

    monkeypatch.setattr(tissue, "brain_mask", lambda *_: mask)
    monkeypatch.setattr(tissue, "segment", segment)
    monkeypatch.setattr(intensity, "bias_field", bias_field)
    monkeypatch.setattr(registration, "register_affine", lambda *_: (TO_TEMPLATE, 0.8))
    monkeypatch.setattr(registration, "refine_affine", lambda *given: (given[2], 0.9))
    seen["head"] = head.astype(np.float32)
    scan = Scan(seen["head"], affine, "RAS", shape, affine, "sform")
    return scan, mask, parts, seen


def test_measures_of_a_known_head(known, tmp_path):
    scan, mask, parts, _ = known
    grid = Grid.mni(4.0)
    made = t1.prepare_t1(scan, grid, path=tmp_path / "scan.nii", work=tmp_path)
    found = made.measures
    assert found["head_size_factor"] == pytest.approx(1 / (1.25 * 1.1 * 1.15))
    assert found["tiv_ml"] == pytest.approx(mask.sum() * 0.064, rel=0.01)
    for name, part in zip(("gm", "wm", "csf"), parts, strict=True):
        assert found[f"{name}_ml"] == pytest.approx(part.sum() * 0.064, rel=0.01)
        # Modulated, the map has the subject's volume.
        assert made.maps[name].sum() * grid.voxel_ml == pytest.approx(found[f"{name}_ml"], rel=0.01)
    assert found["noise_ratio"] == pytest.approx(NOISE / WHITE, rel=0.1)
    assert found["tissue_contrast"] == pytest.approx((WHITE - 80) / WHITE, rel=0.01)
    assert found["t1_correlation"] == 0.9
    assert not made.notes["StrippedBefore"]


def test_mask_dice_compares_what_is_mostly_brain(known, tmp_path, monkeypatch):
    scan, mask, _, _ = known
    grid = Grid.mni(6.0)
    monkeypatch.setattr(t1, "refined_mask", lambda mask, *_: mask)
    made = t1.prepare_t1(scan, grid, path=tmp_path / "scan.nii", work=tmp_path)
    moved = resampling.resample(mask.astype(np.float32), scan.affine, grid, to_grid=TO_TEMPLATE, modulate=False)
    one, two = moved > 0.5, template("mask", grid).get_fdata() > 0.5
    expected = 2 * np.count_nonzero(one & two) / (np.count_nonzero(one) + np.count_nonzero(two))
    assert made.measures["mask_dice"] == pytest.approx(expected, abs=1e-9)
    assert made.measures["mask_dice"] > 0.98


def test_tissues_lie_in_the_scan_where_they_were_found(known, tmp_path):
    scan, mask, parts, seen = known
    made = t1.prepare_t1(scan, Grid.mni(6.0), path=tmp_path / "scan.nii", work=tmp_path)
    expected = np.where(mask, np.argmax(parts, axis=0) + 1, 0)
    assert (made.tissues == expected).mean() > 0.998
    # The field was divided away: white matter is as bright on the left as on the right.
    white = seen["segmented"][seen["segmented"] > 100]
    assert white.mean() == pytest.approx(WHITE, rel=0.01)


@pytest.mark.parametrize(
    ("volume_ml", "oriented_by", "step"),
    [
        (300.0, "sform", "voxel size is right"),
        (2500.0, "qform", "voxel size is right"),
        (300.0, "nothing", "way up it lies"),
    ],
)
def test_a_brain_of_no_human_size_is_refused_with_what_to_look_at(tmp_path, volume_ml, oriented_by, step):
    with pytest.raises(ScanError, match=f"rule 'brain volume' is broken: .* {volume_ml:.0f} ml.*{step}"):
        t1._check_brain(tmp_path / "scan.nii", volume_ml, oriented_by=oriented_by)
    t1._check_brain(tmp_path / "scan.nii", 1300.0, oriented_by=oriented_by)
