"""Settings of training, and the learning rate that follows from them."""

import math
from dataclasses import dataclass, replace

from nilatent.errors import SettingError
from nilatent.training.augment import AUGMENTATIONS

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "32-true", "bf16-mixed")
FREEZABLE = ("encoder", "decoder")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Parameters
    ----------
    n_epochs : int
        At most this many passes over the training scans; the cosine schedule ends there.
    patience : int
        Stop after this many epochs without a better validation FVU.
    batch_size : int
        Scans per step, over all devices together.
    micro_batch : int
        Scans that a device holds at a time; their gradients are added up to that of the batch, which takes less memory. 0:
        the whole batch, or each device's share of it. Noise, and what is taken from a group of scans (a most likely sigma,
        the MMD, a total correlation, the weight of a critic), belong to a micro-batch, so it is part of the result: with the
        same one the result does not depend on the number of devices. Losses that are means over scans do not depend on it
        either, but for the draws of the noise.
    checkpointing : bool
        Compute activations again in the backward pass rather than keep them: the same result with less memory, in more time.
    learning_rate : float
        Peak of the schedule.
    warmup_epochs : float
        Epochs over which the learning rate rises to its peak.
    kl_warmup_epochs : float
        Only for the VAE: epochs over which the weight of the KL (or the capacity asked for) rises from zero. Epochs before
        the weight is whole are not chosen.
    kl_cycles : int
        Only for the VAE: how many times, at even intervals, that rise is repeated.
    weight_decay : float
        AdamW's, on matrices and kernels. With a PCA anchor it pulls the model towards PCA.
    input_noise : float
        SD of the noise on the scans that are encoded, in units of their SD about the mean image.
    latent_noise : float
        Only for latent vectors: SD of the noise on the latents that f sees (the anchor's linear part sees them clean), which
        have about unit variance. The latents of a grid have a width of their own, and no more is added.
    augment : tuple[str, ...]
        How scans are changed while training: some of ``"affine"``, ``"flip"``, ``"gamma"``, ``"bias"``, ``"noise"``; see
        :mod:`nilatent.training.augment`. None by default: the PCA start knows the scans as they are.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    devices, num_nodes : int
        Processes on each machine, one to a GPU (or a share of the cores), and machines; a batch is shared among them all.
        On one machine they are started here; several machines are started by ``torchrun`` or SLURM.
    precision : str
        ``"32-true"``, ``"bf16-mixed"``, or ``"auto"``: mixed on a GPU that has bfloat16, else single. Validation and
        encoding are always in single precision.
    start_from : str
        Folder of a trained model to start from, its anchor included, so that latents keep their meaning; empty for none.
    freeze : tuple[str, ...]
        What stays as it starts: ``"encoder"``, ``"decoder"``. The anchor is always fixed.
    seed : int
        Of the initial weights, the order of the scans and all noise.
    """

    n_epochs: int = 60
    patience: int = 12
    batch_size: int = 8
    micro_batch: int = 0
    checkpointing: bool = False
    learning_rate: float = 1e-3
    warmup_epochs: float = 2.0
    kl_warmup_epochs: float = 0.0
    kl_cycles: int = 1
    weight_decay: float = 0.1
    input_noise: float = 0.1
    latent_noise: float = 0.3
    augment: tuple[str, ...] = ()
    device: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "auto"
    start_from: str = ""
    freeze: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        lowest_of = {"n_epochs": 0, "patience": 1, "batch_size": 1, "kl_cycles": 1, "seed": 0, "micro_batch": 0}
        for name, lowest in (lowest_of | {"devices": 1, "num_nodes": 1}).items():
            if getattr(self, name) < lowest:
                raise SettingError(f"training.{name} is {getattr(self, name)}; it must be at least {lowest}.")
        for name in ("warmup_epochs", "kl_warmup_epochs", "weight_decay", "input_noise", "latent_noise"):
            if getattr(self, name) < 0:
                raise SettingError(f"training.{name} is {getattr(self, name)}; it must not be negative.")
        if self.kl_cycles > 1 and not 0 < self.kl_warmup_epochs < self.n_epochs / self.kl_cycles:
            raise SettingError(
                f"training.kl_cycles is {self.kl_cycles} and training.kl_warmup_epochs {self.kl_warmup_epochs}; each cycle of "
                f"{self.n_epochs / self.kl_cycles:g} epochs needs a rise above 0 that ends before the cycle does."
            )
        if self.learning_rate <= 0:
            raise SettingError(
                f"training.learning_rate is {self.learning_rate}; it must be above 0, usually 1e-4 to 1e-2."
            )
        if self.device not in DEVICES:
            raise SettingError(f"training.device is '{self.device}'; choose one of {', '.join(DEVICES)}.")
        if self.precision not in PRECISIONS:
            raise SettingError(f"training.precision is '{self.precision}'; choose one of {', '.join(PRECISIONS)}.")
        odd = [name for name in self.augment if name not in AUGMENTATIONS]
        if odd:
            raise SettingError(f"training.augment names '{odd[0]}'; choose some of {', '.join(AUGMENTATIONS)}.")
        self._check_shares()

    def _check_shares(self) -> None:
        if self.micro_batch > self.batch_size:
            raise SettingError(
                f"training.micro_batch is {self.micro_batch}, more than training.batch_size, {self.batch_size}. Lower it, or "
                "leave it out for the whole batch."
            )
        if self.n_processes > self.batch_size:
            raise SettingError(
                f"training.batch_size is {self.batch_size}, which leaves some of the {self.n_processes} devices without a "
                "scan. Raise it, or lower training.devices or training.num_nodes."
            )
        unknown = [part for part in self.freeze if part not in FREEZABLE]
        if unknown or len(set(self.freeze)) == len(FREEZABLE):
            raise SettingError(
                f"training.freeze is {', '.join(self.freeze)}; freeze one of {', '.join(FREEZABLE)}, so that the other "
                "learns."
            )

    @property
    def n_processes(self) -> int:
        """Devices on all machines together."""
        return self.devices * self.num_nodes

    @property
    def piece(self) -> int:
        """Scans that go through the network at a time: the micro-batch, or a device's share of the batch."""
        return self.micro_batch if self.micro_batch > 0 else -(-self.batch_size // self.n_processes)


def settled(config: TrainConfig) -> TrainConfig:
    """The settings that weigh in the result: not how many devices compute it, nor what they keep and compute again.

    Parameters
    ----------
    config : TrainConfig
        As asked for.

    Examples
    --------
    >>> settled(TrainConfig(micro_batch=4, devices=2)) == settled(TrainConfig(micro_batch=4))
    True
    """
    return replace(config, micro_batch=config.piece, devices=1, num_nodes=1, checkpointing=False)


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Learning rate after a number of epochs: a linear rise, then half a cosine down to zero.

    Parameters
    ----------
    config : TrainConfig
        Peak, length of the rise and of the whole.
    epoch : float
        Epochs done, with their fraction.

    Examples
    --------
    >>> config = TrainConfig(n_epochs=10, warmup_epochs=2, learning_rate=1.0)
    >>> [round(learning_rate(config, epoch), 3) for epoch in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if epoch < config.warmup_epochs:
        return config.learning_rate * epoch / config.warmup_epochs
    done = (epoch - config.warmup_epochs) / max(config.n_epochs - config.warmup_epochs, 1e-9)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def kl_weight(config: TrainConfig, epoch: float) -> float:
    """Share of the KL's weight that is in force after a number of epochs.

    Parameters
    ----------
    config : TrainConfig
        Length of the rise and number of cycles.
    epoch : float
        Epochs done, with their fraction.

    Returns
    -------
    float
        In [0, 1].

    References
    ----------
    Fu et al. 2019, Cyclical annealing schedule. doi:10.18653/v1/N19-1021

    Examples
    --------
    >>> config = TrainConfig(n_epochs=12, kl_warmup_epochs=2, kl_cycles=2)
    >>> [kl_weight(config, epoch) for epoch in (0, 1, 2, 5, 6, 7, 9)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0]
    """
    if config.kl_warmup_epochs == 0:
        return 1.0
    since = epoch % (config.n_epochs / config.kl_cycles) if config.kl_cycles > 1 else epoch
    return min(since / config.kl_warmup_epochs, 1.0)


def kl_is_whole(config: TrainConfig, epoch: int) -> bool:
    """Whether the weight of the KL was whole all through an epoch, counted from 1; the start, 0, counts as such."""
    if epoch == 0 or config.kl_warmup_epochs == 0:
        return True
    period = config.n_epochs / config.kl_cycles if config.kl_cycles > 1 else float("inf")
    # Between the start and the end of the epoch lies no new rise, and the last one was over at the start.
    same_cycle = (epoch - 1) // period == -(-epoch // period) - 1
    return same_cycle and kl_weight(config, epoch - 1.0) == 1.0
