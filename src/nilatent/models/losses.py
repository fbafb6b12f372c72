"""Losses as named functions of tensors, one value per scan (and latent), reduced by whoever calls them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

LOG_VAR_RANGE = (-20.0, 20.0)
"""Log-variances are clamped to this range: an SD between 5e-5 and 2e4 times that of the prior."""
VARIANCE_FLOOR = 1e-5
"""Smallest noise variance of a voxel, in squared units of the scans."""


def gaussian_kl(
    mean: Float[Tensor, "batch latent"], log_var: Float[Tensor, "batch latent"]
) -> Float[Tensor, "batch latent"]:
    """Divergence of each latent's posterior from the standard normal prior.

    Parameters
    ----------
    mean, log_var : (batch, latent) Tensor
        Moments of the posterior; the log-variance is clamped to :data:`LOG_VAR_RANGE`.

    Returns
    -------
    (batch, latent) Tensor
        KL(N(mean, exp(log_var)) || N(0, 1)) in nats, at least 0. Unreduced: the value of each latent is what tells
        a collapsed one.

    References
    ----------
    Kingma & Welling 2014, Auto-encoding variational Bayes, appendix B. doi:10.48550/arXiv.1312.6114
    """
    log_var = log_var.clamp(*LOG_VAR_RANGE)
    return 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var)


def squared_error(
    volume: Float[Tensor, "batch 1 x y z"], reconstruction: Float[Tensor, "batch 1 x y z"], mask: Float[Tensor, "x y z"]
) -> Float[Tensor, " batch"]:
    """Squared error inside the mask, summed over its voxels.

    Parameters
    ----------
    volume, reconstruction : (batch, 1, x, y, z) Tensor
        The scan and what the model makes of it, in the same units.
    mask : (x, y, z) Tensor
        1 inside, 0 outside.

    Returns
    -------
    (batch,) Tensor
        One sum per scan.
    """
    return ((reconstruction - volume) * mask).square().flatten(1).sum(dim=1)


def optimal_variance(error: Float[Tensor, " batch"], *, n_voxels: int) -> Float[Tensor, ""]:
    """Estimate the noise variance that makes a batch most likely: its mean squared error per voxel.

    Parameters
    ----------
    error : (batch,) Tensor
        Squared error summed over the voxels, from :func:`squared_error`.
    n_voxels : int
        Voxels inside the mask.

    Returns
    -------
    Tensor
        One variance in squared units of the volume. No gradient flows through it: at the optimum it has none.

    References
    ----------
    Rybkin, Daniilidis & Levine 2021, Simple and effective VAE training with calibrated decoders.
    doi:10.48550/arXiv.2006.13202
    """
    return (error.detach().mean() / n_voxels).clamp_min(torch.finfo(torch.float32).tiny)


def gaussian_log_likelihood(
    error: Float[Tensor, " batch"], *, variance: Float[Tensor, ""], n_voxels: int
) -> Float[Tensor, " batch"]:
    """Log-likelihood of each scan under independent Gaussian noise of one variance.

    Parameters
    ----------
    error : (batch,) Tensor
        Squared error summed over the voxels, from :func:`squared_error`.
    variance : Tensor
        Noise variance per voxel: a fixed sigma squared, or :func:`optimal_variance`.
    n_voxels : int
        Voxels inside the mask.

    Returns
    -------
    (batch,) Tensor
        Nats per scan, **summed** over voxels. With a mean over voxels in its place the weight of the KL would silently
        be multiplied by their number.
    """
    return -0.5 * (error / variance + n_voxels * (variance.log() + math.log(2.0 * math.pi)))


def absolute_error(
    volume: Float[Tensor, "batch 1 x y z"], reconstruction: Float[Tensor, "batch 1 x y z"], mask: Float[Tensor, "x y z"]
) -> Float[Tensor, " batch"]:
    """Absolute error inside the mask, summed over its voxels; parameters as in :func:`squared_error`."""
    return ((volume - reconstruction) * mask).abs().flatten(1).sum(dim=1)


def optimal_scale(error: Float[Tensor, " batch"], *, n_voxels: int) -> Float[Tensor, ""]:
    """Estimate the scale of Laplace noise that makes a batch most likely: its mean absolute error per voxel.

    Parameters
    ----------
    error : (batch,) Tensor
        Absolute error summed over the voxels, from :func:`absolute_error`.
    n_voxels : int
        Voxels inside the mask.

    Returns
    -------
    Tensor
        One scale in units of the volume. No gradient flows through it.
    """
    return (error.detach().mean() / n_voxels).clamp_min(torch.finfo(torch.float32).tiny)


def laplace_log_likelihood(
    error: Float[Tensor, " batch"], *, scale: Float[Tensor, ""], n_voxels: int
) -> Float[Tensor, " batch"]:
    """Log-likelihood of each scan under independent Laplace noise of one scale.

    Parameters
    ----------
    error : (batch,) Tensor
        Absolute error summed over the voxels, from :func:`absolute_error`.
    scale : Tensor
        Mean absolute deviation of the noise: the noise SD divided by the root of 2.
    n_voxels : int
        Voxels inside the mask.

    Returns
    -------
    (batch,) Tensor
        Nats per scan, summed over voxels.
    """
    return -(error / scale + n_voxels * (2.0 * scale).log())


def voxel_log_likelihood(
    volume: Float[Tensor, "batch 1 x y z"],
    reconstruction: Float[Tensor, "batch 1 x y z"],
    variance: Float[Tensor, "batch 1 x y z"],
    mask: Float[Tensor, "x y z"],
) -> Float[Tensor, " batch"]:
    """Log-likelihood of each scan under Gaussian noise with a variance of its own in every voxel.

    Parameters
    ----------
    volume, reconstruction : (batch, 1, x, y, z) Tensor
        The scan and what the model makes of it, in the same units.
    variance : (batch, 1, x, y, z) Tensor
        Noise variance in squared units of the scan; taken as at least :data:`VARIANCE_FLOOR`, because a voxel that is
        drawn exactly would be infinitely likely.
    mask : (x, y, z) Tensor
        1 inside, 0 outside.

    Returns
    -------
    (batch,) Tensor
        Nats per scan, summed over voxels.
    """
    variance = variance.clamp_min(VARIANCE_FLOOR)
    nats = (volume - reconstruction).square() / variance + variance.log() + math.log(2.0 * math.pi)
    return -0.5 * (nats * mask).flatten(1).sum(dim=1)


def free_bits(kl: Float[Tensor, "batch latent"], *, floor: float) -> Float[Tensor, ""]:
    """Divergence of a batch in which no latent is rewarded for saying less than a floor.

    Parameters
    ----------
    kl : (batch, latent) Tensor
        From :func:`gaussian_kl`.
    floor : float
        Nats per latent that are free: ``sum_j max(floor, mean over the batch of KL_j)``.

    Returns
    -------
    Tensor
        Nats. A latent under the floor has no gradient.

    References
    ----------
    Kingma et al. 2016, Improved variational inference with inverse autoregressive flow. doi:10.48550/arXiv.1606.04934
    """
    return kl.mean(dim=0).clamp_min(floor).sum()


def capacity(kl: Float[Tensor, "batch latent"], *, target: float) -> Float[Tensor, ""]:
    """Distance in nats of a batch's mean divergence from a target, which training raises slowly.

    Parameters
    ----------
    kl : (batch, latent) Tensor
        From :func:`gaussian_kl`.
    target : float
        Nats per scan that the latents shall carry.

    References
    ----------
    Burgess et al. 2018, Understanding disentangling in beta-VAE. doi:10.48550/arXiv.1804.03599
    """
    return (kl.sum(dim=1).mean() - target).abs()


def elbo(
    log_likelihood: Float[Tensor, " batch"], kl: Float[Tensor, "batch latent"], *, beta: float
) -> Float[Tensor, " batch"]:
    """Evidence lower bound of each scan, with the KL weighted by beta.

    Parameters
    ----------
    log_likelihood : (batch,) Tensor
        Nats per scan, summed over voxels.
    kl : (batch, latent) Tensor
        From :func:`gaussian_kl`.
    beta : float
        Weight of the KL in these units: 1 is the bound itself, whatever the number of voxels.

    Returns
    -------
    (batch,) Tensor
        Nats per scan; the mean over the batch is what training raises.

    References
    ----------
    Higgins et al. 2017, beta-VAE. https://openreview.net/forum?id=Sy2fzU9gl
    """
    return log_likelihood - beta * kl.sum(dim=1)
