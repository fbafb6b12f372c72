import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter

from nilatent.errors import SettingError
from nilatent.models import ModelConfig
from nilatent.training.augment import AUGMENTATIONS, DEGREES, SHIFT_MM, STRETCH, affine_matrices, augment
from nilatent.training.config import TrainConfig
from nilatent.training.loop import train

SHAPE = (15, 17, 13)


def scans(rng, n=3):
    blobs = gaussian_filter(rng.normal(size=(n, *SHAPE)), (0, 2, 2, 2))
    return torch.from_numpy(np.clip(blobs / blobs.std() + 1, 0, None).astype(np.float32))[:, None]


def changed(x, *names, seed=0, mask=None, spacing_mm=4.0):
    mask = torch.ones(SHAPE) if mask is None else mask
    return augment(x, mask, torch.Generator().manual_seed(seed), names=names, spacing_mm=spacing_mm)


def test_nothing_named_changes_nothing(rng):
    x = scans(rng)
    assert changed(x) is x


def test_a_flip_is_a_flip_of_the_first_axis_of_some_scans(rng):
    x = scans(rng, 40)
    found = changed(x, "flip")
    mirrored = [bool(torch.equal(new, old.flip(1))) for new, old in zip(found, x, strict=True)]
    kept = [bool(torch.equal(new, old)) for new, old in zip(found, x, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 8 < sum(mirrored) < 32


def test_the_affine_is_that_of_scipy_in_voxels(rng):
    x = scans(rng)
    found = changed(x, "affine", spacing_mm=3.0)
    drawn = 2 * torch.rand(len(x), 3, 3, generator=torch.Generator().manual_seed(0)) - 1
    matrices = affine_matrices(drawn[:, 0], drawn[:, 1]).numpy()
    centre = (np.array(SHAPE) - 1) / 2
    for scan, matrix, shift, new in zip(
        x[:, 0].numpy(), matrices, drawn[:, 2].numpy(), found[:, 0].numpy(), strict=True
    ):
        offset = centre - matrix @ centre + SHIFT_MM * shift / 3.0
        expected = affine_transform(scan, matrix, offset=offset, order=1, mode="constant")
        inside = (slice(3, -3),) * 3
        np.testing.assert_allclose(new[inside], expected[inside], atol=2e-4)
    assert (found - x).abs().max() > 0.05


def test_rotations_and_stretches_keep_to_their_limits():
    most = torch.ones(1, 3)
    np.testing.assert_allclose(affine_matrices(0 * most, most)[0].numpy(), (1 + STRETCH) * np.eye(3), atol=1e-6)
    turned = affine_matrices(torch.tensor([[0.0, 0.0, 1.0]]), 0 * most)[0].numpy()
    angle = math.degrees(math.atan2(turned[1, 0], turned[0, 0]))
    assert angle == pytest.approx(DEGREES, abs=1e-3)
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-6)


def test_gamma_keeps_the_order_the_ends_and_the_zeros(rng):
    x = scans(rng)
    found = changed(x, "gamma")
    for old, new in zip(x.flatten(1), found.flatten(1), strict=True):
        order = old.argsort()
        assert (new[order].diff() >= -1e-5).all()
        torch.testing.assert_close(new.max(), old.max())
        assert (new[old == 0] == 0).all()
    assert not torch.allclose(found, x, atol=1e-2)


def test_a_bias_is_a_smooth_gain_about_one(rng):
    x = torch.ones(200, 1, *SHAPE)
    gain = changed(x, "bias").log()
    assert abs(gain.mean().item()) < 0.01
    assert 0.04 < gain.std().item() < 0.1
    assert gain.diff(dim=2).abs().max() < 0.15


def test_noise_has_its_size_and_leaves_the_background(rng):
    x = scans(rng)
    noise = (changed(x, "noise") - x) / x.std(dim=(1, 2, 3, 4), keepdim=True)
    assert noise[x > 0].std().item() == pytest.approx(0.05, rel=0.1)
    assert (noise[x == 0] == 0).all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_what_is_drawn_follows_from_the_generator_and_stays_inside_the_mask(rng, name):
    x, mask = scans(rng), torch.zeros(SHAPE)
    mask[3:-3, 3:-3, 3:-3] = 1
    one, same, other = (changed(x, name, seed=seed, mask=mask) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert (one[:, :, mask == 0] == 0).all()


def test_scans_are_changed_while_training_and_not_while_judged(curved, tmp_path):
    volumes, parts = curved
    model, config = ModelConfig(n_latent=3, channels=(4, 8)), TrainConfig(n_epochs=2, batch_size=4, device="cpu")
    runs = {}
    for names in ((), ("flip",), ("flip", "noise")):
        folder = tmp_path / "-".join(("run", *names))
        runs[names] = train(volumes, parts, model, replace(config, augment=names), folder).history
    plain, flipped, noisy = runs.values()
    assert plain["train_loss"].iloc[-1] != flipped["train_loss"].iloc[-1] != noisy["train_loss"].iloc[-1]
    # The start is judged before anything is learnt: the same scans, as they are.
    assert plain["validation_fvu"].iloc[0] == flipped["validation_fvu"].iloc[0] == noisy["validation_fvu"].iloc[0]


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(SettingError, match="names 'flp'; choose some of affine"):
        TrainConfig(augment=("flp",))
