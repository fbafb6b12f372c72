"""Pools: what a run folder holds for its analyses, read once."""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.regional import read_regions
from nilatent.atlas import RegionWeights, load_atlas, region_weights
from nilatent.cohort import Cohort, load_cohort
from nilatent.config import MAX_AUTO_LATENT, SCANS_PER_LATENT, RunConfig, read_config
from nilatent.crossfit import errors_of, fold_parts, read_folds, regional_misses_of
from nilatent.latents import compact, is_grid, read_latents
from nilatent.map_names import read_map_name
from nilatent.training.checkpoint import load_model
from nilatent.volumes import Volumes, open_volumes, voxel_pca

BATCH = 64
STUDY_MODEL = -1
"""Fold of errors that the study's own model made on its test part."""


@dataclass(frozen=True, eq=False)
class Pools:
    """The pools of a run folder that analyses read.

    Parameters
    ----------
    out : Path
        The run folder.
    config : RunConfig
        Every setting.
    prepared : Cohort
        The scans.
    volumes : Volumes
        What the model was trained on.
    parts : DataFrame
        Split of the study.
    weights : RegionWeights
        The atlas in the mask of grey matter.
    of_mask : RegionWeights
        The atlas in the mask of the volumes, which is wider for T1 intensities.
    """

    out: Path
    config: RunConfig
    prepared: Cohort
    volumes: Volumes
    parts: pd.DataFrame
    weights: RegionWeights
    of_mask: RegionWeights

    @cached_property
    def latents(self) -> xr.Dataset:
        """Latents as vectors; those on a grid as their principal components over the training scans."""
        return self._vectors(read_latents(self.out), self.parts)

    @cached_property
    def regions(self) -> pd.DataFrame:
        """Mean grey matter, (scan, region)."""
        return read_regions(self.out).values

    @cached_property
    def judged(self) -> xr.Dataset:
        """The latents that labels may be asked of: all, or those of unseen scans where a label made them."""
        if not self.latents.attrs.get("supervised"):
            return self.latents
        return self.latents.isel(scan=~self.latents["subject_in_training"].values)

    def blind(self) -> list[xr.Dataset]:
        """Latents of every cross-fitted model, where labels may be asked of all scans; none otherwise."""
        return [] if self.latents.attrs.get("supervised") else self.fold_latents()

    def fold_latents(self) -> list[xr.Dataset]:
        """Latents of all scans by every cross-fitted model; none without cross-fitting."""
        if self.config.folds == 0:
            return []
        place, vectors = self.out / "folds", partial(self._vectors, parts=self.parts)
        return read_folds(place, self.config.folds, reduce=vectors)[0]

    def errors(self) -> pd.DataFrame:
        """Errors of every scan by the model that has not seen its subject; without folds those of the study's test part."""
        if not self.config.folds:
            return self.study_errors()
        place = self.out / "folds"
        return read_folds(place, self.config.folds, reduce=lambda one: one.drop_vars(["mean", "log_var"]))[1]

    def study_errors(self) -> pd.DataFrame:
        """Errors of the study's own model on the scans of its test part."""
        rows = self._unseen_rows(self.latents)
        return errors_of(load_model(self.out / "model"), self.volumes, rows, STUDY_MODEL, scans=self.prepared.scans)

    def regional_errors(self) -> pd.DataFrame:
        """Error of every region of every scan that a model has not seen: by cross-fitted models of all, else of the test part."""
        if not self.config.folds:
            return self._misses(self.out / "model", self._unseen_rows(self.latents), squared=True)
        places = [self.out / "folds" / str(fold) for fold in range(self.config.folds)]
        return pd.concat(
            [self._misses(place / "model", self._unseen_rows(read_latents(place)), squared=True) for place in places]
        )

    @cached_property
    def fwhm_mm(self) -> float:
        """How far the modelled images were smoothed, as their names say; T1 intensities are not, and unknown counts as 0."""
        named = [read_map_name(Path(str(path)).name) for path in self.prepared.scans["path"]]
        return max((one.fwhm_mm or 0.0 for one in named if one is not None), default=0.0)

    def residuals(self) -> list[pd.DataFrame]:
        """What every cross-fitted model, or the study's own, leaves of the mean of each region, of all scans."""
        places = [self.out / "folds" / str(fold) for fold in range(self.config.folds)] or [self.out]
        everyone = np.arange(len(self.volumes.scans))
        return [self._misses(place / "model", everyone, squared=False) for place in places]

    def _misses(self, folder: Path, rows: np.ndarray, *, squared: bool) -> pd.DataFrame:
        model, scans = load_model(folder), self.prepared.scans
        return regional_misses_of(model, self.volumes, rows, self.of_mask, scans=scans, squared=squared)

    def _unseen_rows(self, latents: xr.Dataset) -> np.ndarray:
        unseen = ~latents["subject_in_training"].values & (latents["part"].values == "test")
        return np.asarray(self.volumes.rows(list(latents["scan"].values[unseen])))

    def whole_latents(self) -> list[xr.Dataset]:
        """Latents as the models give them, grids included: of every cross-fitted model, or of the study's own."""
        if self.config.folds == 0:
            return [read_latents(self.out)]
        return read_folds(self.out / "folds", self.config.folds, reduce=lambda one: one)[0]

    def fold_parts(self, fold: int) -> pd.DataFrame:
        """The split with which the model of a fold was trained."""
        split = self.config.split
        return fold_parts(self.parts, fold, validation_fraction=split.validation_fraction, seed=split.seed)

    def voxel_scores(self, n_components: int, parts: pd.DataFrame) -> pd.DataFrame:
        """Scores of all scans on principal components of the voxels, fitted on the training scans of a split."""
        return scores_of(self.volumes, n_components, parts, seed=self.config.seed)

    def of_judged(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Regions and rows of the cohort of the scans in :attr:`judged`, in its order."""
        chosen = self.judged["scan"].values
        return self.regions.loc[chosen], self.prepared.scans.loc[chosen]

    def _vectors(self, latents: xr.Dataset, parts: pd.DataFrame) -> xr.Dataset:
        if not is_grid(latents):
            return latents
        return compact(latents, n_components=n_components(parts), seed=self.config.seed)


def scores_of(volumes: Volumes, n_components: int, parts: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Scores of all scans on principal components of the voxels, fitted on the training scans of a split that have volumes.

    Parameters
    ----------
    volumes : Volumes
        Of some scans of the split at least.
    n_components : int
        At most so many; fewer where the training scans carry fewer.
    parts : DataFrame
        Index scan_id, column ``part``.
    seed : int
        Draws the scans, where they are very many.

    Returns
    -------
    DataFrame
        Index scan_id of the volumes, columns ``PC1``, ``PC2``, ...
    """
    training = volumes.scans.index.intersection(parts.index[parts["part"] == "train"])
    pca = voxel_pca(volumes, volumes.rows(list(training)), n_components, seed=seed, at_most=True)
    n_scans = len(volumes.scans)
    scores = [
        pca.scores(volumes.masked(np.arange(n_scans)[start : start + BATCH])) for start in range(0, n_scans, BATCH)
    ]
    names = [f"PC{number + 1}" for number in range(len(pca.sd))]
    return pd.DataFrame(np.concatenate(scores), index=volumes.scans.index, columns=names)


def n_components(parts: pd.DataFrame) -> int:
    """Components that stand for latents on a grid: as many as the training scans of a split can carry."""
    return max(2, min(MAX_AUTO_LATENT, int((parts["part"] == "train").sum()) // SCANS_PER_LATENT))


def open_pools(out: Path) -> Pools:
    """The pools of a run folder, by the settings it holds.

    Raises
    ------
    NilatentError
        When the folder is not that of a run which came as far as its latents.
    """
    out = Path(out).absolute()
    config, volumes = read_config(out / "study.toml"), open_volumes(out / "volumes")
    prepared = load_cohort(out / "prepared")
    table = Path(config.atlas.table) if config.atlas.table else None
    atlas = load_atlas(config.atlas.spec, table=table)
    of_mask = region_weights(atlas, volumes.grid, volumes.mask)
    weights = of_mask
    if config.recipe.target != "gm":
        grey = open_volumes(out / "grey")
        weights = region_weights(atlas, grey.grid, grey.mask)
    return Pools(out, config, prepared, volumes, read_split(out), weights, of_mask)


def read_split(out: Path) -> pd.DataFrame:
    """Part and fold of every scan, from ``split.tsv``."""
    kinds = {"scan_id": str, "subject_id": str, "part": str, "fold": int}
    return pd.read_csv(out / "split.tsv", sep="\t", dtype=kinds).set_index("scan_id")
