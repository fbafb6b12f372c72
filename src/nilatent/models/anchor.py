"""Where a model starts from: nothing, or the principal components of the training scans."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class NoAnchor(nn.Module):
    """The plain start: volumes are standardised by one centre and one scale, and the network does everything.

    Parameters
    ----------
    mask : (x, y, z) Tensor
        True inside.
    mean : (voxel,) Tensor
        Mean image of the training scans inside the mask.
    sd : (latent,) Tensor
        Only its length is used.
    variance : float
        Variance about the mean image, mean over the voxels.
    """

    def __init__(
        self,
        *,
        mask: Bool[Tensor, "x y z"],
        mean: Float[Tensor, " voxel"],
        sd: Float[Tensor, " latent"],
        variance: float,
    ) -> None:
        super().__init__()
        self.mask: Tensor
        self.centre: Tensor
        self.scale: Tensor
        self.log_var: Tensor
        self.register_buffer("mask", mask.float())
        self.register_buffer("centre", mean.mean())
        self.register_buffer("scale", (mean.var(correction=0) + variance).sqrt().float())
        self.register_buffer("log_var", torch.zeros_like(sd))

    def standardise(self, x: Float[Tensor, "batch 1 x y z"]) -> Float[Tensor, "batch 1 x y z"]:
        """Standardise for the network: centred, scaled, zero outside the mask."""
        return (x - self.centre) / self.scale * self.mask

    def project(self, x: Float[Tensor, "batch 1 x y z"]) -> Float[Tensor, "batch latent"]:
        """Return zero: the network starts from nothing."""
        return x.new_zeros(len(x), len(self.log_var))

    def reconstruct(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch 1 x y z"]:
        """Return the centre everywhere inside the mask, for any latent."""
        return (self.centre * self.mask).expand(len(z), 1, *self.mask.shape)


class PcaAnchor(nn.Module):
    """Principal components of the training scans as the fixed, linear part of a model.

    With eigenvalues `sd ** 2` and a noise variance s2 per voxel, decoding is ``mean + U gain z`` with
    ``gain = sqrt(sd^2 - s2)``, encoding is ``gain / sd^2 U^T (x - mean)`` and the posterior variance is ``s2 / sd^2``.
    For s2 = 0 this is PCA with latents of unit variance over the training scans. For s2 = the variance of the
    components that were left out it is probabilistic PCA at its maximum likelihood: the posterior is exact, so the evidence lower
    bound of a model that starts here equals the likelihood, and means and variances together have unit variance.

    Parameters
    ----------
    mask : (x, y, z) Tensor
        True inside.
    mean : (voxel,) Tensor
        Mean image of the training scans inside the mask.
    components : (latent, voxel) Tensor
        Orthonormal rows.
    sd : (latent,) Tensor
        SD of the training scans along each component.
    variance : float
        Variance about the mean image, mean over the voxels.
    noise_variance : float
        s2: 0 for an autoencoder.

    References
    ----------
    Tipping & Bishop 1999, Probabilistic principal component analysis. doi:10.1111/1467-9868.00196
    Lucas, Tucker, Grosse & Norouzi 2019, Don't blame the ELBO! doi:10.48550/arXiv.1911.02469
    """

    def __init__(
        self,
        *,
        mask: Bool[Tensor, "x y z"],
        mean: Float[Tensor, " voxel"],
        components: Float[Tensor, "latent voxel"],
        sd: Float[Tensor, " latent"],
        variance: float,
        noise_variance: float,
    ) -> None:
        super().__init__()
        self.mask: Tensor
        self.mean: Tensor
        self.components: Tensor
        self.gain: Tensor
        self.inverse_gain: Tensor
        self.log_var: Tensor
        self.scale: Tensor
        self.register_buffer("mask", mask.float())
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)
        # A component with less variance than the noise says nothing; its gain is zero rather than imaginary.
        eigenvalue = sd.double().square().clamp_min(torch.finfo(torch.float32).tiny)
        gain = (eigenvalue - noise_variance).clamp_min(0.0).sqrt()
        self.register_buffer("gain", gain.float())
        self.register_buffer("inverse_gain", (gain / eigenvalue).float())
        self.register_buffer(
            "log_var", (math.log(max(noise_variance, 1e-30)) - eigenvalue.log()).clamp(max=0.0).float()
        )
        self.register_buffer("scale", torch.tensor(math.sqrt(variance), dtype=torch.float32))
        self.index: Tensor
        self.register_buffer("index", mask.flatten().nonzero().flatten(), persistent=False)

    def standardise(self, x: Float[Tensor, "batch 1 x y z"]) -> Float[Tensor, "batch 1 x y z"]:
        """Standardise for the network: the difference from the mean image, scaled, zero outside the mask."""
        return self._volume(self._deviation(x) / self.scale)

    def project(self, x: Float[Tensor, "batch 1 x y z"]) -> Float[Tensor, "batch latent"]:
        """Scores on the components, scaled to latents; always in single precision."""
        with torch.autocast(x.device.type, enabled=False):
            return self._deviation(x) @ self.components.T * self.inverse_gain

    def reconstruct(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch 1 x y z"]:
        """Add the weighted components to the mean image, zero outside the mask; always in single precision."""
        with torch.autocast(z.device.type, enabled=False):
            return self._volume(self.mean + (z.float() * self.gain) @ self.components)

    def _deviation(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.index] - self.mean

    def _volume(self, values: Tensor) -> Tensor:
        flat = values.new_zeros(len(values), self.mask.numel())
        return flat.index_copy(1, self.index, values).reshape(len(values), 1, *self.mask.shape)
