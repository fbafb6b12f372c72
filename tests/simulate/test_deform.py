import numpy as np
import pytest
from scipy.linalg import expm

from nilatent.errors import SettingError
from nilatent.simulate.deform import (
    LARGEST_AMPLITUDE,
    Scale,
    caused_velocity,
    curl,
    diffeomorphism,
    draw_amplitudes,
    integrate,
    jacobian,
    random_diffeomorphism,
    random_velocity,
    rest_at_edges,
    sample,
    smooth_noise,
)

SHAPE = (15, 17, 13)
INSIDE = (slice(4, -4),) * 3
BOTH = (Scale(60.0, 2.0, conserves_volume=False), Scale(14.0, 2.0, conserves_volume=True))


def linear_velocity(matrix: np.ndarray) -> np.ndarray:
    centre = (np.asarray(SHAPE) - 1) / 2
    points = np.indices(SHAPE) - centre.reshape(3, 1, 1, 1)
    return np.einsum("ij,jxyz->ixyz", matrix, points).astype(np.float32)


def inner(array: np.ndarray) -> np.ndarray:
    return array[(..., *INSIDE)]


def test_noise_has_unit_variance_and_gaussian_correlation(rng):
    fields = np.stack([smooth_noise(rng, SHAPE, spacing_mm=4.0, fwhm_mm=9.419) for _ in range(400)])
    assert fields.mean() == pytest.approx(0, abs=0.03)
    assert fields.var(axis=0) == pytest.approx(1, abs=0.35)
    assert fields.var() == pytest.approx(1, abs=0.03)
    # Sigma is one voxel: two voxels apart the correlation is exp(-d^2 / 4 sigma^2) = exp(-1).
    assert (fields[:, :-2] * fields[:, 2:]).mean() == pytest.approx(np.exp(-1), abs=0.03)


@pytest.mark.parametrize("scale", BOTH)
def test_velocity_has_the_stated_size(scale, rng):
    draws = [random_velocity(rng, np.ones(SHAPE, np.float32), spacing_mm=2.0, scales=[scale]) for _ in range(60)]
    assert inner(np.stack(draws)).std() * 2.0 == pytest.approx(scale.sd_mm, rel=0.12)


def test_velocity_rests_at_the_edges(rng):
    velocity = random_velocity(rng, rest_at_edges(SHAPE), spacing_mm=4.0, scales=BOTH)
    assert np.abs(velocity[:, 0]).max() == 0
    assert np.abs(velocity[..., -1]).max() == 0
    assert np.abs(inner(velocity)).max() > 0.1


def test_curl_of_rotation_and_divergence_of_curl(rng):
    points = linear_velocity(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(curl(points), np.broadcast_to([[[[0]]], [[[0]]], [[[2]]]], points.shape), atol=1e-6)
    velocity = curl(rng.standard_normal((3, *SHAPE)).astype(np.float32))
    divergence = sum(np.gradient(velocity[axis], axis=axis) for axis in range(3))
    np.testing.assert_allclose(inner(divergence), 0, atol=1e-5)


def test_linear_velocity_has_the_matrix_exponential_as_flow():
    matrix = np.array([[0.1, -0.2, 0.0], [0.15, -0.05, 0.1], [0.0, 0.05, 0.08]])
    displacement = integrate(linear_velocity(matrix))
    exact = linear_velocity(expm(matrix) - np.eye(3))
    np.testing.assert_allclose(inner(displacement), inner(exact), atol=0.02)
    np.testing.assert_allclose(inner(jacobian(displacement)), np.exp(np.trace(matrix)), rtol=0.02)


def test_scaling_and_squaring_agrees_with_many_euler_steps(rng):
    velocity = random_velocity(rng, rest_at_edges(SHAPE), spacing_mm=4.0, scales=[Scale(30.0, 3.0, True)])
    points = np.indices(SHAPE).astype(float)
    for _ in range(400):
        points = points + np.stack([sample(component, points) for component in velocity]) / 400
    error = integrate(velocity) - (points - np.indices(SHAPE))
    assert np.abs(error).max() < 0.06 * np.abs(velocity).max()


def test_flow_backwards_undoes_flow_forwards(rng):
    velocity = random_velocity(rng, rest_at_edges(SHAPE), spacing_mm=2.0, scales=[Scale(30.0, 1.0, False)])
    forth, back = integrate(velocity), integrate(-velocity)
    moved = np.indices(SHAPE) + forth
    there_and_back = forth + np.stack([sample(component, moved) for component in back])
    assert np.abs(inner(forth)).max() > 0.5
    # Linear interpolation on so small a grid, with rest four voxels from motion, costs about a tenth.
    assert np.abs(inner(there_and_back)).max() < 0.15 * np.abs(forth).max()


def test_jacobian_of_a_shear_and_a_stretch():
    stretch = linear_velocity(np.diag([0.5, 0.0, -0.2]))
    np.testing.assert_allclose(jacobian(stretch), 1.5 * 0.8, rtol=1e-5)
    shear = linear_velocity(np.array([[0, 0.7, 0.3], [0, 0, 0.4], [0, 0, 0]]))
    np.testing.assert_allclose(jacobian(shear), 1, rtol=1e-5)
    swap = linear_velocity(np.array([[-1, 1, 0], [1, -1, 0], [0, 0, 0]]))
    np.testing.assert_allclose(jacobian(swap), -1, rtol=1e-5)


def test_diffeomorphism_keeps_volume_in_total_and_folds_nowhere(rng):
    for _ in range(10):
        _, determinant = random_diffeomorphism(rng, rest_at_edges(SHAPE), spacing_mm=4.0, scales=BOTH)
        assert determinant.min() > 0
        assert determinant.std() > 0.02
        assert determinant.mean() == pytest.approx(1, abs=0.01)


def test_folding_is_refused(rng):
    with pytest.raises(SettingError, match=r"positive; the smallest is -.*Lower the setting deformation"):
        random_diffeomorphism(rng, rest_at_edges(SHAPE), spacing_mm=4.0, scales=[Scale(10.0, 40.0, True)])


def test_a_diffeomorphism_is_the_flow_with_its_volume_change(rng):
    velocity = random_velocity(rng, rest_at_edges(SHAPE), spacing_mm=4.0, scales=BOTH)
    displacement, determinant = diffeomorphism(velocity)
    np.testing.assert_array_equal(displacement, integrate(velocity))
    np.testing.assert_array_equal(determinant, jacobian(displacement))


def test_amplitudes_are_standard_normal_within_bounds(rng):
    drawn = np.stack([draw_amplitudes(rng, 5) for _ in range(4000)])
    assert drawn.mean(axis=0) == pytest.approx(0, abs=0.06)
    assert np.corrcoef(drawn.T) == pytest.approx(np.eye(5), abs=0.06)
    assert drawn.std() == pytest.approx(0.98, abs=0.02)
    assert np.abs(drawn).max() == np.float32(LARGEST_AMPLITUDE)


def test_velocity_of_causes_is_their_weighted_sum(rng):
    causes = rng.standard_normal((3, 3, *SHAPE)).astype(np.float32)
    amplitudes = np.array([0.5, -2.0, 1.5], dtype=np.float32)
    expected = (0.5 * causes[0] - 2.0 * causes[1] + 1.5 * causes[2]) / np.sqrt(3)
    np.testing.assert_allclose(caused_velocity(causes, amplitudes), expected, atol=1e-5)


@pytest.mark.parametrize("n_causes", [1, 2, 8])
def test_people_differ_as_much_with_few_causes_as_with_many(n_causes, rng):
    causes = rng.standard_normal((n_causes, 3, *SHAPE)).astype(np.float32)
    people = [caused_velocity(causes, draw_amplitudes(rng, n_causes)) for _ in range(400)]
    assert np.stack(people).std() == pytest.approx(0.98, abs=0.08)
