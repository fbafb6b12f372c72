"""Other tools' variational autoencoders of volumes, brought to one form: a loss to lower, and reconstructions.

Two losses each. Its own: what the tool's documentation or tutorial trains with. The evidence bound: squared error summed over
the voxels inside the mask, with the noise variance at its most likely value, plus the KL; the loss of our own plain model, which
has no mean local minimum and so does not handicap a tool by its reduction.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (8, 16, 32, 64)
MOST_WEIGHTS = 200_000_000


@dataclass(frozen=True)
class Peer:
    """A tool's model.

    Parameters
    ----------
    name : str
        Tool, architecture and loss.
    build : callable
        The module; its initial weights come from torch's global generator.
    loss : callable
        Of the module and a batch (batch, 1, x, y, z) in the units of `raw`; a scalar to lower.
    reconstruct : callable
        From posterior means, in the same units.
    raw : bool
        True: the network sees scans as they are, in [0, 1], because its last layer is a sigmoid. False: standardised.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[[Any, Tensor], Tensor]
    reconstruct: Callable[[Any, Tensor], Tensor]
    raw: bool


def peers(mask: Tensor, n_latent: int) -> tuple[list[Peer], list[str]]:
    """Return the peers that can be run here, and why others cannot.

    Parameters
    ----------
    mask : (x, y, z) Tensor
        1 inside.
    n_latent : int
        Latents, the same for all.
    """
    found: list[Peer] = []
    absent: list[str] = []
    for tool, make in (("MONAI", _monai), ("Pythae", _pythae)):
        try:
            made, missing = make(mask, n_latent)
        except ImportError as error:
            absent.append(f"{tool}: not installed ({error})")
            continue
        found += made
        absent += missing
    return found, absent


def bound(x: Tensor, drawn: Tensor, mean: Tensor, log_var: Tensor, mask: Tensor) -> Tensor:
    """Minus the evidence bound by voxel, with the most likely noise variance."""
    n_voxels = mask.sum()
    error = ((x - drawn) * mask).square().flatten(1).sum(dim=1)
    variance = (error.detach().mean() / n_voxels).clamp_min(1e-12)
    nats = 0.5 * error / variance + 0.5 * n_voxels * (variance.log() + math.log(2.0 * math.pi))
    kl = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(dim=1)
    return (nats + kl).mean() / n_voxels


def _monai(mask: Tensor, n_latent: int) -> tuple[list[Peer], list[str]]:
    from monai.networks.nets import VarAutoEncoder

    # Its strides divide every side, because its decoder can only double; the channels are ours.
    divisible = all(side % 16 == 0 for side in mask.shape)
    strides = (2, 2, 2, 2) if divisible else (2, 2, 2, 1)

    def build(sigmoid: bool) -> nn.Module:
        return VarAutoEncoder(
            spatial_dims=3,
            in_shape=(1, *mask.shape),
            out_channels=1,
            latent_size=n_latent,
            channels=CHANNELS,
            strides=strides,
            use_sigmoid=sigmoid,
            use_mean_at_inference=True,
        )

    def own(module: Any, x: Tensor) -> Tensor:
        drawn, mean, log_var, _ = module(x)
        # The form of its MedNIST tutorial: binary cross-entropy summed over the image, plus the KL, here at weight 1.
        entropy = functional.binary_cross_entropy(drawn.float(), x.clamp(0.0, 1.0), reduction="sum")
        kl = -0.5 * (1.0 + log_var - mean.square() - log_var.exp()).sum()
        return (entropy + kl) / x.numel()

    def fair(module: Any, x: Tensor) -> Tensor:
        drawn, mean, log_var, _ = module(x)
        return bound(x, drawn.float(), mean.float(), log_var.float(), mask)

    def reconstruct(module: Any, x: Tensor) -> Tensor:
        return module.eval()(x)[0]

    return [
        Peer("MONAI VarAutoEncoder, evidence bound", lambda: build(sigmoid=False), fair, reconstruct, raw=False),
        Peer("MONAI VarAutoEncoder, its own loss", lambda: build(sigmoid=True), own, reconstruct, raw=True),
    ], []


def _pythae(mask: Tensor, n_latent: int) -> tuple[list[Peer], list[str]]:
    from pythae.models import VAE, VAEConfig

    shape = (1, *mask.shape)

    def perceptron() -> nn.Module:
        return VAE(VAEConfig(input_dim=shape, latent_dim=n_latent))

    def convolutional() -> nn.Module:
        config = VAEConfig(input_dim=shape, latent_dim=n_latent)
        encoder, decoder = _pythae_networks(tuple(mask.shape), n_latent)
        return VAE(config, encoder=encoder, decoder=decoder)

    def own(module: Any, x: Tensor) -> Tensor:
        return module({"data": x}).loss / x[0].numel()

    def fair(module: Any, x: Tensor) -> Tensor:
        told = module.encoder(x)
        mean, log_var = told.embedding, told.log_covariance
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        drawn = module.decoder(z)["reconstruction"].reshape(x.shape)
        return bound(x, drawn.float(), mean.float(), log_var.float(), mask)

    def reconstruct(module: Any, x: Tensor) -> Tensor:
        module.eval()
        return module.decoder(module.encoder(x).embedding)["reconstruction"].reshape(x.shape)

    made = [Peer("Pythae VAE, convolutions, evidence bound", convolutional, fair, reconstruct, raw=False)]
    n_weights = 2 * 512 * mask.numel()
    name = "Pythae VAE, its own perceptron and loss"
    if n_weights > MOST_WEIGHTS:
        return made, [
            f"{name}: {n_weights:,} weights on this grid; its documentation advises a network of one's own here"
        ]
    return [*made, Peer(name, perceptron, own, reconstruct, raw=True)], []


def _pythae_networks(shape: tuple[int, ...], n_latent: int) -> tuple[nn.Module, nn.Module]:
    """Networks for Pythae in the manner of its own convolutional ones (kernel 4, stride 2, BatchNorm, ReLU), in 3D."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    shapes = [shape]
    for _ in CHANNELS:
        shapes.append(tuple(side // 2 for side in shapes[-1]))
    n_features = CHANNELS[-1] * math.prod(shapes[-1])

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.latent_dim = n_latent
            layers: list[nn.Module] = []
            for before, width in zip((1, *CHANNELS[:-1]), CHANNELS, strict=True):
                layers += [nn.Conv3d(before, width, 4, 2, 1), nn.BatchNorm3d(width), nn.ReLU()]
            self.layers = nn.Sequential(*layers)
            self.embedding = nn.Linear(n_features, n_latent)
            self.log_var = nn.Linear(n_features, n_latent)

        def forward(self, x: Tensor) -> ModelOutput:
            features = self.layers(x).flatten(1)
            return ModelOutput(embedding=self.embedding(features), log_covariance=self.log_var(features))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.first = nn.Linear(n_latent, n_features)
            ups = []
            for level in range(len(CHANNELS) - 1, 0, -1):
                # A side that was odd gets its last voxel back.
                more = [big - 2 * small for big, small in zip(shapes[level], shapes[level + 1], strict=True)]
                up = nn.ConvTranspose3d(CHANNELS[level], CHANNELS[level - 1], 4, 2, 1, output_padding=more)
                ups += [up, nn.BatchNorm3d(CHANNELS[level - 1]), nn.ReLU()]
            more = [big - 2 * small for big, small in zip(shapes[0], shapes[1], strict=True)]
            self.layers = nn.Sequential(*ups, nn.ConvTranspose3d(CHANNELS[0], 1, 4, 2, 1, output_padding=more))

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.layers(self.first(z).reshape(len(z), CHANNELS[-1], *shapes[-1])))

    return Encoder(), Decoder()
