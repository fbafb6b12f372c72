"""Terms about the aggregate posterior, the latents of all scans together: total correlation, and distance to the prior."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nilatent.models.losses import LOG_VAR_RANGE

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Scales of the kernel of :func:`mmd`, times twice the number of latents."""


def decomposition(
    z: Float[Tensor, "batch latent"],
    mean: Float[Tensor, "batch latent"],
    log_var: Float[Tensor, "batch latent"],
    *,
    n_scans: int,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Split the divergence of a batch into what scans tell, what latents share, and how far each is from the prior.

    Parameters
    ----------
    z : (batch, latent) Tensor
        One draw per scan from its posterior.
    mean, log_var : (batch, latent) Tensor
        Moments of the posteriors.
    n_scans : int
        Training scans, of which the batch is a random part; at least as many.

    Returns
    -------
    mutual_information, total_correlation, dimension_wise : (batch,) Tensor
        Nats per scan. Their sum is ``log q(z|x) - log p(z)``, whose expectation is the KL. The density of the aggregate is
        estimated from the batch by stratified sampling: without bias before the logarithm, exact when the batch holds all
        scans, and noisy in a small part of a large cohort.

    References
    ----------
    Chen, Li, Grosse & Duvenaud 2018, Isolating sources of disentanglement in VAEs. doi:10.48550/arXiv.1802.04942
    """
    log_var = log_var.clamp(*LOG_VAR_RANGE)
    # (scan whose draw it is, scan whose posterior it is looked up in, latent)
    densities = _log_normal(z[:, None], mean[None], log_var[None])
    own = _log_normal(z, mean, log_var).sum(dim=1)
    prior = _log_normal(z, torch.zeros_like(z), torch.zeros_like(z)).sum(dim=1)
    weight = _log_weights(len(z), n_scans).to(z)
    joint = (densities.sum(dim=2) + weight).logsumexp(dim=1)
    product = (densities + weight[:, :, None]).logsumexp(dim=1).sum(dim=1)
    return own - joint, joint - product, product - prior


def _log_weights(n_batch: int, n_scans: int) -> Tensor:
    """Log-weights with which the densities of a batch estimate those of all scans, without bias.

    The scan itself counts once among all; the others in the batch stand for the rest.
    """
    others = (n_scans - 1) / max(n_batch - 1, 1)
    weights = torch.full((n_batch, n_batch), others / n_scans, dtype=torch.double)
    return weights.fill_diagonal_(1.0 / n_scans).log()


def _log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return -0.5 * ((z - mean).square() / log_var.exp() + log_var + math.log(2.0 * math.pi))


def kernel(one: Float[Tensor, "a latent"], two: Float[Tensor, "b latent"], *, n_latent: int) -> Float[Tensor, "a b"]:
    """Inverse multiquadratic kernel of several scales, ``sum_s s C / (s C + |a - b|^2)`` with ``C`` twice the latents.

    Parameters
    ----------
    one, two : (a, latent), (b, latent) Tensor
        Points.
    n_latent : int
        Number of latents.

    References
    ----------
    Tolstikhin, Bousquet, Gelly & Schoelkopf 2018, Wasserstein auto-encoders. doi:10.48550/arXiv.1711.01558
    """
    # Through differences and not through norms: the distance of a point to itself is then exactly zero.
    distance = (one[:, None] - two[None]).square().sum(dim=2)
    widths = [scale * 2.0 * n_latent for scale in SCALES]
    return torch.stack([width / (width + distance) for width in widths]).sum(dim=0)


def mmd(
    z: Float[Tensor, "batch latent"], past: Float[Tensor, "past latent"], prior: Float[Tensor, "prior latent"]
) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy between the aggregate posterior and the prior, unbiased.

    Parameters
    ----------
    z : (batch, latent) Tensor
        Draws of this batch; the gradient runs through them alone.
    past : (past, latent) Tensor
        Draws of earlier batches, because a handful of scans says little about an aggregate; may be empty.
    prior : (prior, latent) Tensor
        Draws from the prior, at least two.

    Returns
    -------
    Tensor
        ``E k(z, z') + E k(p, p') - 2 E k(z, p)``; 0 in expectation when both are the same, so a value may be negative. Its
        gradient is that of the population value, whatever the number of past draws.

    References
    ----------
    Gretton et al. 2012, A kernel two-sample test. https://jmlr.org/papers/v13/gretton12a.html
    Zhao, Song & Ermon 2019, InfoVAE. doi:10.1609/aaai.v33i01.33015885
    """
    n_latent, pool = z.shape[1], torch.cat([z, past]).detach()
    with torch.no_grad():
        to_prior = kernel(pool, prior, n_latent=n_latent).mean()
        value = _off_diagonal(pool, n_latent) + _off_diagonal(prior, n_latent) - 2.0 * to_prior
    # Each draw of the batch against all others held still: twice that has the gradient of E k(z, z').
    others = kernel(z, pool, n_latent=n_latent)
    others = (others.sum() - others.diagonal().sum()) / (len(z) * max(len(pool) - 1, 1))
    moving = 2.0 * others - 2.0 * kernel(z, prior, n_latent=n_latent).mean()
    return value + moving - moving.detach()


def _off_diagonal(points: Tensor, n_latent: int) -> Tensor:
    values = kernel(points, points, n_latent=n_latent)
    return (values.sum() - values.diagonal().sum()) / (len(points) * max(len(points) - 1, 1))
