from statistics import NormalDist

import numpy as np
import pytest
from scipy import ndimage

from nilatent.errors import ScanError
from nilatent.preprocess import tissue

GM, WM, CSF = range(3)
INTENSITY = np.array([60.0, 100.0, 20.0])
CUBES = np.ones(3)


def radius_map(shape):
    centred = [np.arange(side) - (side - 1) / 2 for side in shape]
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*centred, indexing="ij")))


def ball(shape, radius):
    centred = [np.arange(side) - side // 2 for side in shape]
    return sum(axis**2 for axis in np.meshgrid(*centred, indexing="ij")) < radius**2


def blurred(truth, sigma):
    return [ndimage.gaussian_filter(share.astype(np.float32), sigma) for share in truth]


def one_hot(labels):
    return np.stack([labels == tissue for tissue in (GM, WM, CSF)]).astype(np.float32)


def coarse(fine):
    """Mean over blocks of 2 x 2 x 2: what a scanner makes of detail below its voxel."""
    x, y, z = (side // 2 for side in fine.shape[-3:])
    return fine.reshape(-1, x, 2, y, 2, z, 2).mean(axis=(2, 4, 6))


def folds(rng, shape, sigma=4):
    """White matter, cortex around it and fluid around that, in random folds."""
    rank = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
    return np.array([CSF, GM, WM])[np.digitize(rank, np.quantile(rank, [0.2, 0.65]))]


def scan(shares, mask, rng, noise):
    values = np.tensordot(INTENSITY, shares, axes=1) + rng.normal(0, noise, mask.shape)
    return np.where(mask, values, 0).astype(np.float32)


@pytest.fixture
def folded(rng):
    mask = ball((45, 47, 43), 20)
    truth = one_hot(folds(rng, mask.shape))
    return scan(truth, mask, rng, 6), mask, truth


def segment(data, mask, priors, voxel_mm=CUBES):
    return np.stack(tissue.segment(data, mask, priors, voxel_mm))


def test_a_stripped_scan_gives_its_mask_with_holes_filled():
    inside = ball((37, 41, 35), 13)
    data = np.where(inside, 50.0, 0.0).astype(np.float32)
    data[18, 20, 17] = 0
    data[1, 1, 1] = 3
    found = tissue.stripped_mask(data, 0.125)
    np.testing.assert_array_equal(found, inside)


def test_a_whole_head_is_not_taken_for_a_stripped_one(rng):
    head = np.where(ball((37, 41, 35), 17), 50.0, 0.0).astype(np.float32)
    assert tissue.stripped_mask(head, 0.2) is None
    noisy = (np.where(ball((37, 41, 35), 13), 50.0, 0.0) + np.abs(rng.normal(0, 1, head.shape))).astype(np.float32)
    assert tissue.stripped_mask(noisy, 0.125) is None


def test_segmentation_finds_planted_tissues_and_repeats_itself(folded):
    data, mask, truth = folded
    found, again = (segment(data, mask, blurred(truth, 2)) for _ in range(2))
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(found.sum(axis=0), mask, atol=1e-5)
    assert (found >= 0).all()
    assert (found.argmax(axis=0) == truth.argmax(axis=0))[mask].mean() > 0.97


def test_shares_are_those_of_mixed_voxels(rng):
    fine = one_hot(folds(rng, (84, 88, 80), sigma=6))
    truth, mask = coarse(fine), np.ones((42, 44, 40), dtype=bool)
    found = segment(scan(truth, mask, rng, 2), mask, blurred(truth, 2))
    mixed = (truth.max(axis=0) < 0.9) & (truth.min(axis=0) == 0)
    error = np.abs(found - truth)[:, mixed].mean()
    rounded = np.abs(one_hot(truth.argmax(axis=0)) - truth)[:, mixed].mean()
    assert error < rounded / 3
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), truth.mean(axis=(1, 2, 3)), atol=0.02)


@pytest.fixture
def ventricle(rng):
    """Fluid in white matter in cortex in fluid; the walls run through the voxels."""
    radius = radius_map((100, 104, 96))
    labels = np.select([radius < 17, radius < 35, radius < 43], [CSF, WM, GM], CSF)
    truth, mask = coarse(one_hot(labels)), coarse((radius < 46).astype(np.float32))[0] > 0.5
    wall = (truth[CSF] > 0.3) & (truth[WM] > 0.3)
    # In the template the ventricle is smaller: at this wall its priors say white matter.
    in_template = coarse(one_hot(np.select([radius < 13, radius < 35, radius < 43], [CSF, WM, GM], CSF)))
    return scan(truth, mask, rng, 2), mask, truth, wall, blurred(in_template, 1)


def test_the_wall_of_a_ventricle_is_not_grey_and_the_cortex_stays(ventricle):
    data, mask, truth, wall, priors = ventricle
    found = segment(data, mask, priors)
    assert found[GM][wall].mean() < 0.1
    assert np.abs(found[CSF] - truth[CSF])[wall].mean() < 0.1
    assert found[GM].sum() == pytest.approx(truth[GM][mask].sum(), rel=0.05)


def test_without_the_mixture_of_the_wall_it_is_called_grey(ventricle, monkeypatch):
    data, mask, _, wall, priors = ventricle
    monkeypatch.setattr(tissue, "WALL_WEIGHT", 0.0)
    assert segment(data, mask, priors)[GM][wall].mean() > 0.4


def test_neighbours_take_the_noise_out(folded, monkeypatch, rng):
    data, mask, truth = folded
    noisy = np.where(mask, data + rng.normal(0, 10, mask.shape), 0).astype(np.float32)
    errors = []
    for weight in (tissue.NEIGHBOUR_WEIGHT, 0.0):
        monkeypatch.setattr(tissue, "NEIGHBOUR_WEIGHT", weight)
        found = segment(noisy, mask, blurred(truth, 4))
        errors.append((found.argmax(axis=0) != truth.argmax(axis=0))[mask].mean())
    assert errors[0] < 0.8 * errors[1]


def test_neighbours_count_by_nearness(rng):
    volume, voxel_mm = rng.random((5, 7, 6)).astype(np.float32), np.array([1.0, 2.0, 4.0])
    padded = np.pad(volume, 1)
    weights = 1 / voxel_mm / (1 / voxel_mm).mean()
    expected = np.zeros_like(volume)
    for x, y, z in np.ndindex(volume.shape):
        for axis in range(3):
            for by in (-1, 1):
                there = np.array([x, y, z]) + 1
                there[axis] += by
                expected[x, y, z] += weights[axis] * padded[tuple(there)]
    np.testing.assert_allclose(tissue._neighbours(volume, voxel_mm), expected, rtol=1e-5)


def test_the_prior_decides_where_the_intensity_does_not(folded):
    data, mask, truth = folded
    doubtful = ball(mask.shape, 5)
    data[doubtful] = INTENSITY[[GM, WM]].mean()
    shares = []
    for sure in (GM, WM):
        priors = blurred(truth, 2)
        for label in (GM, WM, CSF):
            priors[label][doubtful] = float(label == sure)
        shares.append(segment(data, mask, priors)[GM][doubtful].mean())
    assert shares[0] > shares[1] + 0.1


def test_units_and_margins_of_the_scan_do_not_matter(folded):
    data, mask, truth = folded
    priors = blurred(truth, 2)
    found = segment(data, mask, priors)
    np.testing.assert_allclose(segment(data * 64, mask, priors), found, atol=1e-4)
    padded = segment(np.pad(data, 3), np.pad(mask, 3), [np.pad(prior, 3) for prior in priors])
    np.testing.assert_array_equal(padded[:, 3:-3, 3:-3, 3:-3], found)


def test_priors_that_promise_too_much_fluid_do_not_make_it(rng):
    rank = ndimage.gaussian_filter(rng.normal(size=(84, 88, 80)), 6)
    fine = one_hot(np.array([CSF, GM, WM])[np.digitize(rank, np.quantile(rank, [0.03, 0.6]))])
    promised = coarse(one_hot(np.array([CSF, GM, WM])[np.digitize(rank, np.quantile(rank, [0.18, 0.6]))]))
    truth, mask = coarse(fine), np.ones((42, 44, 40), dtype=bool)
    # Cortex is not of one intensity.
    uneven = truth[GM] * ndimage.gaussian_filter(rng.normal(size=mask.shape), 1) * 80
    data = (scan(truth, mask, rng, 2) + uneven).astype(np.float32)
    found = segment(data, mask, blurred(promised, 2))
    assert found[CSF].mean() == pytest.approx(truth[CSF].mean(), abs=0.02)


def test_a_scan_without_fluid_gets_next_to_none(folded, rng):
    _, mask, truth = folded
    grey, white, fluid = truth
    shares = np.stack([grey + fluid, white, 0 * fluid])
    found = segment(scan(shares, mask, rng, 6), mask, blurred(shares, 2))
    np.testing.assert_allclose(found.sum(axis=0), mask, atol=1e-5)
    assert found[CSF][mask].mean() < 0.05


def test_a_scan_without_white_matter_is_refused(folded, rng):
    _, mask, truth = folded
    grey, white, fluid = truth
    with pytest.raises(ScanError, match="each should be brighter") as refused:
        segment(scan(np.stack([grey + white, 0 * white, fluid]), mask, rng, 6), mask, blurred(truth, 2))
    assert refused.value.rule == "T1 contrast"


@pytest.mark.parametrize("values", [70.0, np.nan])
def test_a_brain_without_contrast_is_refused(folded, values):
    _, mask, truth = folded
    with pytest.raises(ScanError, match="Rule 'intensities differ'") as refused:
        segment(np.where(mask, values, 0).astype(np.float32), mask, blurred(truth, 2))
    assert refused.value.rule == "intensities differ"


def test_a_scan_of_another_contrast_is_refused(folded):
    data, mask, truth = folded
    with pytest.raises(ScanError, match="each should be brighter"):
        segment(np.where(mask, 130 - data, 0).astype(np.float32), mask, blurred(truth, 2))


@pytest.mark.parametrize("radius", [0, 3])
def test_next_to_no_brain_is_refused(folded, radius):
    data, mask, truth = folded
    with pytest.raises(ScanError, match="at least 200 are needed"):
        segment(data, ball(mask.shape, radius), blurred(truth, 2))


def test_coarse_and_flat_voxels_are_segmented_too(folded):
    data, mask, truth = folded
    thick = slice(None), slice(None), slice(None, None, 3)
    priors = [prior[thick] for prior in blurred(truth, 2)]
    found = segment(data[thick], mask[thick], priors, np.array([1.0, 1.0, 3.0]))
    assert (found.argmax(axis=0) == truth[:, *thick].argmax(axis=0))[mask[thick]].mean() > 0.95


def naive_step(mixture, values, prior):
    """A step of expectation maximisation, voxel by voxel, with the densities in closed form."""
    pairs = [(CSF, GM), (GM, WM)]
    normal = NormalDist()
    rows, promised = [], []
    for value, share in zip(values, prior.T, strict=True):
        kinds = [*share, *(np.sqrt(share[a] * share[b]) for a, b in pairs)]
        common = [kind * mixture.common[number] for number, kind in enumerate(kinds)]
        likely = [NormalDist(mixture.mean[t], mixture.spread[t]).pdf(value) for t in (GM, WM, CSF)]
        for a, b in pairs:
            noise = (mixture.spread[a] + mixture.spread[b]) / 2
            step = normal.cdf((value - mixture.mean[a]) / noise) - normal.cdf((value - mixture.mean[b]) / noise)
            likely.append(step / (mixture.mean[b] - mixture.mean[a]))
        promised.append(np.array(common) / np.sum(common))
        weight = np.array(common) * likely
        rows.append(weight / weight.sum())
    found, promised = np.array(rows), np.array(promised)
    mean = [np.average(values, weights=found[:, t]) for t in (GM, WM, CSF)]
    variance = [np.average((values - mean[t]) ** 2, weights=found[:, t]) for t in (GM, WM)]
    solid = found[:, [GM, WM]].sum() / promised[:, [GM, WM]].sum()
    common = mixture.common[:5] * (found.sum(axis=0) / promised.sum(axis=0)) / solid
    common[[GM, WM]] = 1
    return mean, np.sqrt([*variance, variance[WM]]), common


def test_a_step_is_expectation_maximisation_with_one_noise_for_fluid_and_white_matter(rng):
    levels = np.linspace(0, 130, tissue.LEVELS)
    truth = rng.choice([GM, WM, CSF], 600, p=[0.5, 0.4, 0.1])
    # Fluid is far wider than the noise, and there is less of it than the priors promise.
    values = INTENSITY[truth] + np.array([5.0, 4.0, 9.0])[truth] * rng.normal(size=600)
    level = tissue._nearest_level(values.astype(np.float32), levels)
    prior = rng.dirichlet([3, 3, 2], 600).T.astype(np.float32)
    common = np.array([1.0, 1, 0.8, 1.5, 0.6, 1])
    start = tissue._Mixture(levels, np.array([62.0, 97, 25]), np.array([6.0, 5, 9]), common)
    made = tissue._step(start, level, tissue._kinds(prior))
    mean, spread, common = naive_step(start, levels[level], prior)
    np.testing.assert_allclose(made.mean, mean, rtol=1e-3)
    np.testing.assert_allclose(made.spread, spread, rtol=1e-3)
    np.testing.assert_allclose(made.common[:5], common, rtol=1e-3)
