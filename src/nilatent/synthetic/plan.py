"""What synthetic samples follow from: a density, conditions, a seed; and the draws themselves, sixteen at a time."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.analysis.density import Density, fit_density, prior_latents
from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import SettingError
from nilatent.grid import Grid
from nilatent.latents import read_latents
from nilatent.pools import Pools
from nilatent.preprocess.derivative import SPACE, number_label
from nilatent.provenance import hash_file, hash_values, versions
from nilatent.synthetic.words import MARK

BLOCK = 16
"""Samples that share a generator and a batch."""
DENSITIES = ("mixture", "prior")
MAX_CODES = 10
"""A column with so few different numbers holds codes, which are drawn as they are."""


@dataclass(frozen=True)
class SamplesConfig:
    """Which samples are drawn.

    Parameters
    ----------
    n : int
        How many.
    density : {"mixture", "prior"}
        ``"mixture"``: the density that latents of the training scans have; ``"prior"``: the one the model was trained
        towards.
    conditions : tuple[tuple[str, str], ...]
        Column and value that every sample has: ``(("age", "70"), ("sex", "F"))``.
    like : tuple[str, ...]
        Columns whose values are drawn, together, from the training subjects: categories as they are, numbers near theirs,
        so that no row of a person is told.
    seed : int
        Of the density and of every draw.
    allow_copies : bool
        Write also what is taken for a copy of a training scan.
    """

    n: int = 100
    density: str = "mixture"
    conditions: tuple[tuple[str, str], ...] = ()
    like: tuple[str, ...] = ()
    seed: int = 0
    allow_copies: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.n < 1 or self.density not in DENSITIES:
            raise SettingError(
                f"At least one sample is drawn, from one of {', '.join(DENSITIES)}; got {self.n} from '{self.density}'."
            )
        names = [name for name, _ in self.conditions]
        twice = sorted({name for name in names if names.count(name) > 1 or name in self.like})
        if twice:
            raise SettingError(
                f"{twice[0]} is conditioned on twice. Give one value, or none to draw it like the cohort's."
            )


@dataclass(frozen=True, eq=False)
class Form:
    """What the images of a study look like, and what they were made from.

    Parameters
    ----------
    grid : Grid
        Of the images.
    mask : ndarray
        (x, y, z) bool: where the decoder draws; 0 elsewhere.
    target : {"gm", "t1w"}
        What the images show.
    description : str
        How the maps of the study were made, as their names say: ``"modulatedSmooth8"``.
    inputs : dict[str, str]
        Content hashes of the pools the samples depend on, the model's under ``"model"``.
    """

    grid: Grid
    mask: npt.NDArray[np.bool_]
    target: str
    description: str
    inputs: dict[str, str]

    def image(self, root: Path, subject: str) -> Path:
        """Where the image of a synthetic subject lies."""
        made = f"desc-{self.description}{MARK.capitalize()}"
        kind = f"label-GM_{made}_probseg" if self.target == "gm" else f"{made}_T1w"
        space = f"space-{SPACE}_res-{number_label(self.grid.spacing_mm)}"
        return root / subject / "anat" / f"{subject}_{space}_{kind}.nii.gz"


def form_of(pools: Pools, folder: Path) -> Form:
    """What the images of a run look like.

    Parameters
    ----------
    pools : Pools
        The run.
    folder : Path
        Of the model and its latents: the run itself, or one of its folds.
    """
    described = [re.search(r"_desc-([A-Za-z0-9]+)_", Path(path).name) for path in pools.prepared.scans["path"]]
    words = Counter(found.group(1) for found in described if found is not None)
    inputs = {
        "model": str(read_latents(folder).attrs["model_hash"]),
        "latents": hash_file(folder / "latents.nc"),
        "volumes": pools.volumes.content_hash,
        "prepared": pools.prepared.content_hash,
    }
    target = "gm" if pools.config.recipe.target == "gm" else "t1w"
    return Form(pools.volumes.grid, pools.volumes.mask, target, max(words, key=words.__getitem__, default=""), inputs)


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that samples follow from.

    Parameters
    ----------
    config : SamplesConfig
        What was asked for.
    density : Density
        Fitted on the training scans, given the columns of `pool`; also for samples of the prior, whose distance it tells.
    pool : DataFrame
        Rows of conditions, of which each sample takes one; no columns without conditions.
    key : str
        Hash of all that a sample depends on but its number.
    said : dict
        The same for a reader.
    """

    config: SamplesConfig
    density: Density
    pool: pd.DataFrame
    key: str
    said: dict[str, Any]


def plan_samples(
    space: LatentSpace, scans: pd.DataFrame, form: Form, config: SamplesConfig, *, checks_copies: bool
) -> Plan:
    """The density of the samples, their conditions, and the words about both.

    Parameters
    ----------
    space, scans, form, config
        As in :func:`nilatent.synthetic.write_synthetic`.
    checks_copies : bool
        Whether copies of training scans are looked for.
    """
    names = [name for name, _ in config.conditions]
    columns = tuple(dict.fromkeys([*names, *config.like, *space.told]))
    if config.density == "prior":
        _check_prior(space, [*names, *config.like])
    density = fit_density(space, scans=scans, columns=columns, seed=config.seed)
    pool = _pool(space, scans, config, density)
    # Refuses a condition that the training scans do not have, before anything is written.
    density.log_likelihood(np.zeros((len(pool), len(space.names))), pool)
    said = {
        "density": density.words if config.density == "mixture" else "standard normal prior of the model",
        "candidates": density.tried.round(4).to_dict("records"),
        "conditions": dict(config.conditions),
        "drawn like the training subjects": sorted(set(columns) - set(names)),
        "seed": config.seed,
        "copies": _copies_in_words(config, checks_copies),
        "distance of scans": _distances(density, space, scans, config.seed),
        "inputs": form.inputs,
    }
    depends = [config.density, config.conditions, config.like, config.seed, config.allow_copies, checks_copies]
    made = [form.inputs, form.target, form.description, form.grid.to_dict(), BLOCK, versions().get("nilatent")]
    key = hash_values([depends, made])
    return Plan(config, density, pool, key, said | {"key": key})


def _check_prior(space: LatentSpace, wanted: list[str]) -> None:
    if not space.has_prior:
        raise SettingError(
            "The model is an autoencoder, which has no prior to draw from. Take --density mixture, which is fitted to its "
            "latents."
        )
    unknown = [name for name in wanted if name not in space.told]
    if unknown:
        raise SettingError(
            f"The prior knows nothing of {unknown[0]}, and the decoder is told {', '.join(space.told) or 'nothing'}. Take "
            "--density mixture, or train with model.condition."
        )


def _pool(space: LatentSpace, scans: pd.DataFrame, config: SamplesConfig, density: Density) -> pd.DataFrame:
    """Rows of conditions: of training subjects where a column is drawn like theirs, else the one that was asked for."""
    fixed = dict(config.conditions)
    columns = [column.name for column in density.columns]
    free = [name for name in columns if name not in fixed]
    pool = pd.DataFrame(index=[0])
    if free:
        training = scans.loc[space.scans[space.training], free]
        subjects = pd.Series(space.subjects[space.training], index=training.index)
        usable = _known(density, training)
        pool = training[usable & ~subjects.where(usable).duplicated()].reset_index(drop=True)
    for name, value in fixed.items():
        number = pd.to_numeric(value, errors="coerce")
        if pd.api.types.is_bool_dtype(scans[name]) and str(value) in ("True", "False"):
            pool[name] = str(value) == "True"
            continue
        is_number = pd.api.types.is_numeric_dtype(scans[name]) and not pd.api.types.is_bool_dtype(scans[name])
        pool[name] = number if is_number and np.isfinite(number) else value
    return pool[columns]


def _known(density: Density, told: pd.DataFrame) -> "pd.Series[bool]":
    """Scans of which nothing is missing, and every category is one that the density knows."""
    known = told.notna().all(axis=1)
    for column in density.columns:
        if column.levels and column.name in told:
            known = known & told[column.name].astype(str).isin(column.levels)
    return known


def _copies_in_words(config: SamplesConfig, checked: bool) -> str:
    if not checked:
        return "not looked for"
    return "looked for, and written" if config.allow_copies else "looked for, and left out (excluded.tsv)"


def _distances(density: Density, space: LatentSpace, scans: pd.DataFrame, seed: int) -> dict[str, float]:
    """Median distance of training and of unseen scans from the centre of the density; expected is about 1."""
    found = {}
    for name, mark in (("training", space.training), ("unseen", space.unseen)):
        told = scans.reindex(space.scans[mark])[[column.name for column in density.columns]]
        known = _known(density, told).to_numpy()
        rows = np.flatnonzero(mark)[known]
        noise = np.random.default_rng(seed).standard_normal((len(rows), len(space.names)))
        places = space.coordinates[rows] + noise * np.sqrt(space.variance[rows])
        if len(rows):
            found[name] = round(float(np.median(density.distance(places, told[known]))), 3)
    return found


def drawn(space: LatentSpace, plan: Plan, start: int) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Latents (16, value), coordinates (16, coordinate) and conditions (16 rows) of the samples from number `start` on."""
    rng = np.random.default_rng([plan.config.seed, start // BLOCK])
    told = _like(plan.pool, rng)
    if plan.config.density == "prior":
        latents = prior_latents(BLOCK, space.values.shape[1], rng)
        return latents, space.frame.coordinates(latents), told
    coordinates = plan.density.sample(BLOCK, rng=rng, told=told)
    return space.frame.latents(coordinates), coordinates, told


def _like(pool: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Sixteen rows of conditions like those of the pool; the mean and the variance of a number stay what they are."""
    told = pool.iloc[rng.integers(len(pool), size=BLOCK)].reset_index(drop=True)
    for name in told.select_dtypes("number"):
        numbers = pool[name].to_numpy(float)
        noise = rng.standard_normal(BLOCK)
        # Codes have no near values; an age has, however few ages there are.
        if len(np.unique(numbers)) <= MAX_CODES and (numbers % 1 == 0).all() and name != "age":
            continue
        # The exact age, sex and group of one person together would give the person away.
        width = len(numbers) ** -0.2
        near = (told[name] - numbers.mean() + width * numbers.std() * noise) / np.sqrt(1 + width**2) + numbers.mean()
        n_decimals = 0 if (numbers % 1 == 0).all() else max(1 - int(np.floor(np.log10(numbers.std()))), 0)
        low, high = (end(10**n_decimals * of) for end, of in ((np.ceil, numbers.min()), (np.floor, numbers.max())))
        # What would lie beyond the training subjects comes back by as much, so that nothing heaps at the ends.
        back = high - (high - (low + (10**n_decimals * near - low).abs())).abs()
        told[name] = (back.round().clip(low, high) / 10**n_decimals).round(n_decimals)
    return told
