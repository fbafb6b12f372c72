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
        for name, lowest in (("n_epochs", 0), ("patience", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise SettingError(f"training.{name} is {getattr(self, name)}; it must be at least {lowest}.")
        for name in ("warmup_epochs", "weight_decay", "input_noise", "latent_noise"):
            if getattr(self, name) < 0:
                raise SettingError(f"training.{name} is {getattr(self, name)}; it must not be negative.")
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
