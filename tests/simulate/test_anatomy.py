import dataclasses

import numpy as np
import pytest

from nilatent.atlas import load_atlas, region_weights
from nilatent.errors import SettingError
from nilatent.simulate import SimulationConfig, simulate_maps
from nilatent.simulate.anatomy import base_anatomy, draw_shape, grey_matter_maps, positions, to_voxels, widened
from nilatent.simulate.deform import sample
from nilatent.simulate.people import Visit, amplitudes_of
from nilatent.volumes import Grid, template

SMALL = SimulationConfig(spacing_mm=6.0, n_subjects=6, noise=0.0, site_effect=0.0)
HEALTHY = Visit(site=0, atrophy=0.0, head_size=0.8, gm_factor=1.1)


def with_(**settings) -> SimulationConfig:
    return dataclasses.replace(SMALL, **settings)


def regional_means(maps: np.ndarray, grid: Grid, names: list[str]) -> np.ndarray:
    weights = region_weights(load_atlas(), grid, np.ones(grid.shape, bool), min_voxels=0.0)
    rows = [weights.names.index(name) for name in names]
    return (weights.matrix[rows] @ maps.reshape(len(maps), -1).T).T / weights.n_voxels[rows]


@pytest.mark.parametrize("deformation", [0.0, 1.0])
@pytest.mark.parametrize("spacing_mm", [4.0, 6.0])
def test_total_grey_matter_is_the_templates_times_head_size(deformation, spacing_mm):
    config = with_(deformation=deformation, spacing_mm=spacing_mm)
    anatomy = base_anatomy(config)
    template_ml = anatomy.grey.sum() * anatomy.source.voxel_ml
    for index in range(3):
        total_ml = grey_matter_maps(config, anatomy, index, [HEALTHY]).sum() * anatomy.grid.voxel_ml
        assert total_ml == pytest.approx(0.8 * 1.1 * template_ml, rel=0.01)


def test_shapes_fold_nowhere_and_differ():
    shapes = [draw_shape(SimulationConfig(), index) for index in range(8)]
    assert all(shape.jacobian.min() > 0.1 for shape in shapes)
    moved_mm = np.stack([4.0 * shape.displacement[:, 10:30, 12:36, 10:30] for shape in shapes])
    assert 2.0 < moved_mm.std(axis=0).mean() < 6.0


def share_explained(images: np.ndarray, n_components: int) -> float:
    flat = images.reshape(len(images), -1)
    values = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False) ** 2
    return float(values[:n_components].sum() / values.sum())


def displacements(n_people: int, **settings) -> np.ndarray:
    return np.stack([draw_shape(with_(**settings), index).displacement for index in range(n_people)])


def shapes_of_grey(n_people: int, **settings) -> np.ndarray:
    config = with_(**settings)
    anatomy = base_anatomy(config)
    return np.stack([grey_matter_maps(config, anatomy, index, [HEALTHY])[0] for index in range(n_people)])


def test_few_causes_are_a_plane_when_small_and_a_curved_sheet_when_large():
    small = shapes_of_grey(8, n_causes=2, deformation=0.02)
    assert share_explained(small, 2) > 0.99
    assert share_explained(small, 1) < 0.95
    assert share_explained(shapes_of_grey(8, n_causes=2), 2) < 0.9
    assert share_explained(shapes_of_grey(8, n_causes=0, deformation=0.02), 2) < 0.75


def test_a_shape_follows_its_planted_amplitudes():
    config = with_(n_causes=2, deformation=0.02)
    amplitudes = np.stack([amplitudes_of(config, index) for index in range(6)])
    moved = displacements(6, n_causes=2, deformation=0.02)
    by_cause, *_ = np.linalg.lstsq(amplitudes, moved.reshape(6, -1), rcond=None)
    np.testing.assert_allclose(amplitudes @ by_cause, moved.reshape(6, -1), atol=0.05 * np.abs(moved).max())


def test_large_deformations_by_few_causes_fold_nowhere():
    shapes = [draw_shape(with_(n_causes=n, deformation=1.5), index) for n in (1, 4) for index in range(5)]
    assert all(shape.jacobian.min() > 0.02 for shape in shapes)
    moved_mm = [4.0 * np.abs(shape.displacement).max() for shape in shapes]
    assert 10.0 < np.median(moved_mm) < 40.0


def test_seeds_have_other_causes():
    one, two = (displacements(1, n_causes=1, seed=seed)[0].ravel() for seed in (1, 2))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.9


def test_a_shape_does_not_depend_on_the_spacing_of_the_maps():
    points = np.array([[-30.0, 10.0], [20.0, -60.0], [10.0, 40.0]], dtype=np.float32).reshape(3, 2, 1, 1)
    coarse, fine = (draw_shape(with_(spacing_mm=spacing), 3).at(points)[0] for spacing in (6.0, 2.0))
    np.testing.assert_array_equal(coarse, fine)


def test_positions_and_voxels_are_inverse():
    grid = Grid.mni(6.0)
    np.testing.assert_allclose(to_voxels(positions(grid), grid), np.indices(grid.shape), atol=1e-4)


def test_undeformed_brains_lose_the_planted_fraction():
    cohort = simulate_maps(with_(deformation=0.0))
    null = simulate_maps(with_(deformation=0.0, null=True))
    names = list(cohort.regions["name"])
    before, after = (regional_means(one.maps, one.grid, names) for one in (null, cohort))
    stated = np.outer(cohort.planted["atrophy"], cohort.regions["loss_on_grid"])
    np.testing.assert_allclose(1 - after / before, stated, atol=1e-5)
    assert (cohort.regions["loss_on_grid"] / cohort.regions["planted_loss"]).between(0.6, 1.0).all()


def test_deformed_brains_lose_the_planted_volume():
    cohort, null = simulate_maps(with_()), simulate_maps(with_(null=True))
    lost_ml = (null.maps - cohort.maps).reshape(6, -1).sum(axis=1) * cohort.grid.voxel_ml
    truth = cohort.truth_maps
    per_disease_ml = (truth["loss"] * truth["gm"]).sum() * cohort.grid.voxel_ml
    hidden = cohort.planted
    expected = hidden["atrophy"] * hidden["head_size"] * hidden["gm_factor"] * per_disease_ml
    np.testing.assert_allclose(lost_ml, expected, rtol=0.025, atol=1e-3)
    assert lost_ml.max() > 5


def test_groups_differ_where_planted_and_not_under_the_null():
    settings = {"n_subjects": 20, "deformation": 0.5}
    for null, low, high in ((False, 0.7, 1.3), (True, -0.15, 0.15)):
        cohort = simulate_maps(with_(null=null, **settings))
        share = regional_means(cohort.maps, cohort.grid, ["Temporal_Mid_L", "Temporal_Mid_R"])
        ratio = share[:, 0] / share[:, 1]
        sick = cohort.scans["group"] == "patient"
        assert low * 0.21 < 1 - ratio[sick].mean() / ratio[~sick].mean() < high * 0.21


def test_under_the_null_the_group_does_not_reach_the_brain():
    nobody, everybody = (
        simulate_maps(with_(null=True, group_fraction=share, n_subjects=3)).maps for share in (0.0, 1.0)
    )
    np.testing.assert_array_equal(nobody, everybody)


def test_effect_scales_the_loss():
    once, thrice = (base_anatomy(with_(effect=effect)) for effect in (0.5, 1.5))
    np.testing.assert_allclose(thrice.lost, 3 * once.lost, rtol=1e-5, atol=1e-7)
    assert once.lost.max() > 0.05


def test_class_mediated_loss_is_the_same_in_every_patient():
    settings = {"deformation": 0.0, "class_mediated": True}
    cohort, null = simulate_maps(with_(**settings)), simulate_maps(with_(null=True, **settings))
    sick = (cohort.scans["group"] == "patient").to_numpy()
    before, after = (regional_means(one.maps, one.grid, ["Hippocampus_L"])[sick] for one in (null, cohort))
    assert (1 - after / before).std() < 1e-6


def test_older_brains_have_less_grey_matter():
    anatomy = base_anatomy(SMALL)
    younger, older = grey_matter_maps(
        SMALL, anatomy, 0, [dataclasses.replace(HEALTHY, gm_factor=factor) for factor in (1.0, 0.9)]
    )
    np.testing.assert_allclose(older, 0.9 * younger, rtol=1e-5)
    cohort = simulate_maps(with_(n_subjects=40, null=True, deformation=0.0))
    total = cohort.maps.reshape(40, -1).sum(axis=1) / cohort.planted["head_size"]
    assert np.corrcoef(total, cohort.scans["age"])[0, 1] < -0.3


def test_slopes_over_sessions_are_recovered_from_the_maps():
    settings = {"n_sessions": 3, "n_subjects": 4, "deformation": 0.0}
    cohort, null = simulate_maps(with_(**settings)), simulate_maps(with_(null=True, **settings))
    before, after = (regional_means(one.maps, one.grid, ["Hippocampus_L"])[:, 0] for one in (null, cohort))
    lost = 1 - after / before
    for _, rows in cohort.scans.assign(lost=lost).groupby("subject_id"):
        hidden = cohort.planted.loc[rows.index[0], "disease_per_year"] * cohort.regions.loc[0, "loss_on_grid"]
        assert np.polyfit(rows["years"], rows["lost"], 1)[0] == pytest.approx(hidden, abs=1e-3)


def test_one_person_alone_is_the_same_as_among_others():
    np.testing.assert_array_equal(simulate_maps(with_(n_subjects=2)).maps, simulate_maps(SMALL).maps[:2])


def test_truth_maps_lie_on_the_grid_where_the_regions_are():
    cohort = simulate_maps(with_(regions=("Hippocampus_L", "Thalamus_R"), losses=(0.3, 0.2), n_subjects=1))
    loss = cohort.truth_maps["loss"]
    assert loss.shape == cohort.grid.shape == cohort.maps.shape[1:]
    assert loss.max() == pytest.approx(0.3, abs=0.02)
    points = positions(cohort.grid)
    for side, name, centre in ((-1, "Hippocampus_L", (-26, -21, -10)), (1, "Thalamus_R", (12, -18, 8))):
        here = loss * (side * points[0] > 0)
        found = (points * here).reshape(3, -1).sum(axis=1) / here.sum()
        np.testing.assert_allclose(found, centre, atol=4, err_msg=name)


def test_maps_look_like_the_template():
    cohort = simulate_maps(with_(n_subjects=6, spacing_mm=4.0))
    grey = template("gm", cohort.grid).get_fdata().ravel()
    to_template = [np.corrcoef(one.ravel(), grey)[0, 1] for one in cohort.maps]
    between = np.corrcoef(cohort.maps.reshape(6, -1))[np.triu_indices(6, 1)]
    assert min(to_template) > 0.65
    assert 0.5 < between.mean() < 0.95


def test_sites_differ_in_level_and_noise_and_not_when_switched_off():
    flat = base_anatomy(with_(n_sites=3))
    assert (flat.site_gain == 1).all()
    sites = base_anatomy(with_(n_sites=3, site_effect=1.0, noise=1.0))
    assert (np.diff(sites.site_noise) > 0).all()
    assert sites.site_gain.std(axis=0).min() > 0
    maps = [grey_matter_maps(SMALL, sites, 0, [dataclasses.replace(HEALTHY, site=site)])[0] for site in (0, 2)]
    clean = grey_matter_maps(SMALL, flat, 0, [HEALTHY])[0]
    inside = clean > 0.3
    noise = [
        (one[inside] / clean[inside] / sites.site_gain[site][inside]).std()
        for site, one in zip((0, 2), maps, strict=True)
    ]
    np.testing.assert_allclose(noise, sites.site_noise[[0, 2]], rtol=0.05)


def test_each_visit_has_its_own_noise():
    config = with_(noise=1.0)
    first, second = grey_matter_maps(config, base_anatomy(config), 0, [HEALTHY, HEALTHY])
    assert (first != second)[first > 0].mean() > 0.99


def test_an_unknown_region_is_refused_with_the_nearest_name():
    with pytest.raises(SettingError, match=r"has no 'Hipocampus_L'\. Did you mean 'Hippocampus_L'"):
        base_anatomy(with_(regions=("Hipocampus_L",), losses=(0.2,)))


def test_heads_have_no_common_grid():
    with pytest.raises(SettingError, match="kind='t1'"):
        simulate_maps(with_(kind="t1"))


def test_wide_ventricles_take_room_from_the_tissue_around_them_and_no_tissue_away():
    sick = dataclasses.replace(HEALTHY, atrophy=1.0)
    plain, wide = with_(effect=0.0), with_(effect=0.0, ventricles_mm=4.0)
    anatomy = base_anatomy(plain)
    before, after = (grey_matter_maps(config, anatomy, 0, [HEALTHY, sick]) for config in (plain, wide))
    np.testing.assert_array_equal(before[0], after[0])
    assert after[1].sum() == pytest.approx(before[1].sum(), rel=0.01)
    points = positions(anatomy.grid)
    origin, change = widened(wide, sick, points)
    fluid = template("csf", anatomy.grid).get_fdata(dtype=np.float32)
    deep = (np.abs(points[0]) < 32) & (points[1] > -48) & (points[1] < 32) & (points[2] > -12) & (points[2] < 32)
    now = sample(fluid, to_voxels(origin, anatomy.grid))
    assert 1.2 < now[deep].sum() / fluid[deep].sum() < 2.0
    assert change.min() > 0
    # The wall of the left ventricle: grey matter of the caudate is further from the middle than it was.
    caudate = deep & (points[0] < 0) & (points[1] > -10) & (points[2] > 0)
    where = [np.average(points[0][caudate], weights=image[1][caudate]) for image in (before, after)]
    assert where[1] < where[0] - 0.3


def test_twice_the_disease_moves_the_walls_twice_as_far():
    config = with_(ventricles_mm=2.0)
    points = positions(base_anatomy(config).grid)
    shifts = [
        np.abs(widened(config, dataclasses.replace(HEALTHY, atrophy=size), points)[0] - points).max()
        for size in (0.5, 1.0)
    ]
    assert shifts[1] / shifts[0] == pytest.approx(2, rel=0.2)
