"""Settings of a model: which network, and what it is trained for."""

import math
from dataclasses import dataclass, fields

from nilatent.errors import SettingError
from nilatent.models.blocks import CHANNELS_PER_GROUP

NAMES = ("autoencoder", "vae", "spatial_vae")
ANCHORS = ("auto", "pca", "local", "mean", "none")
LIKELIHOODS = ("gaussian", "laplace", "voxel")
TERMS = ("kl", "tc", "free-bits", "capacity")
# Every level halves the grid: more of them than this are below one voxel of any scan.
MAX_LEVELS = 10
# Which models a setting concerns; one that is set for another model would be ignored, and is refused.
CONCERNS = {
    "n_latent": ("autoencoder", "vae"),
    "curve": ("autoencoder", "vae"),
    "likelihood": ("vae",),
    "sigma": ("vae", "spatial_vae"),
    "beta": ("vae", "spatial_vae"),
    "term": ("vae",),
    "free_bits": ("vae",),
    "capacity": ("vae",),
    "info_alpha": ("vae",),
    "info_lambda": ("vae",),
    "latent_grid": ("spatial_vae",),
    "latent_channels": ("spatial_vae",),
    "perceptual": ("spatial_vae",),
    "adversarial": ("spatial_vae",),
    "adversarial_from": ("spatial_vae",),
    "align": ("autoencoder", "vae"),
    "align_weight": ("autoencoder", "vae"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and what it is trained for.

    Parameters
    ----------
    name : str
        A key of :data:`nilatent.models.MODELS`.
    n_latent : int
        Length of the latent vector of ``"autoencoder"`` and ``"vae"``; less than the number of training scans.
    channels : tuple
        Channels per level, multiples of four; every level halves the grid.
    anchor : str
        ``"pca"``: the model starts as the principal components of the training scans and learns what they miss.
        ``"local"``: for a latent grid, as the principal components of each block of voxels under a cell. ``"mean"``: it
        starts as their mean image. ``"none"``: the network starts from nothing. ``"auto"``: PCA for a latent vector, local
        PCA for a latent grid.
    curve : bool
        Whether a start at principal components may add what they miss as a smooth function of the scores, where that
        predicts training scans it was not fitted on.
    likelihood : str
        Noise of the scans about the reconstruction of a ``"vae"``: ``"gaussian"``, ``"laplace"``, or ``"voxel"``, Gaussian
        with a variance of its own in every voxel, given by the decoder. A ``"spatial_vae"`` has Laplace noise.
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
    latent_grid, latent_channels : int
        The latent of a ``"spatial_vae"``: `latent_channels` maps on a grid of `latent_grid` to the third.
    perceptual, adversarial : float
        Weights of these terms of a ``"spatial_vae"`` relative to its reconstruction term.
    adversarial_from : float
        Share of the epochs after which the adversarial term sets in, in [0, 1].
    condition : tuple[str, ...]
        Columns of the cohort that the model is told of every scan, such as age and sex: the decoder is p(x | z, c), and the
        latents hold what a scan has beyond them.
    align : str
        Column of the cohort, such as a clinical score, to which the first latent is pulled on training scans; empty for none.
    align_weight : float
        Precision with which that latent is asked to be the standardised score, in nats per scan and squared SD.
    """

    name: str = "autoencoder"
    n_latent: int = 64
    channels: tuple[int, ...] = (8, 16, 32, 64)
    anchor: str = "auto"
    curve: bool = True
    likelihood: str = "gaussian"
    sigma: float | None = None
    beta: float = 1.0
    term: str = "kl"
    free_bits: float = 0.0
    capacity: float = 0.0
    info_alpha: float = 0.0
    info_lambda: float = 1.0
    latent_grid: int = 24
    latent_channels: int = 4
    perceptual: float = 1.0
    adversarial: float = 0.05
    adversarial_from: float = 0.25
    condition: tuple[str, ...] = ()
    align: str = ""
    align_weight: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises
        ------
        SettingError
            When a value is unknown, out of range, or would be ignored.
        """
        for name, allowed in (
            ("name", NAMES),
            ("anchor", ANCHORS),
            ("likelihood", LIKELIHOODS),
            ("term", TERMS),
        ):
            if getattr(self, name) not in allowed:
                raise SettingError(f"model.{name} is '{getattr(self, name)}'; choose one of {', '.join(allowed)}.")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise SettingError(f"model.{entry.name} is {value}; it is a finite number.")
        given = [entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default]
        for name in given:
            if self.name not in CONCERNS.get(name, NAMES):
                raise SettingError(
                    f"model.{name} concerns {' and '.join(CONCERNS[name])} only, and model.name is '{self.name}'. Leave it "
                    "out, or choose another model."
                )
        self._check_network()
        self._check_capacity()
        if self.align_weight != 10.0 and not self.align:
            raise SettingError(
                "model.align_weight is set and model.align is empty. Name the column, or leave both out."
            )

    def _check_network(self) -> None:
        if not self.curve and self.start != "pca":
            raise SettingError(
                f"model.curve is false and model.anchor '{self.anchor}'; only a start at "
                "principal components has one. Leave it out."
            )
        if (self.anchor == "pca" and self.name == "spatial_vae") or (
            self.anchor == "local" and self.name != "spatial_vae"
        ):
            raise SettingError(
                f"model.anchor is '{self.anchor}' and model.name '{self.name}'. Whole-brain components are those of a latent "
                "vector ('pca'), components of blocks those of a spatial_vae ('local'); either takes 'mean' or 'none'."
            )
        wrong = any(width < 1 or width % CHANNELS_PER_GROUP for width in self.channels)
        if wrong or not 2 <= len(self.channels) <= MAX_LEVELS:
            levels = self.channels if len(self.channels) <= MAX_LEVELS else f"{len(self.channels)} levels"
            raise SettingError(
                f"model.channels is {levels}; give two to {MAX_LEVELS} levels, each a multiple of {CHANNELS_PER_GROUP}."
            )
        for name, lowest in (("n_latent", 1), ("latent_grid", 2), ("latent_channels", 1)):
            if getattr(self, name) < lowest:
                raise SettingError(f"model.{name} is {getattr(self, name)}; it must be at least {lowest}.")
        for name in ("beta", "free_bits", "capacity", "perceptual", "adversarial", "align_weight"):
            if getattr(self, name) < 0:
                raise SettingError(f"model.{name} is {getattr(self, name)}; it must not be negative.")
        if not 0.0 <= self.adversarial_from <= 1.0:
            raise SettingError(
                f"model.adversarial_from is {self.adversarial_from}; it is a share of the epochs, from 0 to 1."
            )
        if len(set(self.condition)) < len(self.condition):
            raise SettingError(f"model.condition is {self.condition}; name each column once.")

    def _check_capacity(self) -> None:
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

    @property
    def variational(self) -> bool:
        """Whether the latents of a scan have a width."""
        return self.name != "autoencoder"

    @property
    def start(self) -> str:
        """The anchor that is meant: ``"pca"``, ``"local"``, ``"mean"`` or ``"none"``."""
        if self.anchor == "auto":
            return "local" if self.name == "spatial_vae" else "pca"
        return self.anchor

    @property
    def n_values(self) -> int:
        """Values that a scan's latent holds."""
        return self.latent_channels * self.latent_grid**3 if self.name == "spatial_vae" else self.n_latent
