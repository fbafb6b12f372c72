"""What a joint model has for each modality: how it is read, what of it is shared, and how it is drawn."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nilatent.models.anchor import painted
from nilatent.models.autoencoder import start_at_zero
from nilatent.models.blocks import Mirror, Posterior, Trunk
from nilatent.models.losses import LOG_VAR_RANGE, gaussian_log_likelihood, optimal_variance, squared_error

N_SMOOTH = 1
HIDDEN = 32
# How much narrower or wider than at its start an expert may become: a log-variance.
MAX_CHANGE = 3.0
NOISE_FLOOR = 0.01
"""Smallest noise variance of a column of numbers, in squared SD of the training scans."""


@dataclass(frozen=True, eq=False)
class LinearPart:
    """What linear statistics know of a modality: ``value = mean + z shared + w private + noise``.

    Parameters
    ----------
    mean : (value,) Tensor
        Of the training scans.
    shared : (shared, value) Tensor
        Change of each value per unit of each shared latent.
    private : (private, value) Tensor
        Likewise of the modality's own latents; its rows are orthogonal in units of the noise.
    noise : (value,) Tensor
        Noise variances.
    """

    mean: Float[Tensor, " value"]
    shared: Float[Tensor, "shared value"]
    private: Float[Tensor, "private value"]
    noise: Float[Tensor, " value"]


@dataclass(frozen=True, eq=False)
class Reading:
    """How values become an expert on the shared latents and posteriors of the private ones, all exact for a linear part.

    Parameters
    ----------
    pull : (batch, shared, value) Tensor
        Times the deviation from the mean: the expert's pull.
    precision : (batch, shared, shared) Tensor
        The expert's precision.
    private : (batch, private, value) Tensor
        Times what the shared latents leave of the deviation: the mean of the private latents.
    log_var : (batch, private) Tensor
        Their log-variances.
    """

    pull: Float[Tensor, "batch shared value"]
    precision: Float[Tensor, "batch shared shared"]
    private: Float[Tensor, "batch private value"]
    log_var: Float[Tensor, "batch private"]


def read_linearly(part: LinearPart, weight: Float[Tensor, "batch value"]) -> Reading:
    """Invert a linear part, for scans of which only some values may be known.

    Parameters
    ----------
    part : LinearPart
        In whatever precision is wanted.
    weight : (batch, value) Tensor
        Of each value: 1 over its noise variance, 0 where it is not known.

    Returns
    -------
    Reading
        With the private latents integrated out of the expert: their share of a value is noise to whoever asks for what is
        shared.
    """
    shared, private = part.shared * weight[:, None, :], part.private * weight[:, None, :]
    inner = torch.eye(len(part.private), dtype=weight.dtype, device=weight.device) + private @ part.private.T
    reader = torch.linalg.solve(inner, private)
    crossed = part.shared @ private.transpose(1, 2)
    pull = shared - crossed @ reader
    log_var = -torch.diagonal(inner, dim1=1, dim2=2).log()
    precision = pull @ part.shared.T
    return Reading(pull, 0.5 * (precision + precision.transpose(1, 2)), reader, log_var)


class ImagePart(nn.Module):
    """Reads and draws the volumes of one modality: the linear part, and a network for what it misses.

    Parameters
    ----------
    mask : (x, y, z) Tensor
        True inside.
    channels : tuple
        Channels per level of the network.
    start : LinearPart
        Values are the voxels inside; all have one noise variance.
    """

    def __init__(self, *, mask: Bool[Tensor, "x y z"], channels: tuple[int, ...], start: LinearPart) -> None:
        super().__init__()
        self.n_shared, self.n_private = len(start.shared), len(start.private)
        for name, value in _buffers(start).items():
            self.register_buffer(name, value)
        self.register_buffer("mask", mask.float())
        self.register_buffer("index", mask.flatten().nonzero().flatten(), persistent=False)
        exact = _double(start)
        # In double precision: what is shared is what is left when private latents took theirs of two large numbers.
        reading = read_linearly(exact, 1.0 / exact.noise[None])
        for name, value in (
            ("pull", reading.pull[0]),
            ("precision", reading.precision[0]),
            ("reader", reading.private[0]),
            ("log_var", reading.log_var[0]),
            ("overlap", reading.private[0] @ exact.shared.T),
            ("scale", _spread(exact).mean().sqrt()),
        ):
            self.register_buffer(f"read_{name}", value.float(), persistent=False)
        shape = (mask.shape[0], mask.shape[1], mask.shape[2])
        n_latent = self.n_shared + self.n_private
        self.trunk = Trunk(shape=shape, channels=channels)
        self.head = nn.Linear(self.trunk.n_features, 2 * n_latent)
        self.mirror = Mirror(shape=shape, channels=channels, n_latent=n_latent, n_smooth=N_SMOOTH)
        start_at_zero(self.head)
        start_at_zero(self.mirror.last)
        self.log_noise = nn.Parameter(start.noise.mean().log().float())

    @property
    def n_values(self) -> int:
        """Voxels inside the mask."""
        return len(self.get_buffer("mean"))

    def read(self, x: Float[Tensor, "batch 1 x y z"], *, noise: Tensor | None = None) -> "Read":
        """What a scan says of the latents; `noise`, in units of the scans' SD, is added to what the network sees."""
        deviation = x.flatten(1)[:, self.get_buffer("index")] - self.get_buffer("mean")
        seen = deviation / self.get_buffer("read_scale")
        seen = seen if noise is None else seen + noise.flatten(1)[:, self.get_buffer("index")]
        features = self.trunk(painted(seen, self.get_buffer("index"), self.get_buffer("mask")))
        with torch.autocast(x.device.type, enabled=False):
            pull = deviation @ self.get_buffer("read_pull").T
            private = deviation @ self.get_buffer("read_reader").T
        precision, log_var = self.get_buffer("read_precision"), self.get_buffer("read_log_var")
        overlap = self.get_buffer("read_overlap")
        return Read(
            *_corrected(self.head(features).float(), pull, precision.expand(len(x), -1, -1)),
            private,
            overlap.expand(len(x), -1, -1),
            log_var.expand(len(x), -1),
        )

    def draw(self, v: Float[Tensor, "batch latent"], *, shaken: Tensor | None = None) -> Float[Tensor, "batch 1 x y z"]:
        """Draw volumes at latents, shared ones first; the network alone sees them `shaken`."""
        loadings = torch.cat([self.get_buffer("shared"), self.get_buffer("private")])
        drawn = painted(self.get_buffer("mean") + v @ loadings, self.get_buffer("index"), self.get_buffer("mask"))
        added: Tensor = self.mirror(v if shaken is None else shaken)
        return drawn + self.get_buffer("read_scale") * self.get_buffer("mask") * added

    def log_likelihood(
        self, x: Float[Tensor, "batch 1 x y z"], drawn: Float[Tensor, "batch 1 x y z"]
    ) -> Float[Tensor, " batch"]:
        """Nats per scan, summed over the voxels inside, under Gaussian noise of one variance that is learned."""
        error = squared_error(x, drawn, self.get_buffer("mask"))
        return gaussian_log_likelihood(error, variance=self.log_noise.exp(), n_voxels=self.n_values)

    def missed_likelihood(
        self, x: Float[Tensor, "batch 1 x y z"], drawn: Float[Tensor, "batch 1 x y z"], chosen: Bool[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Nats of the `chosen` scans, under the noise that makes them most likely together; 0 for the others."""
        error = squared_error(x, drawn, self.get_buffer("mask"))
        # The mean over the chosen ones, whatever the others hold.
        variance = optimal_variance(error[chosen], n_voxels=self.n_values) if chosen.any() else error.new_ones(())
        return gaussian_log_likelihood(error, variance=variance, n_voxels=self.n_values) * chosen


class TablePart(nn.Module):
    """Reads and draws the columns of a table, any cell of which may be missing.

    Parameters
    ----------
    levels : tuple[int, ...]
        Of each column of the table: 1 for numbers, else how many categories; these fill one value less than they are, the
        indicator of each but the first.
    shares : (value,) Tensor
        Share of each such category among the training scans; 0 for numbers.
    start : LinearPart
        Values are standardised numbers and indicators less their shares, so that their means are 0.
    """

    def __init__(self, *, levels: tuple[int, ...], shares: Float[Tensor, " value"], start: LinearPart) -> None:
        super().__init__()
        self.levels = levels
        self.n_shared, self.n_private = len(start.shared), len(start.private)
        for name, value in _buffers(start).items():
            self.register_buffer(name, value)
        self.register_buffer("shares", shares.float())
        base, loadings = _as_logits(torch.cat([start.shared, start.private]), shares, levels)
        self.register_buffer("base", base.float(), persistent=False)
        self.register_buffer("loadings", loadings.float(), persistent=False)
        n_latent, n_values = self.n_shared + self.n_private, len(shares)
        self.trunk = nn.Sequential(nn.Linear(2 * n_values, HIDDEN), nn.SiLU())
        self.head = nn.Linear(HIDDEN, 2 * n_latent)
        last = nn.Linear(HIDDEN, n_values)
        self.mirror = nn.Sequential(nn.Linear(n_latent, HIDDEN), nn.SiLU(), last)
        start_at_zero(self.head)
        start_at_zero(last)
        # Those of categories are never used: what they lack of certainty is in their probabilities.
        self.log_noise = nn.Parameter(start.noise.log().float())

    @property
    def n_values(self) -> int:
        """Columns of the table."""
        return len(self.levels)

    @property
    def numbers(self) -> Int[Tensor, " number"]:
        """Which values are numbers, rather than indicators of categories."""
        widths = [max(n_levels - 1, 1) for n_levels in self.levels]
        firsts = [sum(widths[:place]) for place in range(len(widths))]
        kept = [first for first, n_levels in zip(firsts, self.levels, strict=True) if n_levels == 1]
        return torch.tensor(kept, dtype=torch.long)

    def read(self, x: Float[Tensor, "batch 2 value"], *, noise: Tensor | None = None) -> "Read":
        """What a row says of the latents, by the cells that are known; values first, then 1 where they are known."""
        known = x[:, 1]
        deviation = (x[:, 0] - self.get_buffer("mean")) * known
        part = LinearPart(*(self.get_buffer(name) for name in ("mean", "shared", "private", "noise")))
        reading = read_linearly(part, known / part.noise)
        seen = deviation if noise is None else deviation + noise[:, 0] * known
        head = self.head(self.trunk(torch.cat([seen, known], dim=1)))
        # A row without any known cell says nothing, whatever the network would make of that.
        head = head * known.any(dim=1, keepdim=True)
        pull = (reading.pull @ deviation[..., None])[..., 0]
        private = (reading.private @ deviation[..., None])[..., 0]
        overlap = reading.private @ part.shared.T
        return Read(*_corrected(head, pull, reading.precision), private, overlap, reading.log_var)

    def draw(self, v: Float[Tensor, "batch latent"], *, shaken: Tensor | None = None) -> Float[Tensor, "batch value"]:
        """Expected numbers, and of categories the logarithm of their odds against the first."""
        drawn: Tensor = self.get_buffer("base") + v @ self.get_buffer("loadings")
        added: Tensor = self.mirror(v if shaken is None else shaken)
        return drawn + added

    def log_likelihood(
        self,
        x: Float[Tensor, "batch 2 value"],
        drawn: Float[Tensor, "batch value"],
        *,
        wider: Float[Tensor, " value"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Nats per scan, summed over the cells that are known; the variance of numbers may be `wider` by something."""
        variance = self.log_noise.exp().clamp_min(NOISE_FLOOR)
        variance = variance if wider is None else variance + wider
        nats = torch.zeros(len(x), device=x.device, dtype=drawn.dtype)
        first = 0
        for n_levels in self.levels:
            columns = slice(first, first + max(n_levels - 1, 1))
            known = x[:, 1, first]
            if n_levels == 1:
                error = (drawn[:, first] - x[:, 0, first]).square() / variance[first]
                own = -0.5 * (error + variance[first].log() + math.log(2.0 * math.pi))
            else:
                logits = torch.cat([torch.zeros_like(drawn[:, :1]), drawn[:, columns]], dim=1)
                others = x[:, 0, columns] + self.get_buffer("shares")[columns]
                indicator = torch.cat([1.0 - others.sum(dim=1, keepdim=True), others], dim=1)
                own = (indicator * logits.log_softmax(dim=1)).sum(dim=1)
            nats = nats + own * known
            first = columns.stop
        return nats

    def missed_likelihood(
        self, x: Float[Tensor, "batch 2 value"], drawn: Float[Tensor, "batch value"], chosen: Bool[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Nats of the `chosen` rows with all that is private counted as noise; 0 for the others."""
        own = self.get_buffer("private").square().sum(dim=0)
        return self.log_likelihood(x, drawn, wider=own) * chosen


@dataclass(frozen=True, eq=False)
class Read:
    """What one modality says.

    Parameters
    ----------
    pull, precision : Tensor
        (batch, shared) and (batch, shared, shared): its expert.
    correction : (batch, 2, private) Tensor
        What the network adds to mean and log-variance of the private latents.
    private : (batch, private) Tensor
        Means of the private latents of a scan whose shared latents are 0.
    overlap : (batch, private, shared) Tensor
        What of these the shared latents explain away.
    log_var : (batch, private) Tensor
        Log-variances before the correction.
    """

    pull: Float[Tensor, "batch shared"]
    precision: Float[Tensor, "batch shared shared"]
    correction: Float[Tensor, "batch 2 private"]
    private: Float[Tensor, "batch private"]
    overlap: Float[Tensor, "batch private shared"]
    log_var: Float[Tensor, "batch private"]

    def own(self, z: Float[Tensor, "batch shared"]) -> Posterior:
        """Posterior of the private latents, given the shared ones."""
        mean = self.private - (self.overlap @ z[..., None])[..., 0] + self.correction[:, 0]
        return Posterior(mean, (self.log_var + self.correction[:, 1]).clamp(*LOG_VAR_RANGE))


def _corrected(head: Tensor, pull: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Expert with the network's say, and the correction of the private latents."""
    n_shared = pull.shape[1]
    shared, private = head[:, : 2 * n_shared], head[:, 2 * n_shared :]
    wider = (0.5 * shared[:, n_shared:].clamp(-MAX_CHANGE, MAX_CHANGE)).exp()
    # Scaled from both sides, a precision stays one; and a pull is as large as the posterior is narrow.
    size = (1.0 + torch.diagonal(precision, dim1=1, dim2=2)).sqrt()
    changed = wider[:, :, None] * precision * wider[:, None, :]
    return pull + size * shared[:, :n_shared], changed, private.reshape(len(head), 2, -1)


def _as_logits(loadings: Tensor, shares: Tensor, levels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Linear changes of probabilities as changes of the log-odds against the first category, at the usual probabilities."""
    base, turned, first = torch.zeros_like(shares), loadings.clone(), 0
    for n_levels in levels:
        columns = slice(first, first + max(n_levels - 1, 1))
        if n_levels > 1:
            reference = 1.0 - shares[columns].sum()
            base[columns] = (shares[columns] / reference).log()
            turned[:, columns] = loadings[:, columns] / shares[columns]
            turned[:, columns] += loadings[:, columns].sum(dim=1, keepdim=True) / reference
        first = columns.stop
    return base, turned


def _buffers(start: LinearPart) -> dict[str, Tensor]:
    return {name: getattr(start, name).float() for name in ("mean", "shared", "private", "noise")}


def _double(start: LinearPart) -> LinearPart:
    return LinearPart(*(getattr(start, name).double() for name in ("mean", "shared", "private", "noise")))


def _spread(start: LinearPart) -> Tensor:
    return start.shared.square().sum(dim=0) + start.private.square().sum(dim=0) + start.noise
