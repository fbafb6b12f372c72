"""Networks: tensors in, tensors out; they know nothing of scans and subjects."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from nilatent.errors import SettingError
from nilatent.models.anchor import NoAnchor, PcaAnchor
from nilatent.models.autoencoder import Autoencoder
from nilatent.models.blocks import CHANNELS_PER_GROUP, Posterior
from nilatent.models.vae import Vae

MODELS: dict[str, type[Autoencoder] | type[Vae]] = {"autoencoder": Autoencoder, "vae": Vae}
ANCHORS = ("pca", "none")

__all__ = ["ANCHORS", "MODELS", "Autoencoder", "ModelConfig", "NoAnchor", "PcaAnchor", "Posterior", "Vae", "build"]


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and what it is trained for.

    Parameters
    ----------
    name : str
        A key of :data:`MODELS`.
    n_latent : int
        Length of the latent vector; less than the number of training scans.
    channels : tuple
        Channels per level, multiples of four; every level halves the grid.
    anchor : str
        ``"pca"``: the model starts as the principal components of the training scans and learns what they miss.
        ``"none"``: the network starts from nothing.
    beta : float
        Only for ``"vae"``: weight of the KL in units of the evidence lower bound, 1 being the bound itself.
    sigma : float, optional
        Only for ``"vae"``: noise SD of the Gaussian likelihood, in units of the scans. Left out, each batch uses its
        optimal value, the root of its mean squared error.
    """

    name: str = "autoencoder"
    n_latent: int = 64
    channels: tuple[int, ...] = (8, 16, 32, 64)
    anchor: str = "pca"
    beta: float = 1.0
    sigma: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises
        ------
        SettingError
            When a value is unknown, out of range, or would be ignored.
        """
        if self.name not in MODELS:
            raise SettingError(f"model.name is '{self.name}'; choose one of {', '.join(MODELS)}.")
        if self.anchor not in ANCHORS:
            raise SettingError(f"model.anchor is '{self.anchor}'; choose one of {', '.join(ANCHORS)}.")
        if self.n_latent < 1:
            raise SettingError(f"model.n_latent is {self.n_latent}; it must be at least 1.")
        if len(self.channels) < 2 or any(width < 1 or width % CHANNELS_PER_GROUP for width in self.channels):
            raise SettingError(
                f"model.channels is {self.channels}; give at least two levels, each a multiple of {CHANNELS_PER_GROUP}."
            )
        if self.beta < 0 or (self.sigma is not None and self.sigma <= 0):
            raise SettingError(
                f"model.beta is {self.beta}, model.sigma {self.sigma}; neither may be negative, nor sigma 0."
            )
        if self.name == "autoencoder" and (self.beta != 1.0 or self.sigma is not None):
            raise SettingError(
                "model.beta and model.sigma concern the vae only. Leave them out, or set model.name to 'vae'."
            )


def build(
    config: ModelConfig,
    *,
    mask: Bool[Tensor, "x y z"],
    mean: Float[Tensor, " voxel"],
    components: Float[Tensor, "latent voxel"],
    sd: Float[Tensor, " latent"],
    residual_variance: float,
) -> Autoencoder | Vae:
    """Build a model at its start.

    Parameters
    ----------
    config : ModelConfig
        Which model.
    mask : (x, y, z) Tensor
        True inside.
    mean, components, sd, residual_variance
        PCA of the training scans inside the mask: mean image, orthonormal rows, SD of the scores, and the mean
        variance per voxel that the components leave.

    Returns
    -------
    Autoencoder or Vae
        Its random initial weights come from torch's global generator: fork and seed it outside.
    """
    n_latent, n_voxels = components.shape
    variance = float(sd.double().square().sum()) / n_voxels + residual_variance
    anchor: NoAnchor | PcaAnchor
    if config.anchor == "pca":
        # Maximum likelihood spreads what is left over the dimensions that are left, not over all voxels.
        noise = residual_variance * n_voxels / (n_voxels - n_latent) if config.name == "vae" else 0.0
        anchor = PcaAnchor(mask=mask, mean=mean, components=components, sd=sd, variance=variance, noise_variance=noise)
    else:
        anchor = NoAnchor(mask=mask, mean=mean, sd=sd, variance=variance)
    n_smooth = 1 if config.anchor == "pca" else 0
    model: Autoencoder | Vae = MODELS[config.name](anchor=anchor, channels=config.channels, n_smooth=n_smooth)
    return model
