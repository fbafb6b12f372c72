"""The face to scikit-learn: an autoencoder of brain maps as a transformer, for pipelines, searches and cross-validation."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from nilatent.cohort import Cohort
from nilatent.errors import GridError, SettingError
from nilatent.grid import Grid, average_to_grid, gm_mask
from nilatent.models import ModelConfig
from nilatent.training.checkpoint import FILES, TrainedModel, load_model
from nilatent.training.config import TrainConfig
from nilatent.training.loop import train
from nilatent.training.validation import draw, posteriors
from nilatent.volumes import Volumes, volumes_in_memory

VECTORS = ("autoencoder", "vae")
SPACING_MM = 4.0
BATCH = 16


class BrainAutoencoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Latents of brain maps in template space, learned by an autoencoder that starts as their principal components.

    Maps are what :func:`nilatent.preprocess.recipe.prepare` makes, or any other on one grid of template space: as a list of
    NIfTI paths or nibabel images, as a :class:`nilatent.cohort.Cohort`, or as an array (scan, voxel) of the voxels inside
    `mask_img`, in the order of ``data[mask]``. A splitter of scikit-learn cuts lists and arrays; of a cohort give it
    ``list(cohort.scans["path"])`` and, as ``groups``, ``cohort.scans["subject_id"]``.

    Parameters
    ----------
    n_latent : int
        Latents; fewer than the scans that train.
    model : {"autoencoder", "vae"}
        Which network.
    anchor : {"auto", "pca", "mean", "none"}
        What it starts from; see :class:`nilatent.models.ModelConfig`.
    channels : tuple of int
        Channels per level, multiples of four.
    mask_img : path or image, optional
        Voxels that count, on the grid that all maps are brought to. Left out: where the template has grey matter.
    spacing_mm : float, optional
        Voxel size of the MNI grid without a `mask_img`; left out, 4.
    n_epochs, patience, batch_size, learning_rate
        As in :class:`nilatent.training.config.TrainConfig`.
    validation_fraction : float
        Share of the subjects that chooses the epoch and trains no weight, in (0, 1).
    device : {"auto", "cpu", "cuda", "mps"}
        Where it trains.
    random_state : int
        Of the split, the first weights, the order and the noise. The same seed gives the same latents.

    Attributes
    ----------
    model_files_ : dict of bytes
        Files of the model folder by name: plain bytes, so that a process of its own can be handed the fitted estimator.
    n_latent_ : int
        Columns of the latents.
    from_array_ : bool
        Whether it was fitted on an array, and so gives arrays back.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> mask_img = nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.diag([4.0, 4.0, 4.0, 1.0]))
    >>> size = rng.standard_normal((20, 1))
    >>> x = size * rng.standard_normal(512) + 0.1 * rng.standard_normal((20, 512))
    >>> encoder = BrainAutoencoder(n_latent=2, channels=(4, 4), mask_img=mask_img, n_epochs=1)
    >>> encoder.fit_transform(x).shape
    (20, 2)
    """

    def __init__(
        self,
        n_latent: int = 64,
        *,
        model: str = "autoencoder",
        anchor: str = "auto",
        channels: tuple[int, ...] = (8, 16, 32, 64),
        mask_img: Any = None,
        spacing_mm: float | None = None,
        n_epochs: int = 60,
        patience: int = 12,
        batch_size: int = 8,
        learning_rate: float = 1e-3,
        validation_fraction: float = 0.15,
        device: str = "auto",
        random_state: int = 0,
    ) -> None:
        self.n_latent = n_latent
        self.model = model
        self.anchor = anchor
        self.channels = channels
        self.mask_img = mask_img
        self.spacing_mm = spacing_mm
        self.n_epochs = n_epochs
        self.patience = patience
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> "BrainAutoencoder":  # noqa: N803, ARG002
        """Train on maps.

        Parameters
        ----------
        X : list of path or image, Cohort, or ndarray
            Maps, at least four.
        y
            Not used: latents are learned without labels.
        groups : sequence, optional
            (scan,) subject of each scan, so that the inner split keeps subjects whole; a cohort knows them.

        Raises
        ------
        SettingError
            When a setting cannot be meant, or there are too few subjects.
        GridError
            When maps do not fit the grid or the mask.
        """
        if self.model not in VECTORS:
            raise SettingError(
                f"model is '{self.model}'; a transformer gives rows of latents, which {' and '.join(VECTORS)} do. Use "
                "nilatent.training.loop.train for latent grids."
            )
        grid, mask = self._space()
        volumes = _volumes(X, grid, mask, groups)
        parts = _parts(volumes.scans["subject_id"], self.validation_fraction, self.random_state)
        model = ModelConfig(name=self.model, n_latent=self.n_latent, anchor=self.anchor, channels=tuple(self.channels))
        config = TrainConfig(
            n_epochs=self.n_epochs,
            patience=self.patience,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            device=self.device,
            seed=self.random_state,
        )
        with tempfile.TemporaryDirectory(prefix="nilatent-") as folder:
            train(volumes, parts, model, config, Path(folder))
            self.model_files_ = {name: (Path(folder) / name).read_bytes() for name in FILES}
        self.n_latent_ = self.n_latent
        self.from_array_ = isinstance(X, np.ndarray)
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Posterior means, (scan, latent); a scan's row does not depend on the others."""
        check_is_fitted(self)
        model = self._model()
        volumes = _volumes(X, model.grid, model.mask)
        batches = posteriors(model.module, volumes, np.arange(len(volumes.scans)), batch_size=BATCH)
        latents: np.ndarray = np.concatenate([posterior.mean.numpy() for *_, posterior in batches])
        return latents.astype(np.float64)

    def inverse_transform(self, X: np.ndarray) -> Any:  # noqa: N803
        """Maps that latents stand for: (scan, voxel) when it was fitted on an array, a list of images otherwise."""
        check_is_fitted(self)
        model = self._model()
        latents = np.asarray(X, dtype=np.float32)
        if latents.ndim != 2 or latents.shape[1] != self.n_latent_:
            raise SettingError(f"Latents are (scan, {self.n_latent_}), got an array of shape {latents.shape}.")
        drawn = draw(model.module, torch.from_numpy(latents))
        if self.from_array_:
            return drawn
        whole = np.zeros((len(drawn), *model.grid.shape), dtype=np.float32)
        whole[:, model.mask] = drawn
        return [model.grid.to_image(volume) for volume in whole]

    def score(self, X: Any, y: Any = None) -> float:  # noqa: N803, ARG002
        """Negative mean squared error per voxel of the reconstructions; higher is better."""
        check_is_fitted(self)
        model = self._model()
        latents = torch.from_numpy(self.transform(X).astype(np.float32))
        seen = _volumes(X, model.grid, model.mask).masked(np.arange(len(latents)))
        return -float(np.square(seen - draw(model.module, latents), dtype=np.float64).mean())

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:  # noqa: ARG002
        """Names of the latents, as everywhere in nilatent: ``z000``, ``z001``, ..."""
        check_is_fitted(self)
        return np.asarray([f"z{index:03d}" for index in range(self.n_latent_)], dtype=object)

    def save(self, folder: Path) -> None:
        """Write the model folder, as :func:`nilatent.training.checkpoint.load_model` and the command line read it."""
        check_is_fitted(self)
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, content in self.model_files_.items():
            (Path(folder) / name).write_bytes(content)

    def _model(self) -> TrainedModel:
        with tempfile.TemporaryDirectory(prefix="nilatent-") as folder:
            self.save(Path(folder))
            return load_model(Path(folder))

    def _space(self) -> tuple[Grid, np.ndarray]:
        if self.mask_img is None:
            grid = Grid.mni(SPACING_MM if self.spacing_mm is None else self.spacing_mm)
            return grid, gm_mask(grid)
        image = _load(self.mask_img)
        grid = Grid(image.shape, image.affine)
        if self.spacing_mm is not None and abs(self.spacing_mm - grid.spacing_mm) > 1e-3:
            raise SettingError(
                f"spacing_mm is {self.spacing_mm} and the voxels of mask_img are {grid.spacing_mm:g} mm. Give one of the two."
            )
        return grid, np.asarray(image.dataobj) > 0


def _load(image: Any) -> Any:
    return nib.load(image) if isinstance(image, str | Path) else image


def _volumes(scans: Any, grid: Grid, mask: np.ndarray, groups: Sequence[Any] | None = None) -> Volumes:
    if isinstance(scans, np.ndarray):
        if scans.ndim != 2 or scans.shape[1] != int(mask.sum()):
            raise GridError(
                f"An array of maps is (scan, voxel) with the {int(mask.sum())} voxels inside the mask; this one has the shape "
                f"{scans.shape}. Name the mask as mask_img."
            )
        array = np.zeros((len(scans), *grid.shape), dtype=np.float32)
        array[:, mask] = scans
    else:
        images = list(scans.scans["path"]) if isinstance(scans, Cohort) else list(scans)
        array = np.stack([_on_grid(_load(image), grid) for image in images])
    ids = pd.Index([f"scan-{number:05d}" for number in range(len(array))], name="scan_id")
    table = pd.DataFrame({"subject_id": _subjects(scans, groups, len(array)), "dataset": "sklearn"}, index=ids)
    return volumes_in_memory(array, mask=mask, grid=grid, scans=table)


def _on_grid(image: Any, grid: Grid) -> np.ndarray:
    values = np.asarray(image.dataobj, dtype=np.float32)
    if values.ndim != 3:
        raise GridError(f"A map has three axes, this image has the shape {values.shape}. Give one image per scan.")
    if values.shape == grid.shape and np.allclose(image.affine, grid.affine, atol=1e-3):
        return values
    return average_to_grid(values, image.affine, grid)


def _subjects(scans: Any, groups: Sequence[Any] | None, n_scans: int) -> np.ndarray:
    given = scans.scans["subject_id"] if groups is None and isinstance(scans, Cohort) else groups
    names = np.arange(n_scans) if given is None else np.asarray(given)
    if len(names) != n_scans:
        raise SettingError(f"{len(names)} groups were given for {n_scans} scans. Give the subject of each scan.")
    return names.astype(str)


def _parts(subjects: "pd.Series[str]", fraction: float, seed: int) -> pd.DataFrame:
    names = np.unique(subjects)
    n_judges = max(round(fraction * len(names)), 2)
    if not 0 < fraction < 1 or len(names) - n_judges < 2:
        raise SettingError(
            f"validation_fraction {fraction} of {len(names)} subjects leaves {max(len(names) - n_judges, 0)} to train on. It is "
            "between 0 and 1, and at least two subjects train and two choose the epoch."
        )
    judges = np.random.default_rng(seed).permutation(names)[:n_judges]
    part = np.where(subjects.isin(judges), "validation", "train")
    return pd.DataFrame({"subject_id": subjects, "part": part}, index=subjects.index)
