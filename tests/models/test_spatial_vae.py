from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nilatent.models.anchor import LinearStart, NoAnchor
from nilatent.models.losses import gaussian_kl
from nilatent.models.spatial_vae import SpatialVae, covered, fold, levels, strides, unfold

SHAPE = (15, 17, 13)
Build = Callable[..., SpatialVae]
each_grid = pytest.mark.parametrize("grid", [24, 12, 3])


@pytest.fixture
def build(rng: np.random.Generator) -> Build:
    """Build a model around a random mean image; `shaken` moves every weight off its start."""

    def built(
        grid: int,
        *,
        shape: tuple[int, int, int] = SHAPE,
        channels: tuple[int, ...] = (4, 8),
        latent_channels: int = 2,
        n_condition: int = 0,
        around_mean_image: bool = True,
        shaken: bool = True,
    ) -> SpatialVae:
        torch.manual_seed(0)
        mask = torch.from_numpy(rng.random(shape) > 0.3)
        mask[: shape[0] // 3] = False
        n_voxels = int(mask.sum())
        start = LinearStart(
            mean=torch.from_numpy(rng.random(n_voxels).astype(np.float32)),
            components=torch.zeros(1, n_voxels),
            sd=torch.ones(1),
            residual_variance=0.2,
            slopes=torch.zeros(n_condition, n_voxels),
        )
        n_latent = latent_channels * grid**3
        anchor = NoAnchor(mask=mask, start=start, n_latent=n_latent, around_mean_image=around_mean_image)
        model = SpatialVae(
            anchor=anchor, channels=channels, grid=grid, latent_channels=latent_channels, n_condition=n_condition
        )
        if shaken:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
        return model

    return built


@pytest.fixture
def scans(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random((3, 1, *SHAPE)).astype(np.float32))


@each_grid
def test_a_batch_is_its_scans_one_by_one(build: Build, scans: Tensor, grid: int) -> None:
    model = build(grid)
    together, alone = model.encode(scans), [model.encode(scan[None]) for scan in scans]
    torch.testing.assert_close(together.mean, torch.cat([each.mean for each in alone]), rtol=0, atol=1e-4)
    torch.testing.assert_close(together.log_var, torch.cat([each.log_var for each in alone]), rtol=0, atol=1e-4)
    drawn = torch.cat([model.decode(each.mean) for each in alone])
    torch.testing.assert_close(model.decode(together.mean), drawn, rtol=0, atol=1e-4)


@each_grid
def test_a_scan_drawn_alone_and_without_gradient_is_the_same_picture(build: Build, grid: int) -> None:
    model = build(grid, channels=(8, 32), n_condition=1)
    z, c = torch.randn(2, 2 * grid**3), torch.tensor([[0.3], [-1.0]])
    expected = model.decode(z, c)[:1]
    with torch.inference_mode():
        alone = model.decode(z[:1], c[:1])
    # What the explorer draws live is the decoder's picture to a hundred-thousandth of its range.
    assert (alone - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())


def test_encoding_is_deterministic_whatever_the_mode(build: Build, scans: Tensor) -> None:
    model = build(3)
    learning, judging = model.train().encode(scans), model.eval().encode(scans)
    assert torch.equal(learning.mean, judging.mean)
    assert torch.equal(learning.log_var, judging.log_var)
    assert torch.equal(model.train().decode(learning.mean), model.eval().decode(judging.mean))


@each_grid
def test_nothing_outside_the_mask_is_seen_or_drawn(build: Build, scans: Tensor, grid: int) -> None:
    model = build(grid)
    outside = model.anchor.mask == 0
    spoiled = torch.where(outside, torch.tensor(100.0), scans)
    assert torch.equal(model.encode(spoiled).mean, model.encode(scans).mean)
    drawn = model.decode(model.encode(scans).mean)
    assert drawn.shape == scans.shape
    assert drawn[:, :, outside].abs().max() == 0
    assert drawn[:, :, ~outside].abs().min() > 0


@each_grid
def test_cells_without_a_voxel_are_the_prior(build: Build, scans: Tensor, grid: int) -> None:
    model = build(grid, latent_channels=3)
    posterior = model.encode(scans)
    assert posterior.mean.shape == posterior.log_var.shape == (3, 3 * grid**3)
    cost = gaussian_kl(posterior.mean, posterior.log_var)
    per_cell = cost.reshape(3, 3, grid, grid, grid)
    by = [-(-side // grid) for side in SHAPE]
    by = [2 ** (step - 1).bit_length() for step in by]
    inside = np.zeros((grid, grid, grid), dtype=bool)
    for x, y, z in np.argwhere(model.anchor.mask.numpy() > 0):
        inside[x // by[0], y // by[1], z // by[2]] = True
    assert inside.any()
    assert model.n_used == 3 * inside.sum()
    assert (per_cell[:, :, torch.from_numpy(inside)] > 0).all()
    assert (per_cell[:, :, torch.from_numpy(~inside)] == 0).all()
    noise = torch.randn_like(cost) * torch.from_numpy(~inside).repeat(3, 1, 1, 1).flatten()
    assert torch.equal(model.decode(posterior.mean + noise), model.decode(posterior.mean))


def test_the_latent_is_flat_with_the_channels_first(build: Build, scans: Tensor) -> None:
    model = build(12)
    z = model.encode(scans).mean.detach()
    moved = z.reshape(3, 2, 12, 12, 12).clone()
    moved[:, 1, 6, 2, 4] += 1.0
    change = (model.decode(moved.flatten(1)) - model.decode(z)).abs()[:, 0]
    # Of the voxels under that cell and its neighbours; normalisation carries a little of it everywhere.
    near = change[:, 10:16, 2:8, 6:12]
    assert near.sum() / (near > 0).sum() > 2 * (change.sum() - near.sum()) / ((change > 0).sum() - (near > 0).sum())


@pytest.mark.parametrize(
    ("shape", "grid", "expected"),
    [
        ((40, 48, 40), 24, [(2, 2, 2)]),
        ((40, 48, 40), 12, [(2, 2, 2)] * 2),
        ((40, 48, 40), 3, [(2, 2, 2)] * 4),
        ((24, 12, 3), 24, []),
        ((49, 25, 24), 12, [(2, 1, 1), (2, 2, 1), (2, 2, 2)]),
    ],
)
def test_each_axis_is_halved_as_often_as_it_needs(
    shape: tuple[int, int, int], grid: int, expected: list[tuple[int, int, int]]
) -> None:
    assert strides(shape, grid) == expected
    coarsest = levels(shape, grid)[-1]
    assert all(side <= grid for side in coarsest)
    assert all(side == full for side, full in zip(coarsest, shape, strict=True) if full <= grid)
    assert covered(torch.ones(shape), grid).sum() == np.prod(coarsest)


@pytest.mark.parametrize("shape", [(10, 30, 50), (3, 9, 26)])
def test_axes_of_any_length_and_proportion(build: Build, shape: tuple[int, int, int]) -> None:
    model = build(12, shape=shape)
    x = torch.rand(1, 1, *shape)
    assert model.encode(x).mean.shape == (1, 2 * 12**3)
    assert model.decode(model.encode(x).mean).shape == x.shape


def test_folding_and_unfolding_is_there_and_back(scans: Tensor) -> None:
    folded = fold(scans, (2, 2, 1))
    assert folded.shape == (3, 4, 8, 9, 13)
    assert torch.equal(folded[:, :, 1, 2, 3], scans[:, 0, 2:4, 4:6, 3].flatten(1))
    assert torch.equal(unfold(folded, (2, 2, 1))[:, :, :15, :17], scans)


def test_a_folded_convolution_can_be_nearest_doubling_and_a_convolution(rng: np.random.Generator) -> None:
    coarse = torch.from_numpy(rng.standard_normal((1, 2, 4, 5, 3)).astype(np.float32))
    kernel = torch.from_numpy(rng.standard_normal((1, 2, 3, 3, 3)).astype(np.float32))
    fine = functional.conv3d(functional.interpolate(coarse, scale_factor=2, mode="nearest"), kernel, padding=1)
    # Along one axis the first voxel of a block sees its own block twice and the one before; the second, the one after.
    taps = torch.tensor([[[1.0, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]])
    blocks = torch.einsum("xai,ybj,zdk,ocijk->xyzocabd", taps, taps, taps, kernel)
    weight = blocks.reshape(8, 2, 3, 3, 3)
    torch.testing.assert_close(unfold(functional.conv3d(coarse, weight, padding=1), (2, 2, 2)), fine)


def test_around_the_mean_image_it_starts_as_that(build: Build, scans: Tensor) -> None:
    model = build(3, shaken=False)
    drawn = model.decode(model.encode(scans).mean)
    assert torch.equal(drawn, model.anchor.reconstruct(drawn.new_zeros(3, 54)).expand_as(drawn))
    (drawn - scans).square().sum().backward()
    assert model.mirror.last.weight.grad is not None
    assert model.mirror.last.weight.grad.abs().max() > 0
    free = build(3, shaken=False, around_mean_image=False)
    assert free.decode(free.encode(scans).mean).std(dim=0).max() > 0


def test_conditions_reach_the_encoder_and_the_decoder(build: Build, scans: Tensor) -> None:
    model = build(12, n_condition=2)
    one, two = torch.tensor([[0.5, -1.0]] * 3), torch.tensor([[0.5, 1.0]] * 3)
    posterior = model.encode(scans, one)
    assert (posterior.mean - model.encode(scans, two).mean).abs().max() > 1e-3
    assert (posterior.log_var - model.encode(scans, two).log_var).abs().max() > 1e-3
    assert (model.decode(posterior.mean, one) - model.decode(posterior.mean, two)).abs().max() > 1e-3
    fresh = build(12, n_condition=2, shaken=False)
    assert torch.equal(fresh.encode(scans, one).mean, fresh.encode(scans, two).mean)


def test_too_few_or_too_many_conditions_are_refused(build: Build, scans: Tensor) -> None:
    with pytest.raises(ValueError, match="takes 2 conditions of each scan and was given 0"):
        build(3, n_condition=2).encode(scans)
    with pytest.raises(ValueError, match="takes 0 conditions of each scan and was given 1"):
        build(3).decode(torch.zeros(3, 54), torch.zeros(3, 1))


@pytest.mark.parametrize(
    "change", [{"grid": 6}, {"latent_channels": 3}, {"channels": (8, 8)}, {"n_condition": 1}], ids=str
)
def test_every_setting_changes_the_network(build: Build, change: dict[str, object]) -> None:
    def sizes(model: nn.Module) -> list[torch.Size]:
        return [parameter.shape for parameter in model.parameters()]

    plain: dict[str, object] = {"grid": 3}
    assert sizes(build(**plain)) != sizes(build(**(plain | change)))  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", [12, 3])
def test_checkpointing_gives_the_same_gradients_and_keeps_less(build: Build, scans: Tensor, grid: int) -> None:
    model = build(grid, n_condition=1)
    c = torch.ones(3, 1)
    gradients, kept = [], []
    for model.checkpointing in (False, True):
        model.zero_grad()
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            posterior = model.encode(scans, c)
            loss = (model.decode(posterior.mean, c) - scans).square().sum() + posterior.log_var.sum()
        kept.append(sum(sizes.values()))
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)
    assert kept[1] < 0.7 * kept[0]


def test_half_precision_is_finite_and_near(build: Build, scans: Tensor) -> None:
    model = build(3)
    exact = model.decode(model.encode(scans).mean)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(scans)
        half = model.decode(posterior.mean)
    assert half.dtype == posterior.mean.dtype == posterior.log_var.dtype == torch.float32
    assert half.isfinite().all()
    assert (half - exact).square().mean() < 0.01 * exact.var()


@pytest.mark.parametrize("side", [5, 7, 9])
def test_half_precision_gives_the_gradients_of_single_precision(build: Build, side: int) -> None:
    model = build(3, shape=(side, 17, 13), channels=(8, 8))
    x = torch.rand(2, 1, side, 17, 13, generator=torch.Generator().manual_seed(0))

    def gradient(*, half: bool) -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            posterior = model.encode(x)
            drawn = model.decode(posterior.mean)
        ((drawn - x) * model.anchor.mask).square().sum().backward()
        blocks = [*model.trunk.blocks.parameters(), *model.mirror.blocks.parameters()]
        return torch.cat([parameter.grad.flatten() for parameter in blocks if parameter.grad is not None])

    exact, near = gradient(half=False), gradient(half=True)
    assert (near - exact).norm() < 0.1 * exact.norm()


def test_what_the_decoder_is_made_of_is_called_mirror(build: Build, scans: Tensor) -> None:
    model = build(3)
    model.decode(torch.randn(3, 54)).sum().backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in model.named_parameters() if name.startswith("mirror.")}
    assert len(moved) > 0
    assert scans.shape[1:] == (1, *SHAPE)
