"""Networks: tensors in, tensors out; they know nothing of scans and subjects."""

from dataclasses import dataclass, fields

from jaxtyping import Bool, Float
from torch import Tensor

from nilatent.errors import SettingError
from nilatent.models.anchor import NoAnchor, PcaAnchor
from nilatent.models.autoencoder import Autoencoder
from nilatent.models.blocks import CHANNELS_PER_GROUP, Posterior
from nilatent.models.losses import VARIANCE_FLOOR
from nilatent.models.vae import Vae

MODELS: dict[str, type[Autoencoder] | type[Vae]] = {"autoencoder": Autoencoder, "vae": Vae}
ANCHORS = ("pca", "none")
LIKELIHOODS = ("gaussian", "laplace", "voxel")
TERMS = ("kl", "tc", "free-bits", "capacity")

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
    likelihood : str
        All from here on concern the ``"vae"`` alone. Noise of the scans about the reconstruction: ``"gaussian"``,
        ``"laplace"``, or ``"voxel"``, Gaussian with a variance of its own in every voxel, given by the decoder.
    sigma : float, optional
        Noise SD of the ``"gaussian"`` or ``"laplace"`` likelihood, in units of the scans. Left out, each batch uses its
        most likely value.
    beta : float
        Weight of the capacity term in units of the evidence lower bound, 1 being the bound itself.
    term : str
        What holds the latents' capacity: ``"kl"``; ``"tc"``, the KL with its total correlation alone weighed by `beta`;
        ``"free-bits"``, the KL above `free_bits`; ``"capacity"``, the distance of the KL from `capacity`.
    free_bits : float
        Nats per latent that cost nothing, for the term ``"free-bits"``.
    capacity : float
        Nats per scan that the latents shall carry at the end of the KL's warm-up, for the term ``"capacity"``.
    info_alpha, info_lambda : float
        Info-VAE: the KL is weighed by ``1 - info_alpha``, and the squared MMD between the latents of all scans and the
        prior by ``info_alpha + info_lambda - 1``, in nats per scan. 0 and 1 are the plain VAE.
    """

    name: str = "autoencoder"
    n_latent: int = 64
    channels: tuple[int, ...] = (8, 16, 32, 64)
    anchor: str = "pca"
    likelihood: str = "gaussian"
    sigma: float | None = None
    beta: float = 1.0
    term: str = "kl"
    free_bits: float = 0.0
    capacity: float = 0.0
    info_alpha: float = 0.0
    info_lambda: float = 1.0

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
        variational = {"likelihood", "sigma", "beta", "term", "free_bits", "capacity", "info_alpha", "info_lambda"}
        given = [entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default]
        ignored = [name for name in given if name in variational]
        if self.name != "vae" and ignored:
            raise SettingError(f"model.{ignored[0]} concerns the vae only. Leave it out, or set model.name to 'vae'.")
        self._check_variational()

    def _check_variational(self) -> None:
        for name, allowed in (("likelihood", LIKELIHOODS), ("term", TERMS)):
            if getattr(self, name) not in allowed:
                raise SettingError(f"model.{name} is '{getattr(self, name)}'; choose one of {', '.join(allowed)}.")
        for name in ("beta", "free_bits", "capacity"):
            if getattr(self, name) < 0:
                raise SettingError(f"model.{name} is {getattr(self, name)}; it must not be negative.")
        if self.sigma is not None and (self.sigma <= 0 or self.likelihood == "voxel"):
            raise SettingError(
                f"model.sigma is {self.sigma}; it is above 0, and left out where the decoder gives the noise of every voxel."
            )
        for name, term in (("free_bits", "free-bits"), ("capacity", "capacity")):
            if (getattr(self, name) > 0) != (self.term == term):
                raise SettingError(
                    f"model.{name} is {getattr(self, name)} and model.term '{self.term}'; {name} is above 0 with the term "
                    f"'{term}', and only with it."
                )
        if self.info_alpha > 1 or self.info_alpha + self.info_lambda < 1:
            raise SettingError(
                f"model.info_alpha is {self.info_alpha} and model.info_lambda {self.info_lambda}; the first is at most 1, and "
                "together they are at least 1, so that neither the KL nor the MMD is rewarded."
            )
        if self.term != "kl" and (self.info_alpha, self.info_lambda) != (0.0, 1.0):
            raise SettingError(
                f"model.term is '{self.term}'; an Info-VAE (info_alpha, info_lambda) goes with 'kl' only."
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
    if config.name == "autoencoder":
        return Autoencoder(anchor=anchor, channels=config.channels, n_smooth=n_smooth)
    # What the start leaves unexplained, voxel by voxel the same; never zero, which would say that there is no such noise.
    left = max(residual_variance if config.anchor == "pca" else variance, VARIANCE_FLOOR)
    voxel_noise = left if config.likelihood == "voxel" else 0.0
    return Vae(anchor=anchor, channels=config.channels, n_smooth=n_smooth, voxel_noise=voxel_noise)
