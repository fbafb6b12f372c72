from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from nilatent.errors import ScanError
from nilatent.preprocess import (
    derivative,
    intensity,
    registration,
    resampling,
    rigid,
    space,
    t1,
    tissue,
    warping,
    within,
)
from nilatent.provenance import hash_file, read_json
from nilatent.volumes import Grid, template_array

GRID = Grid.mni(6.0)
CORNERS = np.array([(x, y, z, 1.0) for x in (-60, 60) for y in (-90, 60) for z in (-40, 70)]).T
MOVED = [([4, -3, 5], [3, -2, 4]), ([-5, 2, -6], [-4, 3, 1]), ([2, 6, 1], [0, 5, -3])]


def movement(angles, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def brain_of(data, affine, *, stripped=False):
    mask = data > 0
    whole = tuple(slice(0, side) for side in data.shape)
    return t1.Brain(data, mask, affine, whole, np.ones_like(data), stripped, int(mask.sum()))


@pytest.fixture
def light(monkeypatch):
    """The engines replaced by what they would find, and averages of 6 mm, so that a template takes a second."""
    monkeypatch.setattr(rigid, "AVERAGE_MM", 6.0)
    monkeypatch.setattr(rigid, "COARSE_MM", 6.0)
    monkeypatch.setattr(rigid, "FINE_MM", 6.0)
    monkeypatch.setattr(rigid, "N_ROUNDS", 1)
    monkeypatch.setattr(rigid, "start_turns", lambda: [np.eye(3)])
    monkeypatch.setattr(tissue, "stripped_mask", lambda *_: None)
    monkeypatch.setattr(tissue, "brain_mask", lambda data, _: data > 0)
    monkeypatch.setattr(intensity, "bias_field", lambda data, *_: np.ones_like(data))
    monkeypatch.setattr(registration, "register_affine", lambda *_: (np.diag([1.1, 1.2, 0.9, 1.0]), 0.8))
    monkeypatch.setattr(registration, "refine_affine", lambda *given: (given[2], 0.9))
    monkeypatch.setattr(t1, "refined_mask", lambda mask, *_: mask)


@pytest.fixture
def visits(tmp_path, light, rng):
    """Three visits of one brain, each moved, of its own brightness and with noise, and how each was moved."""
    made = []
    for number, (angles, shift) in enumerate(MOVED):
        brain = template_array("t1", 6.0)
        values = np.where(brain > 0, (number + 1) * np.maximum(brain + rng.normal(0, 0.01, brain.shape), 1e-3), 0)
        path = tmp_path / f"ses-{number}_T1w.nii.gz"
        image = nib.Nifti1Image(values.astype(np.float32), movement(angles, shift) @ GRID.affine)
        image.set_sform(image.affine, code=1)
        nib.save(image, path)
        made.append(within.Visit(f"sub-1_ses-{number}", path, hash_file(path), f"bids:one:{path.name}"))
    return made


def place_as_known(monkeypatch, visits):
    """Let the visits lie where they do, for what does not depend on how that is found."""
    by_hash = sorted(visits, key=lambda visit: visit.sha256)
    led = [np.linalg.inv(movement(*MOVED[int(visit.scan_id[-1])])) for visit in by_hash]
    monkeypatch.setattr(rigid, "align", lambda _: led)


def job_of(visits, folder, **changed):
    return replace(within.SubjectJob(folder, "sub-1", tuple(visits), "affine", "key", None), **changed)


def test_every_visit_is_led_to_one_place_by_one_affine(visits, tmp_path):
    job = job_of(visits, tmp_path / "out")
    within.make_template(job)
    assert within.is_made(job)
    found = within.shared(job)
    led = [
        common.to_template @ common.to_subject @ movement(*moved)
        for common, moved in zip((found[visit.scan_id] for visit in visits), MOVED, strict=True)
    ]
    for other in led[1:]:
        np.testing.assert_allclose(other @ CORNERS, led[0] @ CORNERS, atol=0.5)
    # The three sizes are those of the affine: nothing but a rigid movement differs between visits.
    for common in found.values():
        np.testing.assert_array_equal(common.to_template, np.diag([1.1, 1.2, 0.9, 1.0]))
        assert common.n_visits == 3
        assert common.correlation > 0.95
    # However bright a scanner made a visit, it weighs as much as the others.
    assert np.median(nib.load(job.mean).get_fdata()[nib.load(job.mask).get_fdata() > 0]) == pytest.approx(1, abs=0.05)


def test_the_order_of_visits_changes_nothing(visits, tmp_path):
    jobs = [job_of(visits, tmp_path / "one"), job_of(visits[::-1], tmp_path / "two")]
    for job in jobs:
        within.make_template(job)
    for name in ("mean", "mask", "side_car"):
        assert getattr(jobs[0], name).read_bytes() == getattr(jobs[1], name).read_bytes()


def test_a_visit_without_a_brain_drops_out_and_is_tried_again(visits, tmp_path, monkeypatch):
    broken = replace(visits[1], path=tmp_path / "gone.nii.gz")
    place_as_known(monkeypatch, [visits[0], visits[2]])
    job = job_of([visits[0], broken, visits[2]], tmp_path / "out")
    within.make_template(job)
    assert set(within.shared(job)) == {visits[0].scan_id, visits[2].scan_id}
    rule, reason = within.failed_visits(job)[broken.scan_id]
    assert rule
    # Under the name in the data set: the place of the raw data on this machine is not the derivative's business.
    assert broken.source in reason
    assert str(tmp_path) not in reason
    assert not within.is_made(job)
    # With one visit left there is no template, and none of an earlier day stays.
    within.make_template(job_of([broken, visits[2]], tmp_path / "out"))
    assert within.shared(job) == {}
    assert not list((tmp_path / "out").iterdir())


def test_a_visit_that_changed_since_the_cohort_was_read_drops_out(visits, tmp_path, monkeypatch):
    place_as_known(monkeypatch, [visits[0], visits[2]])
    job = job_of([visits[0], replace(visits[1], sha256="of other bytes"), visits[2]], tmp_path / "out")
    within.make_template(job)
    assert set(within.shared(job)) == {visits[0].scan_id, visits[2].scan_id}
    rule, reason = within.failed_visits(job)[visits[1].scan_id]
    assert rule == derivative.UNCHANGED
    assert visits[1].source in reason
    assert not within.is_made(job)


def test_another_person_among_the_visits_is_left_out_or_refused(visits, tmp_path, rng, monkeypatch):
    # The smallest hash of all, so that the first round starts at the stranger.
    monkeypatch.setattr(derivative, "check_unchanged", lambda *_: None)
    brain = template_array("t1", 6.0)
    other = np.where(brain > 0, ndimage.gaussian_filter(rng.random(brain.shape), 1.5), 0).astype(np.float32)
    stranger = replace(visits[1], path=tmp_path / "stranger.nii.gz", sha256="0")
    nib.save(nib.Nifti1Image(other, GRID.affine), stranger.path)
    job = job_of([visits[0], stranger, visits[2]], tmp_path / "out")
    within.make_template(job)
    rule, reason = within.failed_visits(job)[stranger.scan_id]
    assert rule == "lies on the subject's other visits"
    assert "0.65 is needed" in reason
    assert min(common.correlation for common in within.shared(job).values()) > 0.9
    with pytest.raises(ScanError, match=f"{stranger.scan_id} and .*lies on the subject's other visits"):
        within.make_template(job_of([visits[0], stranger], tmp_path / "out"))


def test_a_visit_is_cut_by_the_subjects_mask_and_not_by_its_own(visits, tmp_path, monkeypatch):
    place_as_known(monkeypatch, visits[:2])
    job = job_of(visits[:2], tmp_path / "out")
    within.make_template(job)
    common = within.shared(job)[visits[1].scan_id]
    seen = {}

    def on_template(scan, brain, placed, grid, *, modulation):
        seen.update(brain=brain, placed=placed, modulation=modulation)
        return t1.Prepared({}, placed.to_template, {}, {"Modulated": modulation})

    monkeypatch.setattr(t1, "on_template", on_template)
    # Deepbet would be wrong about this visit; it is not asked.
    monkeypatch.setattr(tissue, "brain_mask", lambda data, _: np.zeros(data.shape, dtype=bool))
    plain = space.load_scan(visits[1].path)
    shade = np.exp(0.4 * np.indices(plain.data.shape)[1] / plain.data.shape[1]).astype(np.float32)
    scan = replace(plain, data=plain.data * shade)
    made = within.prepare_visit(scan, GRID, common, path=visits[1].path, modulation=False)
    assert seen["modulation"] is False
    assert made.notes["WithinSubject"] == 2
    assert made.notes["SubjectTemplate"] == hash_file(job.side_car)
    assert made.measures["subject_correlation"] == common.correlation
    np.testing.assert_allclose(seen["placed"].to_template, common.to_template @ common.to_subject)
    # What N4 leaves of shading is divided away too, and said.
    brain = seen["brain"]
    box, inside = brain.box, brain.mask & (plain.data[brain.box] > 0)
    np.testing.assert_allclose((brain.values * brain.field)[inside], scan.data[box][inside], rtol=1e-4)
    assert np.log(brain.values[inside] / plain.data[box][inside]).std() < 0.2 * np.log(shade[box][inside]).std()
    own, shared = scan.data > 0, np.zeros(scan.data.shape, dtype=bool)
    shared[box] = brain.mask
    assert 2 * (own & shared).sum() / (own.sum() + shared.sum()) > 0.97
    # A mask that came with the scan stays.
    monkeypatch.setattr(tissue, "stripped_mask", lambda data, _: data > np.median(data[data > 0]) / 2)
    within.prepare_visit(scan, GRID, common, path=visits[1].path)
    assert seen["brain"].mask.sum() == (scan.data > np.median(scan.data[scan.data > 0]) / 2).sum()


def test_the_agreed_outline_lies_midway_and_stripped_scans_do_not_vote(light):
    away = np.linalg.norm(np.indices((31, 33, 29)) - np.array([15, 16, 14])[:, None, None, None], axis=0) * 6
    affine = np.diag([6.0, 6, 6, 1])
    small, large, huge = (brain_of((away < radius).astype(np.float32), affine) for radius in (48, 66, 80))
    still = [np.eye(4)] * 3
    agreed = within._agreed_mask([small, large], still[:2], away.shape, affine)
    assert away[agreed].max() == pytest.approx(57, abs=4)
    assert away[~agreed].min() == pytest.approx(57, abs=4)
    with_stripped = within._agreed_mask([small, large, replace(huge, stripped=True)], still, away.shape, affine)
    np.testing.assert_array_equal(with_stripped, agreed)
    all_stripped = [replace(brain, stripped=True) for brain in (small, large)]
    np.testing.assert_array_equal(within._agreed_mask(all_stripped, still[:2], away.shape, affine), agreed)


def test_shading_between_visits_is_found_and_loss_of_tissue_is_not(rng):
    mean = template_array("t1", 6.0)
    mask, voxel_mm = mean > 0, np.array([6.0, 6.0, 6.0])
    along = np.indices(mean.shape)[1] / mean.shape[1] - 0.5
    shade = np.exp(0.2 * along).astype(np.float32)
    values = (7 * mean * shade * (1 + rng.normal(0, 0.02, mean.shape))).astype(np.float32)
    field = intensity.relative_field(values, mean, mask, voxel_mm)
    left = np.log(field / shade)[mask]
    assert left.std() < 0.13 * np.log(shade[mask]).std()
    # A hole of two centimetres, where tissue became fluid, hardly shows.
    lost = values.copy()
    lost[12:15, 20:23, 13:16] *= 0.3
    moved = np.log(intensity.relative_field(lost, mean, mask, voxel_mm) / field)[mask]
    assert np.abs(moved).max() < 0.01


def test_the_warp_of_the_average_is_the_warp_of_every_visit(visits, tmp_path, monkeypatch):
    grid = Grid.mni(within.warping.SPACING_MM)
    axes = np.arange(1, 4, dtype=np.float32).reshape(3, 1, 1, 1)
    fields = [np.broadcast_to(by * axes, (3, *grid.shape)) for by in (0.3, -0.7)]
    monkeypatch.setattr(t1, "warp_of", lambda *_, **__: within.resampling.Warp(*fields, grid))
    place_as_known(monkeypatch, visits[:2])
    job = job_of(visits[:2], tmp_path / "out", normalisation="syn")
    within.make_template(job)
    for common in within.shared(job).values():
        warp = within._warp(common.fields)
        np.testing.assert_array_equal(warp.forward, fields[0])
        np.testing.assert_array_equal(warp.inverse, fields[1])
    listed = read_json(job.side_car)["nilatent"]["Outputs"]
    assert sum(name.endswith("_xfm.nii.gz") for name in listed) == 2
    # Another normalisation takes their place.
    within.make_template(job_of(visits[:2], tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*_xfm.nii.gz"))


def test_a_visit_is_placed_by_the_subjects_warp_and_judged_by_itself(visits, tmp_path, monkeypatch):
    grid = Grid.mni(warping.SPACING_MM)
    axes = np.arange(1, 4, dtype=np.float32).reshape(3, 1, 1, 1)
    fields = [np.broadcast_to(by * axes, (3, *grid.shape)) for by in (0.3, -0.7)]
    monkeypatch.setattr(t1, "warp_of", lambda *_, **__: resampling.Warp(*fields, grid))
    place_as_known(monkeypatch, visits[:2])
    job = job_of(visits[:2], tmp_path / "out", normalisation="syn")
    within.make_template(job)
    seen = {}

    def kept(scan, brain, placed, grid, **_):
        seen.update(brain=brain, placed=placed)
        return t1.Prepared({}, placed.to_template, {}, {})

    monkeypatch.setattr(t1, "on_template", kept)
    common = within.shared(job)[visits[0].scan_id]
    within.prepare_visit(space.load_scan(visits[0].path), GRID, common, path=visits[0].path)
    placed, brain = seen["placed"], seen["brain"]
    np.testing.assert_array_equal(placed.warp.forward, fields[0])
    expected = registration.correlation(brain.values, brain.affine, placed.to_template)
    assert placed.t1_correlation == expected


def test_the_average_is_cut_by_the_template_and_refused_where_it_does_not_lie_on_it(visits, tmp_path, monkeypatch):
    place_as_known(monkeypatch, visits[:2])
    whole, cut = job_of(visits[:2], tmp_path / "whole"), job_of(visits[:2], tmp_path / "cut")
    within.make_template(whole)
    monkeypatch.setattr(t1, "refined_mask", lambda mask, *_: ndimage.binary_erosion(mask))
    within.make_template(cut)
    before, after = (np.asarray(nib.load(job.mask).dataobj) > 0 for job in (whole, cut))
    np.testing.assert_array_equal(after, ndimage.binary_erosion(before))
    monkeypatch.setattr(registration, "refine_affine", lambda *given: (given[2], 0.1))
    with pytest.raises(ScanError, match="aligns with the template"):
        within.make_template(cut)
