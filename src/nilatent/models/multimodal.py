"""Joint variational autoencoder of several modalities: latents that they share, and latents of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nilatent.models.blocks import Posterior
from nilatent.models.experts import Experts, Mixture, combine
from nilatent.models.losses import gaussian_kl
from nilatent.models.multimodal_parts import ImagePart, LinearPart, Read, TablePart, read_linearly

__all__ = ["Bound", "ImagePart", "LinearPart", "MultimodalVae", "TablePart", "read_linearly"]


@dataclass(frozen=True, eq=False)
class Bound:
    """Evidence lower bound of each scan, term by term, in nats.

    Parameters
    ----------
    likelihood, private_kl : (batch, modality) Tensor
        Expected log-likelihood of what is there of each modality, and the divergence of its private latents from their
        prior; 0 for an absent one.
    shared_kl : (batch,) Tensor
        Divergence of the shared latents.
    from_others : (batch, modality) Tensor
        No part of the bound: log-likelihood of what is hidden, drawn at the mean of the shared latents given what is shown, and
        at the mean of the prior of its own, with noise as large as is then missed; 0 for what is shown or absent.
    """

    likelihood: Float[Tensor, "batch modality"]
    private_kl: Float[Tensor, "batch modality"]
    shared_kl: Float[Tensor, " batch"]
    from_others: Float[Tensor, "batch modality"]

    def total(self, weight: Float[Tensor, " modality"] | None = None) -> Float[Tensor, " batch"]:
        """The bound; with weights, which are 1 in the bound itself, likelihoods count more or less."""
        likelihood = self.likelihood if weight is None else self.likelihood * weight
        return (likelihood - self.private_kl).sum(dim=1) - self.shared_kl


class MultimodalVae(nn.Module):
    """Joint model: shared latents z, for every modality private latents w, and ``p(x_m | z, w_m)``.

    The posterior of z combines what the modalities that are there say; that of w_m comes from its own modality, given z. An
    absent modality takes no part: its private latents keep their prior. Linear parts start with their exact posteriors and
    the networks at zero, so before the first step the bound of a product of experts is the likelihood of the linear model,
    for every set of modalities.

    Parameters
    ----------
    parts : Mapping[str, ImagePart or TablePart]
        By name of the modality; their order is that of the columns of `present` everywhere.
    kind : str
        ``"poe"``, ``"moe"`` or ``"mopoe"``; see :func:`nilatent.models.experts.combine`.
    """

    def __init__(self, parts: Mapping[str, ImagePart | TablePart], *, kind: str) -> None:
        super().__init__()
        self.names = tuple(parts)
        self.kind = kind
        self.n_shared = next(iter(parts.values())).n_shared
        self.parts = nn.ModuleDict(dict(parts))

    def part(self, name: str) -> ImagePart | TablePart:
        """The part of one modality."""
        part = self.parts[name]
        if not isinstance(part, ImagePart | TablePart):
            raise TypeError(f"{name} is no part of a joint model.")
        return part

    def encode(self, x: Mapping[str, Tensor], present: Bool[Tensor, "batch modality"]) -> Mixture:
        """Posterior of the shared latents; deterministic, one scan at a time.

        Parameters
        ----------
        x : Mapping[str, Tensor]
            Volumes (batch, 1, x, y, z); of a table (batch, 2, value): values, and 1 where they are known. Of an absent
            modality anything finite; it is not looked at.
        present : (batch, modality) Tensor
            Which modalities are used for each scan.
        """
        return self._combined(self._reads(x, {}), present)

    def private(self, name: str, x: Tensor, z: Float[Tensor, "batch shared"]) -> Posterior:
        """Posterior of a modality's private latents, given the shared ones."""
        return self.part(name).read(x).own(z)

    def draw(
        self, name: str, z: Float[Tensor, "batch shared"], w: Float[Tensor, "batch private"] | None = None
    ) -> Tensor:
        """Expected values of a modality; without private latents `w`, at the mean of their prior.

        Returns
        -------
        Tensor
            (batch, 1, x, y, z), or of a table (batch, value) in standard units and log-odds.
        """
        part = self.part(name)
        own = z.new_zeros(len(z), part.n_private) if w is None else w
        return part.draw(torch.cat([z, own], dim=1))

    def bound(
        self,
        x: Mapping[str, Tensor],
        present: Bool[Tensor, "batch modality"],
        generator: torch.Generator,
        *,
        hidden: Bool[Tensor, "batch modality"] | None = None,
        input_noise: float = 0.0,
        latent_noise: float = 0.0,
    ) -> Bound:
        """Estimate the evidence lower bound of what is present, with one draw per scan and component.

        Parameters
        ----------
        x, present
            As in :meth:`encode`; what is not present is neither used nor to be drawn.
        generator : Generator
            The source of every draw.
        hidden : (batch, modality) Tensor, optional
            What is not to be looked at, and is to be drawn from what is present.
        input_noise, latent_noise : float
            SD of noise on what the networks see of scans and latents, which keeps them from learning scans by heart.
        """
        noise = {name: input_noise * _normal(x[name], generator) for name in self.names} if input_noise > 0 else {}
        reads = self._reads(x, noise)
        mixture = self._combined(reads, present)
        likelihood = torch.zeros(present.shape, device=present.device)
        private_kl = torch.zeros_like(likelihood)
        for component, z in enumerate(mixture.draws(generator).unbind(dim=1)):
            weight = mixture.weight[:, component, None] * present
            terms = [
                self._terms(name, x[name], reads[name], z, generator, latent_noise=latent_noise) for name in self.names
            ]
            likelihood = likelihood + weight * torch.stack([one for one, _ in terms], dim=1)
            private_kl = private_kl + weight * torch.stack([other for _, other in terms], dim=1)
        from_others = torch.zeros_like(likelihood) if hidden is None else self._from_others(x, mixture, hidden)
        return Bound(likelihood, private_kl, mixture.kl(), from_others)

    def _from_others(self, x: Mapping[str, Tensor], mixture: Mixture, hidden: Tensor) -> Tensor:
        z = mixture.moments().mean
        nats = [
            self.part(name).missed_likelihood(x[name], self.draw(name, z), hidden[:, place])
            for place, name in enumerate(self.names)
        ]
        return torch.stack(nats, dim=1)

    def _terms(
        self, name: str, x: Tensor, read: Read, z: Tensor, generator: torch.Generator, *, latent_noise: float
    ) -> tuple[Tensor, Tensor]:
        part, own = self.part(name), read.own(z)
        v = torch.cat([z, own.sample(generator)], dim=1)
        # The linear part sees the latents clean: it would turn their noise into an error nobody could mend.
        shaken = v + latent_noise * _normal(v, generator) if latent_noise > 0 else None
        likelihood = part.log_likelihood(x, part.draw(v, shaken=shaken))
        return likelihood, gaussian_kl(own.mean, own.log_var).sum(dim=1)

    def _reads(self, x: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> dict[str, Read]:
        return {name: self.part(name).read(x[name], noise=noise.get(name)) for name in self.names}

    def _combined(self, reads: Mapping[str, Read], present: Tensor) -> Mixture:
        said: Sequence[Read] = [reads[name] for name in self.names]
        pull = torch.stack([one.pull for one in said], dim=1)
        precision = torch.stack([one.precision for one in said], dim=1)
        return combine(Experts(pull, precision), present, kind=self.kind)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
