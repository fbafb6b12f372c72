"""Settings of training, and the learning rate that follows from them."""

import math
from dataclasses import dataclass

from nilatent.errors import SettingError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "32-true", "bf16-mixed")


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
        Scans per step.
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
        SD of the noise on the latents that f sees (the anchor's linear part sees them clean); latents have about unit
        variance.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    precision : str
        ``"32-true"``, ``"bf16-mixed"``, or ``"auto"``: mixed on a GPU that has bfloat16, else single. Validation and
        encoding are always in single precision.
    seed : int
        Of the initial weights, the order of the scans and all noise.
    """

    n_epochs: int = 60
    patience: int = 12
    batch_size: int = 8
    learning_rate: float = 1e-3
    warmup_epochs: float = 2.0
    kl_warmup_epochs: float = 0.0
    kl_cycles: int = 1
    weight_decay: float = 0.1
    input_noise: float = 0.1
    latent_noise: float = 0.3
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        for name, lowest in (("n_epochs", 0), ("patience", 1), ("batch_size", 1), ("kl_cycles", 1), ("seed", 0)):
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
