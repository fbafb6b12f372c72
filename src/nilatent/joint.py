"""The joint models of a run folder, asked about scans they have not seen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import xarray as xr

from nilatent.analysis.multimodal import (
    JOINT,
    NAME,
    QUESTION,
    RIVAL,
    SHARED,
    Fold,
    Told,
    multimodal,
    present,
    simply_told,
    source_sets,
)
from nilatent.analysis.multimodal.table import ITSELF
from nilatent.analysis.reconstruction.measures import planes
from nilatent.errors import LeakageError
from nilatent.finding import Finding, not_run
from nilatent.modalities import JOINT as PLACE
from nilatent.modalities import open_modalities
from nilatent.multimodal import BATCH_SIZE, predict_modality
from nilatent.pools import Pools
from nilatent.training.multimodal import TrainedMultimodal, load_multimodal
from nilatent.training.multimodal.data import Modality, join
from nilatent.training.multimodal.folder import subjects_seen
from nilatent.training.validation import exact
from nilatent.volumes import Volumes

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.bool_]
BLOCK_BYTES = 32 * 2**20
# Variance of an axis below this share of the largest is rounding.
SMALLEST_AXIS = 1e-10
# Examples: scans that are told well, middling and badly, by quantiles of the unexplained share.
EXAMPLES = {"told well": 0.1, "middling": 0.5, "told badly": 0.9}


@dataclass(frozen=True, eq=False)
class Model:
    """A joint model on disk, and its split."""

    folder: Path
    parts: pd.DataFrame


def joint_found(pools: Pools) -> Finding:
    """What several kinds of measurement share, by the joint models of a run folder.

    Parameters
    ----------
    pools : Pools
        Of a run folder with ``folds/<k>/multimodal``, or without folds ``multimodal``.

    Returns
    -------
    Finding
        Named ``multimodal``; slices of three examples where volumes are told from something.

    Raises
    ------
    LeakageError
        When a model has seen a subject of its test part.
    """
    modalities = open_modalities(pools.out, pools.config, pools.prepared)
    if not modalities:
        reason = (
            "the study names one kind of image and nothing beside it; name images as study.modalities or columns as "
            "study.tables to ask this"
        )
        return not_run(NAME, QUESTION, reason)
    places = [pools.out / "folds" / str(number) / PLACE for number in range(pools.config.folds)] or [pools.out / PLACE]
    absent = [place for place in places if not (place / "config.toml").is_file()]
    if absent:
        return not_run(NAME, QUESTION, f"{absent[0].relative_to(pools.out)} holds no joint model; run the study again")
    # In the order of the cohort, whatever that of the split.
    index = pools.prepared.scans.index.intersection(pools.parts.index, sort=False)
    splits = [pools.fold_parts(number) for number in range(pools.config.folds)] or [pools.parts]
    models = [Model(place, parts.loc[index]) for place, parts in zip(places, splits, strict=True)]
    return ask(modalities, models, index, seed=pools.config.seed, smoothing_mm=pools.fwhm_mm, label=NAME)


def ask(
    modalities: Mapping[str, Modality],
    models: Sequence[Model],
    index: "pd.Index[str]",
    *,
    seed: int,
    smoothing_mm: float = 0.0,
    label: str = "",
) -> Finding:
    """Ask joint models about their test parts, and regressions beside them.

    Parameters
    ----------
    modalities : Mapping[str, Volumes or DataFrame]
        In the order of the models.
    models : Sequence[Model]
        Every one with its split over `index`.
    index : Index
        Scan ids.
    seed : int
        Of the regressions and of all draws.
    smoothing_mm : float
        For the caveats.
    label : str
        What to call this work when its progress is shown; empty shows none.
    """
    folds, told = [], _Answers(index, {})
    typed: dict[str, Modality] = {}
    for one in models:
        model = load_multimodal(one.folder)
        typed = {name: _typed(model, name, modality) for name, modality in modalities.items()}
        n_shared = model.module.n_shared
        sizes = {name: n_shared + model.module.part(name).n_private for name in model.grids}
        folds.append(Fold(one.parts, model.result, sizes))
        _check_unseen(model, typed, one)
        _tell(model, typed, one.parts, told)
    kinds = {
        name: coordinates(one, index) if isinstance(one, Volumes) else one.reindex(index) for name, one in typed.items()
    }
    found = multimodal(kinds, told.all(), folds, seed=seed, smoothing_mm=smoothing_mm, label=label)
    return found if found.not_run else _examples(found, kinds, typed, models, folds, seed=seed)


def _typed(model: TrainedMultimodal, name: str, modality: Modality) -> Modality:
    """Numbers as numbers, as the model takes them, whatever the type of their column."""
    if isinstance(modality, Volumes):
        return modality
    table = modality.rename(columns=str)
    for column in model.columns[name]:
        values = table[column.name]
        table[column.name] = values.where(values.isna(), values.astype(str)) if column.levels else pd.to_numeric(values)
    return table


def _check_unseen(model: TrainedMultimodal, modalities: Mapping[str, Modality], one: Model) -> None:
    test = one.parts[one.parts["part"] == "test"]
    volumes = {name: modality for name, modality in modalities.items() if isinstance(modality, Volumes)}
    seen = subjects_seen(model.seen, test["subject_id"], volumes)
    if seen.any():
        raise LeakageError(
            f"The joint model in {one.folder} has seen the subject of {test.index[seen][0]}, which is in its test part. Delete "
            "the folder and run the study again."
        )


@dataclass(frozen=True, eq=False)
class _Answers:
    """What models said, by target, sources and way, gathered over folds."""

    index: "pd.Index[str]"
    said: dict[tuple[str, tuple[str, ...], str], Any]

    def add(self, key: tuple[str, tuple[str, ...], str], scans: Sequence[str], values: Array | pd.DataFrame) -> None:
        """Of some scans: squared errors, or a table with a row for each."""
        if isinstance(values, pd.DataFrame):
            self.said.setdefault(key, []).append(values.set_axis(list(scans), axis=0))
        else:
            into = self.said.setdefault(key, np.full(len(self.index), np.nan))
            into[self.index.get_indexer(pd.Index(scans))] = values

    def all(self) -> list[Told]:
        """With a row per scan."""
        return [
            Told(*key, pd.concat(said).reindex(self.index) if isinstance(said, list) else said)
            for key, said in self.said.items()
        ]


def _tell(model: TrainedMultimodal, modalities: Mapping[str, Modality], parts: pd.DataFrame, told: _Answers) -> None:
    test = parts.index[parts["part"] == "test"]
    has = {name: _scans_of(one) for name, one in modalities.items()}
    for target, one in modalities.items():
        own = test[test.isin(has[target])]
        for sources in source_sets(list(modalities), target):
            scans = [scan for scan in own if any(scan in has[name] for name in sources)]
            if not scans:
                continue
            for ids, drawn in predict_modality(model, modalities, scans, target=target, use=sources):
                values = _squares(one, ids, drawn) if isinstance(one, Volumes) else pd.DataFrame(drawn)
                told.add((target, sources, JOINT), ids, values)
        if isinstance(one, Volumes):
            for ids, whole, shared in _from_itself(model, target, one, list(own)):
                told.add((target, (target,), JOINT), ids, _squares(one, ids, whole))
                told.add((target, (target,), SHARED), ids, _squares(one, ids, shared))


def _scans_of(modality: Modality) -> "set[str]":
    if isinstance(modality, Volumes):
        return set(modality.scans.index)
    return set(modality.index[modality.notna().any(axis=1)])


def _squares(volumes: Volumes, ids: Sequence[str], drawn: npt.NDArray[np.float32] | pd.DataFrame) -> Array:
    """(scan,) squared errors, summed over the voxels."""
    missed = volumes.masked(volumes.rows(ids)).astype(np.float64) - np.asarray(drawn)
    return np.asarray(np.square(missed).sum(axis=1))


def _from_itself(
    model: TrainedMultimodal, name: str, volumes: Volumes, scans: Sequence[str]
) -> Iterator[tuple[list[str], npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Volumes (scan, voxel) as the model draws them from themselves: with their private latents, and without."""
    module, inside = model.module, torch.from_numpy(np.flatnonzero(volumes.mask))
    joined = join({name: volumes}, scans, {})
    for first in range(0, len(scans), BATCH_SIZE):
        rows = np.arange(first, min(first + BATCH_SIZE, len(scans)))
        given, _ = joined.batch(rows, torch.device("cpu"))
        alone = torch.zeros(len(rows), len(module.names), dtype=torch.bool)
        alone[:, module.names.index(name)] = True
        x = {
            other: given[name]
            if other == name
            else torch.zeros(len(rows), 1, *model.grids[other].shape)
            if other in model.grids
            else torch.zeros(len(rows), 2, len(module.part(other).get_buffer("mean")))
            for other in module.names
        }
        with exact():
            z = module.encode(x, alone).moments().mean
            own = module.private(name, given[name], z).mean
            whole, shared = (module.draw(name, z, w).flatten(1)[:, inside].numpy() for w in (own, None))
        yield [str(scan) for scan in joined.scans[rows]], whole, shared


def coordinates(volumes: Volumes, index: "pd.Index[str]") -> Array:
    """Coordinates of scans, as far apart as their voxels, without all voxels ever being in memory.

    Parameters
    ----------
    volumes : Volumes
        Of some of the scans.
    index : Index
        All scan ids.

    Returns
    -------
    ndarray
        (scan, axis), NaN where there is no volume; columns are orthogonal, largest first. It takes eight bytes for every
        pair of scans. They are a rotation about the mean of all scans: a regression on them learns of its training scans
        what it would learn of their voxels.
    """
    places = volumes.scans.index.get_indexer(index)
    rows = places[places >= 0]
    gram = np.zeros((len(rows), len(rows)))
    for x in _blocks(volumes, rows):
        gram += x @ x.T
    size, axes = np.linalg.eigh(gram)
    kept = size > SMALLEST_AXIS * max(size[-1], np.finfo(float).tiny)
    made = np.full((len(index), max(int(kept.sum()), 1)), np.nan)
    made[places >= 0] = 0.0
    if kept.any():
        made[places >= 0] = (axes[:, kept] * np.sqrt(size[kept]))[:, ::-1]
    return made


def _blocks(volumes: Volumes, rows: npt.NDArray[np.intp]) -> Iterator[Array]:
    """(scan, voxel) values about their mean, a block of voxels at a time."""
    size = max(BLOCK_BYTES // (8 * max(len(rows), 1)), 1)
    for first in range(0, int(volumes.mask.sum()), size):
        x = volumes.block(rows, first, first + size).astype(np.float64)
        yield x - x.mean(axis=0)


def drawn_of(points: Array, made: Array, volumes: Volumes, index: "pd.Index[str]") -> npt.NDArray[np.float32]:
    """Volumes (point, voxel) at points (point, axis) of the space of :func:`coordinates`, `made` (scan, axis)."""
    there = present(made)
    own = made[there]
    weights = points / np.maximum(np.square(own).sum(axis=0), np.finfo(float).tiny) @ own.T
    rows = volumes.rows(list(index[there]))
    usual, size = [], max(BLOCK_BYTES // (8 * len(rows)), 1)
    for first in range(0, int(volumes.mask.sum()), size):
        x = volumes.block(rows, first, first + size).astype(np.float64)
        usual.append(x.mean(axis=0) + weights @ (x - x.mean(axis=0)))
    return np.asarray(np.concatenate(usual, axis=1), dtype=np.float32)


def _examples(
    found: Finding,
    kinds: Mapping[str, Array | pd.DataFrame],
    modalities: Mapping[str, Modality],
    models: Sequence[Model],
    folds: Sequence[Fold],
    *,
    seed: int,
) -> Finding:
    """The finding with slices of scans of the first volumes that are told from others: scan, predictions and their errors."""
    packed = {name: one for name, one in modalities.items() if isinstance(one, Volumes)}
    lines = found.table[
        (found.table["sources"] != ITSELF) & (found.table["note"] == "") & (found.table["way"] == JOINT)
    ]
    lines = lines[lines["target"].isin(list(packed))]
    if lines.empty:
        return found
    target, sources = str(lines.iloc[0]["target"]), tuple(str(lines.iloc[0]["sources"]).split(" + "))
    volumes, index = packed[target], folds[0].parts.index
    shares, chosen = _cases(found, lines.iloc[0])
    drawn: dict[str, list[npt.NDArray[np.float32]]] = {"truth": [], "joint": [], "simple": []}
    for row in chosen.values():
        number = next(place for place, fold in enumerate(folds) if fold.rows("test")[row])
        points = simply_told(kinds, target, sources, folds[number], np.arange(len(index)) == row, seed=seed)
        model, scan = load_multimodal(models[number].folder), [str(index[row])]
        told = next(predict_modality(model, modalities, scan, target=target, use=sources))[1]
        drawn["truth"].append(volumes.masked(volumes.rows(scan))[0])
        drawn["joint"].append(np.asarray(told)[0])
        drawn["simple"].append(drawn_of(points, np.asarray(kinds[target]), volumes, index)[0])
    images = {name: np.stack(each) for name, each in drawn.items()}
    images |= {f"{name}_error": images[name] - images["truth"] for name in ("joint", "simple")}
    rows = list(chosen.values())
    cases = {"case": list(chosen), "case_scan": ("case", index[rows].to_numpy().astype(str))}
    measured = {f"case_{name}": ("case", shares[place, rows]) for place, name in enumerate(("joint", "simple"))}
    slices = xr.Dataset(_slices(images, volumes) | measured, coords=cases)
    examples = {"target": target, "sources": " + ".join(sources)}
    return replace(found, data=found.data.merge(slices), settings=found.settings | {"examples": examples})


def _cases(found: Finding, line: pd.Series) -> tuple[Array, dict[str, int]]:
    """Unexplained shares (way, scan) by the joint model and by the best simple regression, and which scan stands for what."""
    table = found.table
    same = (table[["target", "sources", "scans"]] == line[["target", "sources", "scans"]]).all(axis=1)
    rows = [int(table.index[same & (table["way"] == way)][0]) for way in (JOINT, RIVAL)]
    shares = found.data["error"].values[rows] / found.data["error_of_mean"].values[rows]
    there = np.flatnonzero(np.isfinite(shares[0]))
    order = there[np.argsort(shares[0][there])]
    return shares, {case: int(order[round(quantile * (len(order) - 1))]) for case, quantile in EXAMPLES.items()}


def _slices(
    images: Mapping[str, npt.NDArray[np.float32]], volumes: Volumes
) -> dict[str, tuple[tuple[str, ...], npt.NDArray[np.float32]]]:
    """An axial and a coronal slice of images (case, voxel), by kind and plane; outside the mask errors are no number."""
    _, coronal, axial = planes(volumes.mask)
    cut: dict[str, tuple[tuple[str, ...], npt.NDArray[np.float32]]] = {}
    for name, values in images.items():
        outside = np.nan if name.endswith("error") else 0.0
        painted = np.full((len(values), *volumes.grid.shape), outside, dtype=np.float32)
        painted[:, volumes.mask] = values
        cut[f"{name}_axial"] = (("case", "x", "y"), painted[:, :, :, axial])
        cut[f"{name}_coronal"] = (("case", "x", "z"), painted[:, :, coronal])
    return cut
