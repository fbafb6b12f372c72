"""Settings of a joint model of several modalities."""

from dataclasses import dataclass, field

from nilatent.errors import SettingError
from nilatent.models.blocks import CHANNELS_PER_GROUP
from nilatent.models.experts import EXPERTS

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class MultimodalConfig:
    """Which joint model, and how it is trained.

    Parameters
    ----------
    experts : str
        ``"poe"``, ``"moe"`` or ``"mopoe"``: how what the modalities say of the shared latents is combined; see
        :func:`nilatent.models.experts.combine`.
    n_latent : int
        Principal components of each modality of volumes that the model starts from, which are its private latents; what of
        them the modalities share is told by the shared latents instead. Fewer than the training scans of each; 0: half as many
        as these, at most 16.
    n_shared : int
        Shared latents, at most `n_latent`. 0: as many of 1, 2, 4, 8 and 16 as best predict, in the linear model, each modality
        of left-out training subjects from the others.
    n_table_private : int
        Private latents of each table: what its columns have in common that no other modality tells.
    channels : tuple
        Channels per level of the network of each modality of volumes, multiples of four.
    weights : dict[str, float]
        By modality: factor on its log-likelihood in training, 1 where not named. With 1 throughout training raises the
        evidence lower bound itself, in which every voxel counts as much as every cell of a table, relative to its noise; that
        noise is learned per modality (per column of a table).
    dropout : float
        Share of the scans, in [0, 1), of which a random set of their modalities is hidden in a step; from the others alone
        they are encoded and drawn, as if they had no more.
    crossing : float
        Weight, beside the bound, of the likelihood of what is hidden when it is drawn from the rest, at least 0. The linear
        model is at its best in both; without this, networks let private latents tell what is shared, which raises the bound
        and spoils prediction across modalities.
    n_epochs, patience, batch_size, learning_rate, warmup_epochs, weight_decay, input_noise, latent_noise
        As in :class:`nilatent.training.config.TrainConfig`; what is judged is the evidence lower bound of all that is
        present of the validation scans.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    seed : int
        Of the initial weights, the folds, the order of the scans and all noise.
    """

    experts: str = "poe"
    n_latent: int = 0
    n_shared: int = 0
    n_table_private: int = 1
    channels: tuple[int, ...] = (8, 16, 32)
    weights: dict[str, float] = field(default_factory=dict)
    dropout: float = 0.5
    crossing: float = 1.0
    n_epochs: int = 60
    patience: int = 12
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_epochs: float = 2.0
    weight_decay: float = 0.1
    input_noise: float = 0.1
    latent_noise: float = 0.3
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        for name, allowed in (("experts", EXPERTS), ("device", DEVICES)):
            if getattr(self, name) not in allowed:
                raise SettingError(f"multimodal.{name} is '{getattr(self, name)}'; choose one of {', '.join(allowed)}.")
        lowest_of = {"n_latent": 0, "n_shared": 0, "n_table_private": 0, "n_epochs": 0, "patience": 1, "batch_size": 1}
        for name, lowest in (lowest_of | {"seed": 0}).items():
            if getattr(self, name) < lowest:
                raise SettingError(f"multimodal.{name} is {getattr(self, name)}; it must be at least {lowest}.")
        for name in ("crossing", "warmup_epochs", "weight_decay", "input_noise", "latent_noise"):
            if getattr(self, name) < 0:
                raise SettingError(f"multimodal.{name} is {getattr(self, name)}; it must not be negative.")
        if self.n_latent and self.n_shared > self.n_latent:
            raise SettingError(
                f"multimodal.n_shared is {self.n_shared}, more than multimodal.n_latent, {self.n_latent}. Lower it."
            )
        if self.learning_rate <= 0:
            raise SettingError(f"multimodal.learning_rate is {self.learning_rate}; it must be above 0, usually 1e-3.")
        if not 0 <= self.dropout < 1:
            raise SettingError(
                f"multimodal.dropout is {self.dropout}; it must be at least 0 and under 1, so that scans are learned whole too."
            )
        if not self.channels or any(width < 1 or width % CHANNELS_PER_GROUP for width in self.channels):
            raise SettingError(f"multimodal.channels is {self.channels}; give multiples of {CHANNELS_PER_GROUP}.")
        for name, weight in self.weights.items():
            if not weight > 0:
                raise SettingError(
                    f"multimodal.weights gives '{name}' {weight}; weights are above 0, and 1 is the bound."
                )
