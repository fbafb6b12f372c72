import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nilatent.cohort import read_cohort
from nilatent.simulate import SimulationConfig, simulate
from nilatent.simulate.head import Head, base_head, head_images
from nilatent.simulate.people import Visit

COARSE = SimulationConfig(kind="t1", native_spacing_mm=4.0, n_subjects=2, noise=0.0, site_effect=0.0)
HEALTHY = Visit(site=0, atrophy=0.0, head_size=0.8, gm_factor=1.0)


@pytest.fixture(scope="session")
def head() -> Head:
    return base_head(COARSE)


def image_of(head: Head, visit: Visit, config: SimulationConfig = COARSE) -> np.ndarray:
    (image,) = head_images(config, head, 0, [visit])
    return np.asarray(image.dataobj).astype(float)


def test_head_has_bright_brain_dark_skull_and_air(head):
    image = image_of(head, HEALTHY)
    x, y, z = (side // 2 for side in image.shape)
    brain = image[x - 8 : x + 8, y - 8 : y + 8, z + 4 : z + 12]
    assert 250 < np.median(brain) < 800
    assert image[:2].max() < 5
    profile = image[:, y, z + 4]
    scalp = np.flatnonzero(profile > 200)[0]
    assert profile[scalp : scalp + 6].min() < 0.6 * profile[scalp], "a dark shell lies between scalp and brain"


def test_larger_heads_are_larger_by_the_stated_volume(head):
    sizes = [
        np.count_nonzero(image_of(head, dataclasses.replace(HEALTHY, head_size=size))[:, :, 25:] > 60)
        for size in (0.7, 0.9)
    ]
    assert sizes[1] / sizes[0] == pytest.approx(0.9 / 0.7, rel=0.12)


def test_atrophy_darkens_the_brain_and_null_does_not(head):
    sick = dataclasses.replace(HEALTHY, atrophy=1.5)
    difference = image_of(head, sick) - image_of(head, HEALTHY)
    assert difference.min() < -20
    assert difference.max() <= 1
    null = dataclasses.replace(COARSE, null=True)
    np.testing.assert_array_equal(image_of(base_head(null), sick, config=null), image_of(head, HEALTHY, config=COARSE))


def test_visits_differ_in_pose_and_sites_in_scale(head):
    first, second = head_images(COARSE, head, 0, [HEALTHY, HEALTHY])
    assert np.corrcoef(np.asarray(first.dataobj).ravel(), np.asarray(second.dataobj).ravel())[0, 1] < 0.999
    config = dataclasses.replace(COARSE, site_effect=1.0)
    levels = [np.percentile(image_of(head, dataclasses.replace(HEALTHY, site=site), config), 95) for site in (0, 1)]
    assert levels[1] / levels[0] > 1.4


def test_noise_reaches_the_air(head):
    noisy = image_of(head, HEALTHY, config=dataclasses.replace(COARSE, noise=1.0))
    # Rayleigh noise in air: mean sd * sqrt(pi / 2), at the white-matter level of 600 and a noise of 2.5 %.
    assert noisy[:2, :, -10:].mean() == pytest.approx(600 * 0.025 * np.sqrt(np.pi / 2), rel=0.05)


def test_raw_dataset_is_read_as_t1(tmp_path: Path):
    out = simulate(tmp_path / "raw", COARSE)
    cohort = read_cohort([out])
    assert cohort.scans.index.tolist() == ["sub-001", "sub-002"]
    image = nib.load(cohort.scans["path"].iloc[0])
    assert image.get_data_dtype() == np.int16
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(image.header.get_zooms(), 4.0)
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
