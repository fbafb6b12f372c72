"""Change over years: how regions, decoded regions, directions and latents move, and whether groups move differently.

A mixed model of every measure gives the rate of change of each group; decoders draw the course of an average subject; and a
later scan is foreseen from the first one, beside what needs no decoder. The array cores are
:mod:`nilatent.analysis.mixed` and :mod:`nilatent.analysis.longitudinal.change`.

References
----------
Laird & Ware 1982, doi:10.2307/2529876. Bernal-Rusiel et al. 2013, doi:10.1016/j.neuroimage.2012.10.065.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.analysis.contrast import MIN_PER_GROUP, NotComparableError
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.longitudinal.change import change
from nilatent.analysis.longitudinal.data import arrays
from nilatent.analysis.longitudinal.directions import direction_scores
from nilatent.analysis.longitudinal.drawn import Courses, courses, decoded_regions, place
from nilatent.analysis.longitudinal.forecast import Forecasts, Masked, forecasts
from nilatent.analysis.longitudinal.scans import visits_of
from nilatent.analysis.longitudinal.table import (
    COLUMNS,
    DECODED,
    DIRECTIONS,
    LATENTS,
    REGIONS,
    Block,
    DrawnRates,
    change_rows,
    forecast_rows,
    joined,
    repeat_rows,
)
from nilatent.analysis.longitudinal.times import with_clock
from nilatent.analysis.longitudinal.visits import LongitudinalConfig, Visits
from nilatent.analysis.longitudinal.words import answer, caveats
from nilatent.atlas import RegionWeights
from nilatent.errors import CohortError, LatentsError
from nilatent.finding import Finding, not_run
from nilatent.provenance import file_stems
from nilatent.volumes import Grid

__all__ = ["COLUMNS", "NAME", "QUESTION", "LongitudinalConfig", "Masked", "change_over_time", "longitudinal"]

NAME = "longitudinal"
QUESTION = "How do brains change over the years, do groups change differently, and can a later scan be foreseen?"


@dataclass(frozen=True, eq=False)
class _Decoded:
    """What decoders say, where they say anything."""

    blocks: list[Block]
    courses: Courses | None
    forecasts: Forecasts | None
    refused: dict[str, str]


def change_over_time(
    values: pd.DataFrame,
    scans: pd.DataFrame,
    config: LongitudinalConfig,
    *,
    kind: str = REGIONS,
    percent: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Rates of change of any table of measures, differences between groups first.

    Parameters
    ----------
    values : DataFrame
        Index scan_id, one column per measure; scans with a missing value are left out.
    scans : DataFrame
        Index scan_id, the same scans in any order; ``subject_id``, ``session_id`` and the columns named in `config`.
    config : LongitudinalConfig
        Settings.
    kind : str
        What the measures are, in words.
    percent : bool
        Whether 0 means none, so that a change is a share of the mean at the first visit.
    seed : int
        Of the permutations.

    Returns
    -------
    DataFrame
        The columns of ``COLUMNS``: value with its 95 % interval, per year; p of a difference by the likelihood ratio and by
        permutation, family-wise over the measures and as false discovery rate; p of a rate by Student's t; the repeatability
        of every measure.

    Raises
    ------
    NotComparableError
        When too few subjects were seen at two times.
    CohortError
        When the tables hold different scans, or visits contradict one another.
    SettingError
        When a setting names what does not exist.
    """
    table, config = _joined(values, scans), with_clock(scans, config)
    visits = visits_of(scans, config, complete=np.isfinite(table).all(axis=1))
    block = _block(
        kind, tuple(map(str, values.columns)), table[visits.rows], visits, config, percent=percent, seed=seed
    )
    return joined([change_rows(block), repeat_rows(block, config, seed=seed)])


def longitudinal(
    spaces: Sequence[LatentSpace],
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    weights: RegionWeights,
    grid: Grid,
    mask: npt.NDArray[np.bool_],
    config: LongitudinalConfig,
    *,
    study: LatentSpace | None = None,
    masked: Masked | None = None,
    within_subject: bool = False,
    seed: int = 0,
    label: str = "",
) -> Finding:
    """Change over time of regions and latents, drawn and foreseen.

    Parameters
    ----------
    spaces : Sequence of LatentSpace
        One per cross-fitted model, or the study's own alone; of each, scans it has not seen are judged. None: regions alone.
    regions : DataFrame
        Index scan_id, one column per region in the order of `weights`: the mean of what decoders draw, as measured.
    scans : DataFrame
        Index scan_id, the same scans; ``subject_id``, ``session_id`` and the columns named in `config`.
    weights : RegionWeights
        The atlas in the mask in which decoders draw.
    grid, mask : Grid, ndarray
        Grid and (x, y, z) mask of the weights.
    config : LongitudinalConfig
        Settings.
    study : LatentSpace, optional
        The study's own space, whose single latents are described although it was trained on most of the scans.
    masked : Callable, optional
        Scan identifiers to measured images (scan, voxel) inside the mask; left out, forecasts are judged by regions only.
    within_subject : bool
        Whether scans were prepared through templates of their subjects: what the reader is warned of.
    seed : int
        Of permutations and resampling.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Returns
    -------
    Finding
        Table of differences, rates, repeatability and forecasts; courses for the figure; maps of the change per year. Or
        "not run" with the reason.

    Raises
    ------
    CohortError
        When regions and scans do not belong together.
    SettingError
        When a setting names what does not exist.
    """
    if list(regions.columns) != list(weights.names):
        raise CohortError("The columns of the regions are not the regions of the atlas. Compute the regions again.")
    x = _joined(regions, scans)
    try:
        config = with_clock(scans, config)
        visits = visits_of(scans, config, complete=np.isfinite(x).all(axis=1))
        measured = _block(
            REGIONS, tuple(weights.names), x[visits.rows], visits, config, percent=True, seed=seed, label=label
        )
    except (NotComparableError, CohortError) as error:
        return not_run(NAME, QUESTION, str(error))
    decoded = _decoded(spaces, study, x, scans, visits, weights, config, masked=masked, seed=seed, label=label)
    blocks = [measured, *decoded.blocks]
    drawn = None if decoded.courses is None else DrawnRates.of(decoded.courses, weights, measured)
    tables = [change_rows(block, drawn if block.kind == REGIONS else None) for block in blocks]
    tables += [repeat_rows(block, config, seed=seed) for block in blocks]
    tables += [forecast_rows(decoded.forecasts, seed=seed)] if decoded.forecasts is not None else []
    table = joined(tables)
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=answer(table, visits, config),
        table=table,
        data=arrays(blocks, table, decoded.courses, drawn, config),
        settings=asdict(config)
        | {
            "groups": list(visits.groups),
            "contrasts": [":".join(pair) for pair in visits.contrasts],
            "n_models": len(spaces),
            "drawn_seen": decoded.courses is not None and decoded.courses.seen,
            "left_out": visits.left_out,
        },
        caveats=caveats(table, blocks, scans, decoded.courses, decoded.refused, config, within_subject=within_subject),
        n_scans=len(visits.rows),
        n_subjects=int(visits.first.sum()),
        maps=_maps(decoded.courses, visits, grid, mask),
    )


def _joined(values: pd.DataFrame, scans: pd.DataFrame) -> np.ndarray:
    """(scan, measure) in the order of the scans."""
    twice = [*values.index[values.index.duplicated()], *scans.index[scans.index.duplicated()]]
    apart = [*twice, *scans.index.symmetric_difference(values.index)]
    if apart:
        raise CohortError(
            f"The measures and the cohort do not hold the same scans once each: see {apart[0]} ({len(apart)} in all). Measure "
            "the same cohort."
        )
    return values.loc[scans.index].to_numpy(dtype=np.float64)


def _block(
    kind: str,
    names: tuple[str, ...],
    values: np.ndarray,
    visits: Visits,
    config: LongitudinalConfig,
    *,
    percent: bool,
    seed: int,
    label: str = "",
) -> Block:
    found = change(
        values,
        visits,
        n_permutations=config.n_permutations,
        seed=seed,
        label=f"{label}: {kind}" if label else "",
    )
    return Block(kind, names, values, visits, found, percent)


def _decoded(
    spaces: Sequence[LatentSpace],
    study: LatentSpace | None,
    x: np.ndarray,
    scans: pd.DataFrame,
    visits: Visits,
    weights: RegionWeights,
    config: LongitudinalConfig,
    *,
    masked: Masked | None,
    seed: int,
    label: str,
) -> _Decoded:
    """Everything of the latent spaces; what the cohort is too small for is refused by itself."""
    blocks: list[Block] = []
    refused: dict[str, str] = {}
    if not spaces:
        return _Decoded(blocks, None, None, refused)
    _check_spaces(spaces)
    tables = {DECODED: (_reconstructed(spaces, scans, visits, weights), True)}
    scores, of_directions = direction_scores(spaces, scans, visits, config)
    refused |= {f"direction {name}": reason for name, reason in of_directions.items()}
    if len(scores.columns):
        tables[DIRECTIONS] = (scores, False)
    if study is not None:
        tables[LATENTS] = (pd.DataFrame(study.coordinates, study.scans, list(study.names)), False)
    for kind, (values, percent) in tables.items():
        held = values.reindex(scans.index[visits.rows]).to_numpy(dtype=np.float64)
        known = np.isfinite(held).all(axis=1)
        try:
            part = visits.take(known, least=MIN_PER_GROUP)
            kept = known & np.isin(visits.group, part.groups)
            names = tuple(map(str, values.columns))
            blocks.append(_block(kind, names, held[kept], part, config, percent=percent, seed=seed, label=label))
        except NotComparableError as error:
            refused[kind] = str(error)
    course, foreseen = None, None
    try:
        course = courses(spaces, scans, visits, config, weights=weights, seed=seed)
    except NotComparableError as error:
        refused["drawn courses"] = str(error)
    try:
        foreseen = forecasts(spaces, x, scans, visits, weights, config, masked=masked)
    except NotComparableError as error:
        refused["forecasts"] = str(error)
    return _Decoded(blocks, course, foreseen, refused)


def _check_spaces(spaces: Sequence[LatentSpace]) -> None:
    judged = pd.Index(np.concatenate([space.scans[space.unseen] for space in spaces]))
    twice = judged[judged.duplicated()]
    if len(twice):
        raise LatentsError(
            f"Scan {twice[0]} is judged by two of the models ({len(twice)} such). Give every scan to the one model that has not "
            "seen its subject."
        )


def _reconstructed(
    spaces: Sequence[LatentSpace], scans: pd.DataFrame, visits: Visits, weights: RegionWeights
) -> pd.DataFrame:
    """(scan, region) of the visits that a model has not seen, by that model."""
    parts = []
    for space in spaces:
        rows = place(space, scans, visits)
        rows = rows[(rows >= 0) & space.unseen[rows]]
        values = decoded_regions(space, scans, rows, weights)
        parts.append(pd.DataFrame(values, space.scans[rows], list(weights.names)))
    return pd.concat(parts)


def _maps(found: Courses | None, visits: Visits, grid: Grid, mask: npt.NDArray[np.bool_]) -> dict[str, nib.Nifti1Image]:
    """Drawn change per year of every group, and how far the groups of every contrast differ."""
    if found is None:
        return {}
    rates = {f"change_{group}": rate for group, rate in zip(visits.groups, found.rate, strict=True)}
    between = {
        f"difference_{case}_{reference}": rates[f"change_{case}"] - rates[f"change_{reference}"]
        for case, reference in visits.contrasts
    }
    # The first of these also under a name that is the same in every study.
    first = {"change": next(iter(rates.values()))} | ({"difference": next(iter(between.values()))} if between else {})
    stems = file_stems([*rates, *between], taken=first)
    images = {}
    for name, rate in (first | {stems[name]: rate for name, rate in (rates | between).items()}).items():
        if np.isfinite(rate).all():
            values = np.zeros(mask.shape, dtype=np.float32)
            values[mask] = rate
            images[name] = grid.to_image(values)
    return images
