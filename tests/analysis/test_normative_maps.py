import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.normative import NormativeConfig, deviation_maps
from nilatent.analysis.normative import maps as normative_maps
from nilatent.analysis.normative.scans import ask, crossfitted
from nilatent.errors import GridError, SettingError
from nilatent.simulate import SimulationConfig
from nilatent.simulate.memory import simulate_maps
from nilatent.volumes import gm_mask, volumes_in_memory

CONFIG = NormativeConfig(covariates=("age",))
SHAPE = (15, 17, 13)


@pytest.fixture
def cohort(rng, grid):
    """Forty controls and ten patients whose voxels follow age; patients have lost tissue in a corner."""
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:-2, 2:-3, 1:-2] = True
    age = rng.uniform(30, 80, 50)
    array = 0.6 - 0.004 * (age[:, None, None, None] - 50) + 0.03 * rng.normal(size=(50, *SHAPE))
    array[40:, 3:7, 3:7, 3:7] -= 0.12
    array[:, 12, 5, 5] = 0.3
    index = pd.Index([f"sub-{number:02d}" for number in range(50)], name="scan_id")
    scans = pd.DataFrame(
        {"subject_id": index, "dataset": "one", "group": np.where(np.arange(50) < 40, "CN", "AD"), "age": age},
        index=index,
    )
    return volumes_in_memory(array, mask=mask, grid=grid, scans=scans[["subject_id", "dataset"]]), scans


def maps(cohort, chosen):
    volumes, scans = cohort
    return dict(deviation_maps(volumes, scans, np.arange(50) % 5, CONFIG, chosen=chosen))


def test_planted_atrophy_shows_in_the_map_of_the_patient(cohort):
    volumes, _ = cohort
    found = maps(cohort, ["sub-47", "sub-03"])
    lost = np.zeros(SHAPE, dtype=bool)
    lost[3:7, 3:7, 3:7] = True
    lost = lost[volumes.mask]
    assert list(found) == ["sub-47", "sub-03"]
    assert found["sub-47"][lost].mean() < -3
    assert found["sub-47"][~lost].mean() == pytest.approx(0, abs=0.15)
    assert found["sub-47"][~lost].std() == pytest.approx(1, abs=0.1)
    assert np.abs(found["sub-03"]).max() < 5.5
    assert found["sub-03"].std() == pytest.approx(1, abs=0.1)


def test_blocks_of_voxels_change_nothing(cohort, monkeypatch):
    volumes, scans = cohort
    whole = maps(cohort, ["sub-47"])["sub-47"]
    monkeypatch.setattr(normative_maps, "BLOCK_BYTES", 8 * 50 * 37)
    parted = maps(cohort, ["sub-47"])["sub-47"]
    np.testing.assert_array_equal(whole, parted)
    asked = ask(scans, np.arange(50) % 5, CONFIG)
    direct = np.full((50, int(volumes.mask.sum())), np.nan)
    for rows, found in crossfitted(volumes.masked(np.arange(50)).astype(float), asked):
        direct[rows] = found.z
    known = whole != 0
    np.testing.assert_allclose(whole[known], direct[47][known], rtol=1e-4)


def test_voxels_in_which_the_reference_hardly_differs_are_zero(cohort):
    volumes, _ = cohort
    edge = np.zeros(SHAPE, dtype=bool)
    edge[12, 5, 5] = True
    z = maps(cohort, ["sub-47"])["sub-47"]
    assert (z[edge[volumes.mask]] == 0).all()
    assert (z[~edge[volumes.mask]] != 0).all()
    data = volumes.data.copy()
    data[:, 12, 5, 5] += (1e-3 * np.arange(50) / 50).astype(np.float16)
    data[47, 12, 5, 5] = 0.4
    again = volumes_in_memory(data, mask=volumes.mask, grid=volumes.grid, scans=volumes.scans)
    assert (maps((again, cohort[1]), ["sub-47"])["sub-47"][edge[volumes.mask]] == 0).all()


def test_a_scan_that_cannot_be_judged_is_passed_over(cohort):
    volumes, scans = cohort
    scans.loc["sub-45", "age"] = np.nan
    assert list(maps((volumes, scans), ["sub-45", "sub-46"])) == ["sub-46"]


def test_rows_join_by_scan(cohort):
    volumes, scans = cohort
    turned = scans.iloc[::-1]
    folds = (np.arange(50) % 5)[::-1]
    found = dict(deviation_maps(volumes, turned, folds, CONFIG, chosen=["sub-44"]))
    np.testing.assert_allclose(found["sub-44"], maps(cohort, ["sub-44"])["sub-44"], atol=1e-4)
    with pytest.raises(GridError, match="sub-49b is not in the volumes"):
        dict(deviation_maps(volumes, scans.rename({"sub-49": "sub-49b"}), folds, CONFIG, chosen=["sub-49b"]))
    with pytest.raises(SettingError, match="sub-77 is not in the cohort"):
        maps(cohort, ["sub-77"])
    with pytest.raises(NotComparableError, match="too few: 9 "):
        maps((volumes, scans.assign(group=np.where(np.arange(50) < 9, "CN", "AD"))), ["sub-44"])


@pytest.mark.slow
def test_simulated_atrophy_shows_in_the_maps_of_patients():
    simulated = simulate_maps(SimulationConfig(n_subjects=60, spacing_mm=6.0, n_sites=1))
    scans = simulated.scans
    mask = gm_mask(simulated.grid)
    volumes = volumes_in_memory(simulated.maps, mask=mask, grid=simulated.grid, scans=scans[["subject_id", "dataset"]])
    patients = list(simulated.planted["atrophy"].sort_values().index[-10:])
    lost = simulated.truth_maps["loss"][mask] > 0.15
    found = dict(
        deviation_maps(volumes, scans, np.arange(60) % 5, NormativeConfig(covariates=("age", "sex")), chosen=patients)
    )
    inside, outside = (np.array([z[part].mean() for z in found.values()]) for part in (lost, ~lost))
    # People differ in shape by about as much as a quarter of the tissue of a region at 6 mm.
    assert (inside < outside - 0.2).all()
    assert inside.mean() < outside.mean() - 0.5
