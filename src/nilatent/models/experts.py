"""Posteriors of a shared latent from several modalities: product, mixture, and mixture of products of experts."""

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nilatent.errors import SettingError
from nilatent.models.blocks import Posterior

EXPERTS = ("poe", "moe", "mopoe")
MAX_MODALITIES = 6
"""Of a mixture of products, which has a component for every set of modalities."""


@dataclass(frozen=True, eq=False)
class Experts:
    """What each modality alone says of the latent: a Gaussian factor of its likelihood, the prior left out.

    The prior comes in once, when experts are combined. The posterior from one modality alone is the prior times its expert;
    an expert that knows nothing has precision zero, which a mean and a variance could not say.

    Parameters
    ----------
    pull : (batch, modality, latent) Tensor
        Precision times mean.
    precision : (batch, modality, latent, latent) Tensor
        Symmetric and positive semi-definite. Off its diagonal it says what a modality knows of several latents together,
        such as their sum alone.
    """

    pull: Float[Tensor, "batch modality latent"]
    precision: Float[Tensor, "batch modality latent latent"]

    @classmethod
    def independent(
        cls, mean: Float[Tensor, "batch modality latent"], log_var: Float[Tensor, "batch modality latent"]
    ) -> "Experts":
        """Experts that judge every latent by itself, as the papers have them, by their means and log-variances."""
        precision = (-log_var).exp()
        return cls(mean * precision, torch.diag_embed(precision))


@dataclass(frozen=True, eq=False)
class Mixture:
    """Posterior of the latent as a mixture of Gaussians; a product of experts has one component.

    Parameters
    ----------
    weight : (batch, component) Tensor
        At least 0; each row sums to 1.
    mean : (batch, component, latent) Tensor
        Means.
    root : (batch, component, latent, latent) Tensor
        Lower triangular: times its transpose, the precision of the component.
    """

    weight: Float[Tensor, "batch component"]
    mean: Float[Tensor, "batch component latent"]
    root: Float[Tensor, "batch component latent latent"]

    def moments(self) -> Posterior:
        """Mean and log-variance of every latent by itself, over all components."""
        weight = self.weight[..., None]
        mean = (weight * self.mean).sum(dim=1)
        spread = self._half_covariance().square().sum(dim=-2)
        variance = (weight * (spread + (self.mean - mean[:, None]).square())).sum(dim=1)
        return Posterior(mean, variance.log())

    def kl(self) -> Float[Tensor, " batch"]:
        """Weighed mean of the components' divergences from the standard normal prior, in nats.

        Of one component the divergence itself; of several at least that of the mixture (the divergence is convex), so a bound
        that is made with it stays a lower bound.
        """
        log_det = 2.0 * torch.diagonal(self.root, dim1=-2, dim2=-1).log().sum(dim=-1)
        trace = self._half_covariance().square().sum(dim=(-2, -1))
        each = 0.5 * (trace + self.mean.square().sum(dim=-1) - self.mean.shape[-1] + log_det)
        return (self.weight * each).sum(dim=1)

    def draws(self, generator: torch.Generator) -> Float[Tensor, "batch component latent"]:
        """One draw per scan and component."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + (self._half_covariance().transpose(-2, -1) @ noise[..., None])[..., 0]

    def _half_covariance(self) -> Float[Tensor, "batch component latent latent"]:
        """The inverse of the root: its transpose times itself is the covariance."""
        identity = torch.eye(self.mean.shape[-1], device=self.mean.device, dtype=self.mean.dtype)
        inverse: Tensor = torch.linalg.solve_triangular(self.root, identity.expand_as(self.root), upper=False)
        return inverse


def combine(experts: Experts, present: Bool[Tensor, "batch modality"], *, kind: str) -> Mixture:
    """Combine what the modalities that are there say, with the standard normal prior.

    Parameters
    ----------
    experts : Experts
        Of every modality; those of absent ones may hold anything.
    present : (batch, modality) Tensor
        Which modalities take part for each scan. Where none does, the posterior is the prior.
    kind : str
        ``"poe"``: the product of all that are present, which is exact where they are independent given the latent.
        ``"moe"``: an equal mixture of the posteriors from each alone. ``"mopoe"``: an equal mixture of the products over all
        sets of them.

    Returns
    -------
    Mixture
        A component whose modalities are not all there has weight 0.

    Raises
    ------
    SettingError
        When the kind is unknown, or a mixture of products has more than six modalities.

    Notes
    -----
    The prior is a factor of every component, once. The papers on mixtures give each modality a posterior of its own, which
    holds the prior already; here that is the prior times the expert, so that one modality alone says the same whatever the
    kind.

    References
    ----------
    Wu & Goodman 2018, Multimodal generative models for scalable weakly-supervised learning. doi:10.48550/arXiv.1802.05335
    Shi, Siddharth, Paige & Torr 2019, Variational mixture-of-experts autoencoders. doi:10.48550/arXiv.1911.03393
    Sutter, Daunhawer & Vogt 2021, Generalized multimodal ELBO. doi:10.48550/arXiv.2105.02470
    """
    sets = modality_sets(present.shape[1], kind=kind).to(present.device)
    taking_part = sets & present[:, None, :]
    # Of a product whoever is there takes part; a component of a mixture stands for its own set of modalities alone.
    valid = torch.ones_like(taking_part[..., 0]) if kind == "poe" else (taking_part == sets).all(dim=2)
    valid = torch.cat([valid[:, :1] | ~present.any(dim=1, keepdim=True), valid[:, 1:]], dim=1)
    weight = valid / valid.sum(dim=1, keepdim=True)
    # What an absent modality holds must not come in even as zero times infinity.
    pull = torch.where(present[..., None], experts.pull, 0.0)
    precision = torch.where(present[..., None, None], experts.precision, 0.0)
    part = taking_part.to(pull)
    identity = torch.eye(pull.shape[-1], device=pull.device, dtype=pull.dtype)
    root = torch.linalg.cholesky(identity + torch.einsum("bcm,bmij->bcij", part, precision))
    mean = torch.cholesky_solve(torch.einsum("bcm,bmi->bci", part, pull)[..., None], root)[..., 0]
    return Mixture(weight.to(pull), mean, root)


def modality_sets(n_modalities: int, *, kind: str) -> Bool[Tensor, "component modality"]:
    """Modalities that take part in each component.

    Raises
    ------
    SettingError
        When the kind is unknown, or there are too many sets.

    Examples
    --------
    >>> modality_sets(2, kind="mopoe").int().tolist()
    [[0, 1], [1, 0], [1, 1]]
    """
    if kind == "poe":
        return torch.ones(1, n_modalities, dtype=torch.bool)
    if kind == "moe":
        return torch.eye(n_modalities, dtype=torch.bool)
    if kind != "mopoe":
        raise SettingError(f"multimodal.experts is '{kind}'; choose one of {', '.join(EXPERTS)}.")
    if n_modalities > MAX_MODALITIES:
        raise SettingError(
            f"A mixture over all sets of {n_modalities} modalities has {2**n_modalities - 1} components; at most "
            f"{MAX_MODALITIES} modalities are taken. Set multimodal.experts to 'poe' or 'moe'."
        )
    return torch.tensor([chosen for chosen in product((False, True), repeat=n_modalities) if any(chosen)])
