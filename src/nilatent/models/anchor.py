"""Where a model starts from: nothing, the mean image, or principal components of the training scans, whole or by block."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nilatent.models.curve import Curve, no_curve

MIN_LOG_VAR = -12.0
"""Of the posteriors of a local start whose components leave next to nothing."""


@dataclass(frozen=True, eq=False)
class LocalStart:
    """Principal components of the training scans, block by block: each block of voxels has some of its own.

    Parameters
    ----------
    components : (channel, voxel) Tensor
        In every voxel the weights of the components of its block: rows of length 1 over the voxels of a block, or zero where
        a block has fewer components.
    sd : (channel, cell) Tensor
        SD of the scores of every block; zero where there is no component.
    residual_variance : float
        Mean variance per voxel that all these components leave.
    """

    components: Float[Tensor, "channel voxel"]
    sd: Float[Tensor, "channel cell"]
    residual_variance: float


@dataclass(frozen=True, eq=False)
class LinearStart:
    """What linear statistics know of the training scans inside the mask.

    Parameters
    ----------
    mean : (voxel,) Tensor
        Mean image.
    components : (latent, voxel) Tensor
        Principal components: orthonormal rows.
    sd : (latent,) Tensor
        SD of the scores.
    residual_variance : float
        Mean variance per voxel that the components leave.
    slopes : (condition, voxel) Tensor
        Change of the mean image per unit of each condition, whose own means are zero; no rows without conditions.
    rotation : (latent, latent) Tensor, optional
        Orthogonal: latents are this times the whitened scores. Left out: the identity.
    curve : Curve, optional
        What the components miss, as a function of the whitened scores. Left out: nothing.
    local : LocalStart, optional
        Principal components of the blocks under the cells of a latent grid.
    """

    mean: Float[Tensor, " voxel"]
    components: Float[Tensor, "latent voxel"]
    sd: Float[Tensor, " latent"]
    residual_variance: float
    slopes: Float[Tensor, "condition voxel"]
    rotation: Float[Tensor, "latent latent"] | None = None
    curve: Curve | None = None
    local: LocalStart | None = None

    @property
    def variance(self) -> float:
        """Variance about the mean image, mean over the voxels."""
        return float(self.sd.double().square().sum()) / len(self.mean) + self.residual_variance


class NoAnchor(nn.Module):
    """A start without latents: volumes are measured from one value or from the mean image, and the network does the rest.

    Parameters
    ----------
    mask : (x, y, z) Tensor
        True inside.
    start : LinearStart
        Its mean image, slopes and variance are used.
    n_latent : int
        Values of a latent.
    around_mean_image : bool
        False: volumes are centred on one value and scaled to unit variance over voxels and scans. True: they are centred
        on the mean image (and what the conditions add to it) and scaled by the SD about it.
    """

    def __init__(
        self, *, mask: Bool[Tensor, "x y z"], start: LinearStart, n_latent: int, around_mean_image: bool
    ) -> None:
        super().__init__()
        self.mask: Tensor
        self.centre: Tensor
        self.slopes: Tensor
        self.scale: Tensor
        self.log_var: Tensor
        self.index: Tensor
        self.register_buffer("mask", mask.float())
        self.register_buffer("index", mask.flatten().nonzero().flatten(), persistent=False)
        if around_mean_image:
            self.register_buffer("centre", painted(start.mean, self.index, self.mask)[0])
            self.register_buffer("slopes", start.slopes.clone())
            spread = start.variance
        else:
            self.register_buffer("centre", start.mean.mean())
            self.register_buffer("slopes", torch.zeros_like(start.slopes))
            spread = float(start.mean.double().var(correction=0)) + start.variance
        self.register_buffer("scale", torch.tensor(math.sqrt(spread), dtype=torch.float32))
        self.register_buffer("log_var", torch.zeros(n_latent))

    def standardise(
        self, x: Float[Tensor, "batch 1 x y z"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch 1 x y z"]:
        """Standardise for the network: centred, scaled, zero outside the mask."""
        return (x - self._centre(len(x), c)) / self.scale * self.mask

    def project(
        self,
        x: Float[Tensor, "batch 1 x y z"],
        c: Float[Tensor, "batch condition"] | None = None,  # noqa: ARG002 (as the other anchor)
    ) -> Float[Tensor, "batch latent"]:
        """Return zero: the network starts from nothing."""
        return x.new_zeros(len(x), len(self.log_var))

    def reconstruct(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch 1 x y z"]:
        """Return the centre inside the mask, for any latent."""
        return self._centre(len(z), c) * self.mask

    def _centre(self, n_scans: int, c: Tensor | None) -> Tensor:
        centre = self.centre.expand(n_scans, 1, *self.mask.shape)
        if c is None or self.centre.ndim == 0:
            return centre
        with torch.autocast(c.device.type, enabled=False):
            return centre + painted(c.float() @ self.slopes, self.index, self.mask)


class LocalAnchor(NoAnchor):
    """The mean image, and principal components of every block of voxels as the fixed, linear part of a latent grid.

    Each cell of the latent grid stands for the block of voxels under it, and its values are the scores of that block alone:
    what :class:`PcaAnchor` is for a vector, with blocks for scans. Blocks know nothing of one another, so edges between
    them are the network's to mend. The noise variance s2 is that of what the components leave, times `beta`, the weight of
    the KL: a component with less variance is worth less than it costs, and its values are the prior.

    Parameters
    ----------
    mask : (x, y, z) Tensor
        True inside.
    start : LinearStart
        Mean image, slopes and `local`.
    cell : (voxel,) Tensor
        Cell of every voxel inside the mask.
    beta : float
        Weight of the KL.
    """

    def __init__(
        self, *, mask: Bool[Tensor, "x y z"], start: LinearStart, cell: Int[Tensor, " voxel"], beta: float
    ) -> None:
        local = start.local
        if local is None:
            raise ValueError("A local anchor needs the components of the blocks, and the start holds none.")
        super().__init__(mask=mask, start=start, n_latent=local.sd.numel(), around_mean_image=True)
        self.components: Tensor
        self.gain: Tensor
        self.inverse_gain: Tensor
        self.cell: Tensor
        self.register_buffer("cell", cell, persistent=False)
        self.register_buffer("components", local.components)
        n_voxels, n_components = len(start.mean), int((local.sd > 0).sum())
        noise = beta * local.residual_variance * n_voxels / max(n_voxels - n_components, 1)
        eigenvalue = local.sd.double().square().clamp_min(torch.finfo(torch.float32).tiny)
        gain = (eigenvalue - noise).clamp_min(0.0).sqrt()
        self.register_buffer("gain", gain.float())
        self.register_buffer("inverse_gain", (gain / eigenvalue).float())
        # Exact posteriors are narrower than the prior by the share of the variance that is noise; none is a point.
        width = (noise / eigenvalue).clamp(math.exp(MIN_LOG_VAR), 1.0)
        self.log_var = torch.where(local.sd > 0, width, torch.ones_like(width)).log().float().flatten()

    def project(
        self, x: Float[Tensor, "batch 1 x y z"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch latent"]:
        """Scores of every block on its components, scaled to latents: flat, channels first; always in single precision."""
        with torch.autocast(x.device.type, enabled=False):
            deviation = (x - self._centre(len(x), c)).flatten(1)[:, self.index].float()
            n_channels, n_cells = self.gain.shape
            scores = deviation.new_zeros(len(x), n_channels, n_cells)
            for channel in range(n_channels):
                scores[:, channel].index_add_(1, self.cell, deviation * self.components[channel])
            return (scores * self.inverse_gain).flatten(1)

    def reconstruct(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch 1 x y z"]:
        """Add the weighted components of every block to the mean image, zero outside the mask; in single precision."""
        with torch.autocast(z.device.type, enabled=False):
            weights = z.float().reshape(-1, *self.gain.shape) * self.gain
            drawn = torch.zeros(len(z), len(self.cell), device=z.device)
            for channel, component in enumerate(self.components):
                drawn = drawn + weights[:, channel, self.cell] * component
            return self._centre(len(z), c) * self.mask + painted(drawn, self.index, self.mask)


class PcaAnchor(nn.Module):
    """Principal components of the training scans as the fixed, linear part of a model.

    With eigenvalues `sd ** 2` and a noise variance s2 per voxel, decoding is ``mean + U gain R' z`` with
    ``gain = sqrt(sd^2 - s2)`` and the rotation R, encoding is ``R gain / sd^2 U' (x - mean)`` and the posterior variance is
    ``s2 / sd^2``. For s2 = 0 this is PCA with latents of unit variance over the training scans. For s2 = the variance of
    the components that were left out it is probabilistic PCA at its maximum likelihood: without a rotation the posterior is
    exact, so the evidence lower bound of a model that starts here equals the likelihood, and means and variances together
    have unit variance. With conditions the mean is that of scans with the same conditions, by linear regression.

    Parameters
    ----------
    mask : (x, y, z) Tensor
        True inside.
    start : LinearStart
        Mean image, components, slopes and rotation.
    noise_variance : float
        s2: 0 for an autoencoder.

    References
    ----------
    Tipping & Bishop 1999, Probabilistic principal component analysis. doi:10.1111/1467-9868.00196
    Lucas, Tucker, Grosse & Norouzi 2019, Don't blame the ELBO! doi:10.48550/arXiv.1911.02469
    """

    def __init__(self, *, mask: Bool[Tensor, "x y z"], start: LinearStart, noise_variance: float) -> None:
        super().__init__()
        self.mask: Tensor
        self.mean: Tensor
        self.slopes: Tensor
        self.components: Tensor
        self.gain: Tensor
        self.inverse_gain: Tensor
        self.rotation: Tensor
        self.log_var: Tensor
        self.scale: Tensor
        self.index: Tensor
        self.register_buffer("mask", mask.float())
        self.register_buffer("index", mask.flatten().nonzero().flatten(), persistent=False)
        self.register_buffer("mean", start.mean)
        self.register_buffer("slopes", start.slopes)
        self.register_buffer("components", start.components)
        # A component with less variance than the noise says nothing; its gain is zero rather than imaginary.
        eigenvalue = start.sd.double().square().clamp_min(torch.finfo(torch.float32).tiny)
        gain = (eigenvalue - noise_variance).clamp_min(0.0).sqrt()
        self.register_buffer("gain", gain.float())
        self.register_buffer("inverse_gain", (gain / eigenvalue).float())
        rotation = torch.eye(len(gain)) if start.rotation is None else start.rotation
        self.register_buffer("rotation", rotation)
        # Of a Gaussian with this precision matrix, the nearest with independent latents has the inverse of its diagonal.
        precision = (eigenvalue / max(noise_variance, 1e-30)).clamp(min=1.0)
        log_var = -(rotation.double().square() @ precision).log()
        self.register_buffer("log_var", log_var.float())
        self.register_buffer("scale", torch.tensor(math.sqrt(start.variance), dtype=torch.float32))
        self.curve: Curve = no_curve(*start.components.shape) if start.curve is None else start.curve

    def standardise(
        self, x: Float[Tensor, "batch 1 x y z"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch 1 x y z"]:
        """Standardise for the network: the difference from the mean image, scaled, zero outside the mask."""
        return painted(self._deviation(x, c) / self.scale, self.index, self.mask)

    def project(
        self, x: Float[Tensor, "batch 1 x y z"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch latent"]:
        """Scores on the components, scaled to latents; always in single precision."""
        with torch.autocast(x.device.type, enabled=False):
            return (self._deviation(x, c) @ self.components.T * self.inverse_gain) @ self.rotation.T

    def reconstruct(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch condition"] | None = None
    ) -> Float[Tensor, "batch 1 x y z"]:
        """Add the weighted components and the curve to the mean image, zero outside the mask; always in single precision."""
        with torch.autocast(z.device.type, enabled=False):
            turned = z.float() @ self.rotation
            drawn = self._mean(c) + (turned * self.gain) @ self.components + self.curve(turned)
            return painted(drawn, self.index, self.mask)

    def _mean(self, c: Tensor | None) -> Tensor:
        return self.mean if c is None else self.mean + c.float() @ self.slopes

    def _deviation(self, x: Tensor, c: Tensor | None) -> Tensor:
        return x.flatten(1)[:, self.index] - self._mean(c)


def painted(values: Float[Tensor, "*batch voxel"], index: Tensor, mask: Float[Tensor, "x y z"]) -> Tensor:
    """Values of the voxels inside the mask as volumes (batch, 1, x, y, z), zero outside; (1, x, y, z) for a single one."""
    flat = values.new_zeros(*values.shape[:-1], mask.numel())
    return flat.index_copy(values.ndim - 1, index, values).reshape(*values.shape[:-1], 1, *mask.shape)
