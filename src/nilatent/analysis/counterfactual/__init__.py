"""Counterfactuals: what these brains would look like ten years older, or as a control, and whether other scans agree.

The scan is encoded, moved and drawn again. What is reported is a difference of two images of the decoder, so that what the
decoder cannot draw is in neither. Regional regression fitted on the same training scans stands beside it throughout.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr
from scipy import sparse

from nilatent.analysis.contrast import NotComparableError, level_words
from nilatent.analysis.counterfactual.change import (
    Change,
    CounterfactualConfig,
    changes_of,
    held_columns,
    holds_head_size,
)
from nilatent.analysis.counterfactual.decoded import (
    MAX_CANDIDATES,
    MOST_CANDIDATES,
    decode,
    example,
    jacobian,
    readout_matrix,
    true_readouts,
)
from nilatent.analysis.counterfactual.judged import Fold, crossed, resampled
from nilatent.analysis.counterfactual.shift import shift
from nilatent.analysis.counterfactual.slopes import Agreement, People, agreement, people_of, slopes_of
from nilatent.analysis.counterfactual.table import COLUMNS, TOTAL, Answered, arrays, region_table, unit_percent
from nilatent.analysis.counterfactual.words import answer, caveats
from nilatent.analysis.latent_space import LatentSpace
from nilatent.atlas import RegionWeights
from nilatent.errors import CohortError
from nilatent.finding import Finding, not_run
from nilatent.progress import track
from nilatent.provenance import file_stems
from nilatent.volumes import Volumes

__all__ = [
    "COLUMNS",
    "NAME",
    "QUESTION",
    "TOTAL",
    "Agreement",
    "CounterfactualConfig",
    "agreement",
    "counterfactual",
    "shift",
    "slopes_of",
]

NAME = "counterfactual"
# Regional means that differ by more are not of these volumes: float16 alone makes no such difference.
OTHER_MATTER = 1e-2
QUESTION = "What would these brains look like some years older, or as a control, and do other people's brains agree?"


@dataclass(frozen=True, eq=False)
class _Study:
    """The data, aligned: rows of `scans` are those of `values` and of every space."""

    spaces: Sequence[LatentSpace]
    volumes: Volumes
    values: np.ndarray
    scans: pd.DataFrame
    weights: RegionWeights
    readout: sparse.csr_matrix


def counterfactual(
    spaces: Sequence[LatentSpace],
    volumes: Volumes,
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    weights: RegionWeights,
    config: CounterfactualConfig,
    *,
    label: str = "",
) -> Finding:
    """Expected change of every region of unseen scans, were a column different.

    Parameters
    ----------
    spaces : Sequence[LatentSpace]
        One per cross-fitted model, or the study's own alone. No scan is unseen in two.
    volumes : Volumes
        Modulated grey matter of the scans; sums are volumes.
    regions : DataFrame
        Index scan_id, one column per region in the order of `weights`: mean grey matter.
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named in `config`.
    weights : RegionWeights
        The atlas in the mask of the volumes.
    config : CounterfactualConfig
        Settings.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Returns
    -------
    Finding
        Table of regions by change, those that change most surely first; maps of the mean difference and of one scan now and
        changed. Or "not run" with the reason.

    Raises
    ------
    CohortError
        When spaces, volumes, regions and scans do not belong together.
    SettingError
        When a setting names what does not exist.
    """
    study = _aligned(spaces, volumes, regions, scans, weights, config)
    if not np.allclose(study.values[:, :-1], regions.loc[study.scans.index], atol=OTHER_MATTER):
        return not_run(
            NAME,
            QUESTION,
            "the model draws another image than the grey matter of the regions, so it has no millilitres",
        )
    answers: list[Answered] = []
    refused: dict[str, str] = {}
    try:
        changes = changes_of(study.scans, config)
    except NotComparableError as error:
        return not_run(NAME, QUESTION, str(error))
    for change in track(changes, total=len(changes), label=label) if label else changes:
        try:
            answers.append(_answered(study, change, config))
        except NotComparableError as error:
            refused[change.label] = str(error)
    if not answers:
        return not_run(NAME, QUESTION, "; ".join(f"{what}: {reason}" for what, reason in refused.items()))
    held = {one.change.label: held_columns(study.scans, one.change, config) for one in answers}
    head_size_held = all(holds_head_size(columns, config) for columns in held.values())
    region_ml = weights.n_voxels * volumes.grid.voxel_ml
    table = pd.concat([region_table(one, weights.names, region_ml=region_ml) for one in answers], ignore_index=True)
    data = xr.concat([arrays(one, study.scans, weights.names) for one in answers], dim="change", join="outer")
    stems = file_stems([one.change.label for one in answers])
    examples = [_example(study, one, config) for one in answers]
    judged = np.unique(np.concatenate([one.people.rows[one.judged] for one in answers]))
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=answer(answers, table),
        table=table,
        data=data.assign(example=("change", [str(study.scans.index[row]) for row, _ in examples])),
        settings=asdict(config) | {"asked": list(held), "held": held, "stems": list(stems.values())},
        caveats=caveats(answers, data, refused, n_spaces=len(spaces), head_size_held=head_size_held),
        n_scans=len(judged),
        n_subjects=int(study.scans["subject_id"].iloc[judged].nunique()),
        maps={
            name: image
            for stem, (_, maps) in zip(stems.values(), examples, strict=True)
            for name, image in _named(maps, stem)
        },
    )


def _aligned(
    spaces: Sequence[LatentSpace],
    volumes: Volumes,
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    weights: RegionWeights,
    config: CounterfactualConfig,
) -> _Study:
    if not spaces:
        raise CohortError("Counterfactuals need a latent space. Train a model first.")
    index = spaces[0].scans
    for what, other in (("cohort", scans.index), ("table of regions", regions.index)):
        absent = index.difference(other)
        if len(absent):
            raise CohortError(f"Scan {absent[0]} of the latent space is not in the {what}. Take those of the same run.")
    if list(regions.columns) != list(weights.names) or weights.matrix.shape[1] != int(volumes.mask.sum()):
        raise CohortError(
            "Regions, atlas and mask do not belong together. Measure the regions with this atlas and mask."
        )
    if any(not one.scans.equals(index) for one in spaces):
        raise CohortError(
            "The latent spaces hold different scans, or another order. Encode one cohort with all models."
        )
    twice = np.sum([one.unseen for one in spaces], axis=0) > 1
    if twice.any():
        raise CohortError(
            f"Scan {index[twice][0]} is unseen in two latent spaces. Give one space per fold of one split."
        )
    chosen = scans.loc[index].copy()
    # Codes of groups and sites are names, whatever they look like.
    for column in (config.group, config.site):
        if column in chosen:
            chosen[column] = level_words(chosen[column])
    readout = readout_matrix(weights, volumes.grid.voxel_ml)
    values = true_readouts(volumes, volumes.rows(list(index)), readout)
    return _Study(spaces, volumes, values, chosen, weights, readout)


def _answered(study: _Study, change: Change, config: CounterfactualConfig) -> Answered:
    scans, held = study.scans, held_columns(study.scans, change, config)
    site = "" if change.column == config.site else config.site
    people = people_of(scans, change.column, others=held, site=site, levels=change.levels)
    folds = list(_folds(study, people, change, held, site))
    if not folds:
        raise NotComparableError("no model has a scan that it has not seen and that can be changed")
    told = change.column in study.spaces[0].told
    values = study.values[people.rows]
    # A region without any grey matter ranks with those that do not change.
    unit = np.nan_to_num(unit_percent(values[np.concatenate([fold.judged for fold in folds]), :-1]))
    beyond = [_beyond(people, fold, change) for fold in folds]
    draws = resampled(folds, people, values, amount=change.amount, n_bootstrap=config.n_bootstrap, seed=config.seed)
    model, regression = (
        crossed(
            folds,
            people,
            values[:, :-1],
            amount=change.amount,
            unit=unit,
            kind=kind,
            n_permutations=config.n_permutations,
            seed=config.seed,
        )
        for kind in ("told" if told else "model", "regression")
    )
    return Answered(change, folds, people, values, draws, model, regression, np.concatenate(beyond), told)


def _folds(study: _Study, people: People, change: Change, held: Sequence[str], site: str) -> Iterator[Fold]:
    can_change = np.ones(len(people.x), dtype=bool) if change.levels is None else people.x == 0
    for number, space in enumerate(study.spaces):
        unseen = space.unseen[people.rows]
        judged = np.flatnonzero(unseen & can_change)
        if len(judged) == 0:
            continue
        rows, others = people.rows[judged], people.rows[unseen & ~can_change]
        sought = np.concatenate([rows, others])[: max(MAX_CANDIDATES, len(rows))]
        if len(sought) > MOST_CANDIDATES:
            sought = sought[np.linspace(0, len(sought) - 1, MOST_CANDIDATES).round().astype(int)]
        images_of = partial(_scans_of, study.volumes, space)
        decoded = decode(space, study.scans, rows, change, study.readout, images_of, sought, others=held, site=site)
        told = change.column in space.told
        steep = (
            np.zeros((study.readout.shape[0], len(space.names)))
            if told
            else jacobian(space, study.scans, rows, study.readout)
        )
        yield Fold(number, space.training[people.rows], unseen, judged, decoded, space.coordinates[people.rows], steep)


def _scans_of(volumes: Volumes, space: LatentSpace, rows: np.ndarray) -> np.ndarray:
    """(row, voxel) true images."""
    return volumes.masked(volumes.rows(list(space.scans[rows])))


def _beyond(people: People, fold: Fold, change: Change) -> np.ndarray:
    """(judged scan,) bool: the new value lies beyond those of the training scans; a category never does."""
    if change.levels is not None:
        return np.zeros(len(fold.judged), dtype=bool)
    known, new = people.x[fold.training], people.x[fold.judged] + change.amount
    return np.asarray((new < known.min()) | (new > known.max()))


def _example(study: _Study, found: Answered, config: CounterfactualConfig) -> tuple[int, dict[str, nib.Nifti1Image]]:
    """The scan of median effect on the total, of those not extrapolated where there are any, and the maps of a change."""
    total = found.effect[:, -1]
    allowed = np.flatnonzero(~found.beyond) if not found.beyond.all() else np.arange(len(total))
    place = allowed[np.argsort(total[allowed], kind="stable")[(len(allowed) - 1) // 2]]
    row = int(found.people.rows[found.judged[place]])
    space = study.spaces[next(fold.number for fold in found.folds if row in found.people.rows[fold.judged])]
    held = held_columns(study.scans, found.change, config)
    site = "" if found.change.column == config.site else config.site
    now, changed = example(space, study.scans, row, found.change, others=held, site=site)
    sizes = [len(fold.judged) for fold in found.folds]
    mean = np.average([fold.decoded.difference for fold in found.folds], axis=0, weights=sizes)
    return row, {
        name: _image(study.volumes, values)
        for name, values in (("difference", mean), ("now", now), ("changed", changed))
    }


def _image(volumes: Volumes, inside: np.ndarray) -> nib.Nifti1Image:
    values = np.zeros(volumes.grid.shape, dtype=np.float32)
    values[volumes.mask] = inside
    return volumes.grid.to_image(values)


def _named(maps: dict[str, nib.Nifti1Image], stem: str) -> Iterator[tuple[str, nib.Nifti1Image]]:
    for name, image in maps.items():
        yield f"{name}_{stem}", image
