import math

import numpy as np
import pytest
import torch

from nilatent.models.multimodal import ImagePart, LinearPart, MultimodalVae, TablePart

SHAPE = (6, 5, 4)
N_SHARED = 3
NAMES = ("gm", "wm", "table")


@pytest.fixture
def toy(rng):
    """Two modalities of volumes with private causes and a table of four numbers; all linear, all Gaussian."""

    def image():
        mask = torch.from_numpy(rng.random(SHAPE) > 0.5)
        n_voxels = int(mask.sum())
        axes = np.linalg.qr(rng.standard_normal((n_voxels, 2)))[0].T * np.array([[2.0], [1.0]])
        start = linear(rng, n_voxels, private=axes, noise=np.full(n_voxels, 0.3))
        return ImagePart(mask=mask, channels=(4, 4), start=start)

    noise = np.array([0.4, 0.7, 1.0, 0.5])
    private = np.array([[1.0, 0.0, -1.0, 0.5]])
    table = TablePart(
        levels=(1, 1, 1, 1), shares=torch.zeros(4), start=linear(rng, 4, private=private, noise=noise, mean=0.0)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MultimodalVae({"gm": image(), "wm": image(), "table": table}, kind="poe")


def linear(rng, n_values, *, private, noise, mean=1.0):
    return LinearPart(
        mean=torch.full((n_values,), mean, dtype=torch.float64),
        shared=torch.from_numpy(rng.standard_normal((N_SHARED, n_values)) * (0.3 if n_values > 4 else 1.0)),
        private=torch.from_numpy(private),
        noise=torch.from_numpy(noise),
    )


def flat(model, name, x):
    """Values (batch, value) less their means."""
    part = model.part(name)
    values = x[:, 0] if name == "table" else x.flatten(1)[:, part.index]
    return (values - part.mean).double()


def exact(model, name):
    """Its linear part in double precision, in which the truth is computed."""
    return LinearPart(*(getattr(model.part(name), one).double() for one in ("mean", "shared", "private", "noise")))


def sample(model, n_scans, rng, *, known=1.0):
    """Scans from the model itself, as it takes them."""
    z, x = torch.from_numpy(rng.standard_normal((n_scans, N_SHARED))), {}
    for name in NAMES:
        part = exact(model, name)
        w = torch.from_numpy(rng.standard_normal((n_scans, len(part.private))))
        values = part.mean + z @ part.shared + w @ part.private
        values = values + part.noise.sqrt() * torch.from_numpy(rng.standard_normal(values.shape))
        if name == "table":
            there = torch.from_numpy(rng.random(values.shape) < known).double()
            x[name] = torch.stack([values * there, there], dim=1).float()
        else:
            volume = torch.zeros(n_scans, math.prod(SHAPE))
            volume[:, model.part(name).index] = values.float()
            x[name] = volume.reshape(n_scans, 1, *SHAPE)
    return z, x


def joint_covariance(model, names):
    """Of all values of these modalities, and with the shared latents."""
    parts = [exact(model, name) for name in names]
    loadings = torch.cat([part.shared for part in parts], dim=1)
    own = [part.private.T @ part.private + part.noise.diag() for part in parts]
    return loadings.T @ loadings + torch.block_diag(*own), loadings


def shown(n_scans, names):
    return torch.tensor([[name in names for name in NAMES]]).expand(n_scans, len(NAMES))


SETS = (("gm",), ("table",), ("gm", "table"), ("gm", "wm"), NAMES)


@pytest.mark.parametrize("names", SETS)
def test_posterior_of_any_set_is_the_conditional_of_the_toy(toy, rng, names):
    _, x = sample(toy, 6, rng)
    covariance, loadings = joint_covariance(toy, names)
    values = torch.cat([flat(toy, name, x[name]) for name in names], dim=1)
    mean = torch.linalg.solve(covariance, values.T).T @ loadings.T
    variance = torch.eye(N_SHARED).double() - loadings @ torch.linalg.solve(covariance, loadings.T)
    found = toy.encode(x, shown(6, names)).moments()
    assert torch.allclose(found.mean.double(), mean, atol=1e-4)
    assert torch.allclose(found.log_var.exp().double(), variance.diagonal().expand(6, -1), atol=1e-4)


@pytest.mark.parametrize("names", SETS)
def test_bound_of_the_product_is_the_log_marginal_of_the_toy(toy, rng, names):
    """Encoder and decoder are the true ones, so that the bound is tight: for all modalities, and for any set of them."""
    _, x = sample(toy, 2, rng)
    covariance, _ = joint_covariance(toy, names)
    values = torch.cat([flat(toy, name, x[name]) for name in names], dim=1)
    truth = torch.distributions.MultivariateNormal(torch.zeros(len(covariance)).double(), covariance).log_prob(values)
    n_draws = 4000
    many = {name: one.repeat_interleave(n_draws, dim=0) for name, one in x.items()}
    with torch.no_grad():
        bound = toy.bound(many, shown(2 * n_draws, names), torch.Generator().manual_seed(0)).total().reshape(2, n_draws)
    error = bound.std(dim=1) / math.sqrt(n_draws)
    assert (error < 0.2).all()
    assert ((bound.mean(dim=1) - truth).abs() < 4 * error).all()


@pytest.mark.parametrize("kind", ["moe", "mopoe"])
def test_bound_of_a_mixture_is_no_higher(toy, rng, kind):
    _, x = sample(toy, 400, rng)
    other = MultimodalVae({name: toy.part(name) for name in NAMES}, kind=kind)
    with torch.no_grad():
        product, mixture = (
            one.bound(x, shown(400, NAMES), torch.Generator().manual_seed(0)).total().mean() for one in (toy, other)
        )
    assert mixture < product - 0.5


def test_a_modality_from_others_is_its_conditional_mean(toy, rng):
    _, x = sample(toy, 6, rng)
    covariance, loadings = joint_covariance(toy, ("wm", "table"))
    values = torch.cat([flat(toy, name, x[name]) for name in ("wm", "table")], dim=1)
    part, linear_part = toy.part("gm"), exact(toy, "gm")
    truth = linear_part.mean + torch.linalg.solve(covariance, values.T).T @ loadings.T @ linear_part.shared
    drawn = toy.draw("gm", toy.encode(x, shown(6, ("wm", "table"))).moments().mean)
    assert torch.allclose(drawn.flatten(1)[:, part.index].double(), truth, atol=1e-4)
    assert (drawn.flatten(1)[:, ~(part.mask.flatten() > 0)] == 0).all()


def test_errors_grow_as_theory_says_when_modalities_go(toy, rng):
    """The mean squared error of the latents is the trace of the conditional covariance, for every set."""
    z, x = sample(toy, 4000, rng)
    errors = []
    for names in (NAMES, ("gm", "wm"), ("gm",), ("table",)):
        covariance, loadings = joint_covariance(toy, names)
        truth = N_SHARED - torch.trace(loadings @ torch.linalg.solve(covariance, loadings.T))
        found = (toy.encode(x, shown(4000, names)).moments().mean - z).square().sum(dim=1).mean()
        assert found.item() == pytest.approx(truth.item(), rel=0.06)
        errors.append(found.item())
    assert errors == sorted(errors)


def test_a_cell_that_is_missing_is_not_looked_at(toy, rng):
    _, x = sample(toy, 6, rng)
    x["table"][:, 1, 2] = 0.0
    garbled = {**x, "table": x["table"].clone()}
    garbled["table"][:, 0, 2] = 99.0
    expected, found = (toy.encode(one, shown(6, ("table",))).moments() for one in (x, garbled))
    assert torch.equal(expected.mean, found.mean)
    nats = [toy.bound(one, shown(6, NAMES), torch.Generator().manual_seed(0)).likelihood[:, 2] for one in (x, garbled)]
    assert torch.equal(*nats)
    part = exact(toy, "table")
    keep = [0, 1, 3]
    covariance = part.shared.T @ part.shared + part.private.T @ part.private + part.noise.diag()
    gain = torch.linalg.solve(covariance[keep][:, keep], part.shared[:, keep].T)
    assert torch.allclose(found.mean.double(), x["table"][:, 0, keep].double() @ gain, atol=1e-4)


def test_what_is_absent_has_no_part_in_the_bound(toy, rng):
    _, x = sample(toy, 6, rng)
    bound = toy.bound(x, shown(6, ("gm",)), torch.Generator().manual_seed(0))
    assert (bound.likelihood[:, 1:] == 0).all()
    assert (bound.private_kl[:, 1:] == 0).all()
    assert (bound.private_kl[:, 0] > 0).all()


def test_weights_count_in_the_total_alone(toy, rng):
    _, x = sample(toy, 6, rng)
    bound = toy.bound(x, shown(6, NAMES), torch.Generator().manual_seed(0))
    weight = torch.tensor([1.0, 1.0, 3.0])
    assert torch.allclose(bound.total(weight), bound.total() + 2.0 * bound.likelihood[:, 2])


def test_a_scan_is_encoded_the_same_alone(toy, rng):
    _, x = sample(toy, 6, rng, known=0.7)
    shake(toy)
    present = torch.from_numpy(rng.random((6, 3)) > 0.3)
    together = toy.encode(x, present).moments().mean
    for scan in range(6):
        alone = toy.encode({name: one[[scan]] for name, one in x.items()}, present[[scan]]).moments().mean
        assert torch.allclose(alone[0], together[scan], atol=1e-5)


def shake(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def test_a_row_without_cells_says_nothing_even_after_training(toy, rng):
    _, x = sample(toy, 6, rng)
    shake(toy)
    x["table"] = torch.zeros_like(x["table"])
    found = toy.encode(x, shown(6, ("table",))).moments()
    assert torch.allclose(found.mean, torch.zeros(6, N_SHARED), atol=1e-6)
    assert torch.allclose(found.log_var, torch.zeros(6, N_SHARED), atol=1e-6)


def test_every_weight_learns(toy, rng):
    _, x = sample(toy, 6, rng)
    shake(toy)
    bound = toy.bound(x, shown(6, NAMES), torch.Generator().manual_seed(0), input_noise=0.1, latent_noise=0.1)
    torch.autograd.backward(bound.total().mean())
    still = [name for name, one in toy.named_parameters() if one.grad is None or not one.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize("noise", [{"input_noise": 0.5}, {"latent_noise": 0.5}])
def test_noise_reaches_the_networks(toy, rng, noise):
    _, x = sample(toy, 6, rng)
    shake(toy)
    with torch.no_grad():
        clean, noisy = (
            toy.bound(x, shown(6, NAMES), torch.Generator().manual_seed(0), **one).likelihood for one in ({}, noise)
        )
    assert (clean - noisy).abs().mean() > 1e-3


def test_private_latents_are_those_given_the_shared_ones(toy, rng):
    z, x = sample(toy, 6, rng)
    part = exact(toy, "gm")
    left = flat(toy, "gm", x["gm"]) - z @ part.shared
    covariance = part.private.T @ part.private + part.noise.diag()
    truth = torch.linalg.solve(covariance, left.T).T @ part.private.T
    assert torch.allclose(toy.private("gm", x["gm"], z.float()).mean.double(), truth, atol=1e-4)


def test_categories_are_drawn_with_their_shares_and_judged_by_their_logarithm():
    """A number and three categories; without latents the odds are those of the training scans."""
    shares = torch.tensor([0.0, 0.3, 0.2]).double()
    nothing = torch.zeros(1, 3).double()
    start = LinearPart(torch.zeros(3).double(), nothing, nothing, torch.ones(3).double())
    part = TablePart(levels=(1, 3), shares=shares, start=start).double()
    drawn = part.draw(torch.zeros(3, 2).double())
    indicators = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).double() - shares[1:]
    values = torch.cat([torch.zeros(3, 1).double(), indicators], dim=1)
    known = torch.tensor([[0.0, 1.0, 1.0]]).double().expand(3, 3)
    nats = part.log_likelihood(torch.stack([values, known], dim=1), drawn)
    assert torch.allclose(nats.exp(), torch.tensor([0.5, 0.3, 0.2]).double())


def test_a_small_change_of_a_latent_changes_chances_as_the_linear_part_says(rng):
    shares = torch.tensor([0.3, 0.2]).double()
    loadings = torch.from_numpy(rng.standard_normal((1, 2)))
    start = LinearPart(torch.zeros(2).double(), loadings, torch.zeros(0, 2).double(), torch.ones(2).double())
    part = TablePart(levels=(3,), shares=shares, start=start).double()
    step = 1e-5
    with torch.no_grad():
        drawn = torch.cat([torch.zeros(2, 1), part.draw(torch.tensor([[-step], [step]]).double())], dim=1)
    chances = drawn.softmax(dim=1)[:, 1:]
    # Buffers are in single precision, as those of every model.
    assert torch.allclose((chances[1] - chances[0]) / (2 * step), loadings[0], atol=1e-4)
