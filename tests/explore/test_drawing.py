from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tests.explore.made import HOSTILE, N_TRAINING, SHAPE, Made, N, make

from nilatent.explore.drawing import Drawer, scan_volume
from nilatent.explore.nifti import nifti_bytes
from nilatent.explore.study import explored
from nilatent.finding import Finding


def test_scan_reconstruction_and_error_are_of_the_scan_that_was_asked_for(made: Made, drawer: Drawer) -> None:
    study, volumes = made.study, made.study.pools.volumes
    for row in (0, 7, N - 1):
        scan = volumes.data[list(volumes.scans.index).index(study.space.scans[row])].astype(float)
        assert np.array_equal(scan_volume(study, row), scan)
        drawn = made.volume(made.decode(study.space.values[row]))
        assert np.allclose(drawer.reconstruction(row), drawn, atol=1e-6)
        assert np.allclose(drawer.error(row), np.where(volumes.mask, drawn - scan, 0), atol=1e-6)


def test_a_moved_scan_is_the_decoder_at_the_sum_of_start_and_moves(made: Made, drawer: Drawer) -> None:
    study = made.study
    slides = {one.direction.name: number for number, one in enumerate(study.slides)}
    moves = {slides["z001"]: -0.7, slides["age"]: 0.5}
    step = sum(units * study.slides[number].direction.step for number, units in moves.items())
    for row, start in ((5, study.space.values[5]), (None, study.space.values[:N_TRAINING].mean(axis=0))):
        moved = drawer.moved(row, moves)
        assert np.allclose(moved.start, made.volume(made.decode(start)), atol=1e-6)
        assert np.allclose(moved.image, made.volume(made.decode(start + step)), atol=1e-6)


def test_a_place_beyond_every_training_scan_is_said_for_the_slider_that_goes_there(made: Made, drawer: Drawer) -> None:
    slides = {one.direction.name: number for number, one in enumerate(made.study.slides)}
    along = made.study.space.values[:N_TRAINING, 2]
    sd = made.study.slides[slides["z002"]].direction.step[2]
    farthest = (along.max() - along.mean()) / sd
    moves = {slides["z001"]: 0.1}
    assert drawer.moved(None, moves | {slides["z002"]: 0.99 * farthest}).beyond == ()
    assert drawer.moved(None, moves | {slides["z002"]: 1.01 * farthest}).beyond == (slides["z002"],)


def test_sliders_of_latents_stand_where_the_scan_is_and_others_at_no_change(made: Made) -> None:
    study = made.study
    training = study.space.values[:N_TRAINING]
    first = training[::2]
    places = dict(zip([one.direction.name for one in study.slides], study.places(9), strict=True))
    expected = (study.space.values[9, 0] - training[:, 0].mean()) / first[:, 0].std(ddof=1)
    assert places["z000"] == pytest.approx(expected)
    assert places["age"] == places["group:patient:control"] == 0
    assert study.places(None) == [0.0] * len(study.slides)
    ends = {one.direction.name: one.high for one in study.slides}
    age = study.pools.prepared.scans["age"].iloc[:N_TRAINING]
    assert ends["age"] == pytest.approx(3 * age.std() / 10)
    assert (ends["pc1"], ends["group:patient:control"]) == (3, 2)


def test_a_mean_counts_every_person_once(made: Made, drawer: Drawer) -> None:
    study, rows = made.study, [0, 1, 2, 5]
    weights = np.array([1, 1, 2, 2]) / 6
    scans = np.stack([scan_volume(study, row) for row in rows])
    assert np.allclose(drawer.mean(rows, "scans"), np.tensordot(weights, scans, 1), atol=1e-6)
    drawn = made.decode(study.space.values[rows])
    assert np.allclose(drawer.mean(rows, "reconstructions"), made.volume(weights @ drawn), atol=1e-6)


def test_a_decoder_that_is_told_columns_is_told_those_of_the_scan(rng: np.random.Generator) -> None:
    made = make(rng, told=("age",))
    drawer = Drawer(made.study)
    drawer.reconstruction(4)
    drawer.moved(None, {})
    drawer.mean([3, 8], "reconstructions")
    drawer.close()
    ages = made.study.pools.prepared.scans["age"]
    first, usual, *_ = made.told[0], made.told[1]
    assert list(first["age"]) == [ages.iloc[4]]
    assert usual is None
    assert list(made.told[-1]["age"]) == [ages.iloc[3], ages.iloc[8]]


def test_maps_of_the_run_come_before_the_latents_and_in_the_order_of_the_scans(made: Made) -> None:
    own, study = made.study.scatter, made.study
    label, values = own["axes"][0]["label"], own["axes"][0]["values"]
    centred = study.space.values - study.space.values[:N_TRAINING].mean(axis=0)
    assert label == "pc1 of the latents (SD)"
    first = next(one.direction.step for one in study.slides if one.direction.name == "pc1")
    assert np.allclose(values, centred @ first / (first @ first), atol=1e-5)
    assert own["columns"][0]["name"] == "group"
    assert not {"path", "subject_id"} & {column["name"] for column in own["columns"]}
    scores = np.arange(N, dtype=float)[::-1, None]
    data = xr.Dataset({"scores": (("scan", "component"), scores)}, coords={"scan": list(study.space.scans[::-1])})
    table = pd.DataFrame({"component": ["t-SNE 1"], "explained": [np.nan]})
    found = Finding("projections", "", "", table, data, {}, (), N, N)
    axes = explored(study.pools, study.space, found).scatter["axes"]
    assert axes[0] == {"label": "t-SNE 1", "values": list(map(float, range(N)))}
    assert [axis["label"] for axis in axes[1:]] == [axis["label"] for axis in own["axes"]]
    other = Finding(**(vars(found) | {"data": data.isel(scan=slice(3, None))}))
    assert explored(study.pools, study.space, other).scatter["axes"] == own["axes"]


@pytest.mark.parametrize(("exact", "bound"), [(True, 0.0), (False, 2e-5)])
def test_bytes_of_a_volume_are_read_as_it_was(
    made: Made, rng: np.random.Generator, exact: bool, bound: float, tmp_path: Path
) -> None:
    volume = rng.normal(size=SHAPE).astype(np.float32)
    volume[0] = 0
    path = tmp_path / "volume.nii"
    path.write_bytes(nifti_bytes(volume, made.study.pools.volumes.grid, description="x" * 200, exact=exact))
    image = nib.load(path)
    assert np.allclose(image.affine, made.study.pools.volumes.grid.affine)
    assert np.abs(image.get_fdata() - volume).max() <= bound * np.abs(volume).max()
    assert (image.get_fdata()[0] == 0).all()
    assert image.header.get_data_dtype() == (np.float32 if exact else np.int16)


def test_names_of_scans_are_kept_as_they_are(made: Made) -> None:
    assert made.study.rows[HOSTILE] == N - 1
