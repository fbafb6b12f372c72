"""Blur: how much fine detail of unseen scans the decoder draws, whether it is the right detail, and what takes the rest.

Energy alone rewards detail that is not there, as an adversarial term may draw it; so it always stands beside coherence, the
correlation with the detail of the scan itself, and the share of the energy that is explained.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nilatent.analysis.blur.bands import Bands
from nilatent.analysis.blur.drawing import PAIRED, SCAN, Sums, pictures, sums_of, yardsticks
from nilatent.analysis.blur.words import answer, caveats
from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import CohortError
from nilatent.finding import Finding, not_run
from nilatent.progress import track
from nilatent.volumes import Volumes

NAME = "blur"
QUESTION = "Why are reconstructions and drawn brains smoother than scans, and is the detail in them the right one?"
MIN_SUBJECTS, MIN_TRAINING = 5, 12
N_BOOTSTRAP = 2000
MAX_JUDGED = 300
"""Scans judged in one space; of more, so many by lot."""
AXIAL_MM = 0.0


def blur(
    spaces: Sequence[LatentSpace],
    volumes: Volumes,
    scans: pd.DataFrame,
    *,
    fwhm_mm: float,
    seed: int,
    label: str = "",
) -> Finding:
    """Energy and coherence of detail, band by band, of reconstructions, samples and linear yardsticks on unseen scans.

    Parameters
    ----------
    spaces : Sequence of LatentSpace
        One per cross-fitted model, or the study's own. The first scan of every subject is judged in the space whose encoder
        has not seen the subject; energies are added up over spaces before any ratio is taken, so no space counts more than
        its scans.
    volumes : Volumes
        The scans, of which those of the training part fit the yardsticks.
    scans : DataFrame
        Index scan_id: the columns that decoders are told.
    fwhm_mm : float
        Smoothing of the preparation.
    seed : int
        Of the samples and of the bootstrap.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Returns
    -------
    Finding
        Table by approach and band: share of the energy of whole scans that is kept (``energy_kept``), the same of what a
        scan has beyond the mean of the training scans (``detail_kept``), correlation with the scan's own detail
        (``coherence``) and share of its energy that is explained, with 95 % intervals over subjects; ``scan_share`` says how
        much of what scans have beyond the mean lies in the band. Data: the same as arrays, what the preparation lets
        through, and slices of one scan. Or "not run" with the reason.

    Raises
    ------
    CohortError
        When a subject is unseen in two spaces, or there is no space.
    """
    rows = _judged(spaces, seed=seed)
    n_judged, n_train = sum(map(len, rows)), min(len(set(space.subjects[space.training])) for space in spaces)
    if n_judged < MIN_SUBJECTS or n_train < MIN_TRAINING:
        reason = (
            f"{n_judged} unseen and {n_train} training subjects; at least {MIN_SUBJECTS} and {MIN_TRAINING} are "
            "needed. With --folds 5 every scan is described by a model that has not seen it"
        )
        return not_run(NAME, QUESTION, reason)
    bands = Bands(volumes.mask, volumes.grid.spacing_mm)
    done = track(spaces, total=len(spaces), label=label) if label else spaces
    numbered = zip(done, rows, strict=True)
    found = [sums_of(space, volumes, scans, bands, one, seed=seed) for space, one in numbered]
    values = np.concatenate([one.values for one in found], axis=2)
    if not (values[0].sum(axis=1) > 0).all() or not (values[1].sum(axis=1) > 0).all():
        return not_run(NAME, QUESTION, "the unseen scans have no detail beyond the mean image")
    table = _table(values, found[0].approaches, bands, seed=seed)
    data = _arrays(table, found[0].approaches, bands, fwhm_mm)
    data = data.merge(_example(spaces, volumes, scans, values, found, seed=seed))
    settings = {
        "fwhm_mm": fwhm_mm,
        "spacing_mm": volumes.grid.spacing_mm,
        "seed": seed,
        "n_values": int(spaces[0].values.shape[1]),
        "n_train": min(int(space.training.sum()) for space in spaces),
        "n_models": len(spaces),
        "n_bootstrap": N_BOOTSTRAP,
    }
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=answer(table, data, settings),
        table=table,
        data=data,
        settings=settings,
        caveats=caveats(settings),
        n_scans=n_judged,
        n_subjects=n_judged,
    )


def _judged(spaces: Sequence[LatentSpace], *, seed: int) -> list[npt.NDArray[np.intp]]:
    """Of every space the rows of the first unseen scan of each subject."""
    if not spaces:
        raise CohortError("No latent space was given. Give those of the cross-fitted models, or the study's own.")
    found = []
    for space in spaces:
        unseen = np.flatnonzero(space.unseen)
        rows = np.sort(unseen[np.unique(space.subjects[unseen], return_index=True)[1]])
        if len(rows) > MAX_JUDGED:
            rows = np.sort(np.random.default_rng(seed).choice(rows, size=MAX_JUDGED, replace=False))
        found.append(rows)
    subjects = np.concatenate([space.subjects[rows] for space, rows in zip(spaces, found, strict=True)])
    if len(set(subjects)) < len(subjects):
        raise CohortError("A subject is unseen in two latent spaces. Give the spaces of one cross-fitting.")
    return found


def _ratios(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(measure, ...) energy kept, detail kept, coherence and share explained, of sums (sum, ...)."""
    scan_whole, scan_detail, drawn_whole, drawn_detail, product = sums
    length = np.sqrt(scan_detail * drawn_detail)
    # A picture without detail of its own agrees with nothing.
    coherence = np.divide(product, length, out=np.zeros_like(product), where=~(length <= 0))
    explained = (2 * product - drawn_detail) / scan_detail
    return np.stack([drawn_whole / scan_whole, drawn_detail / scan_detail, coherence, explained])


def _table(values: npt.NDArray[np.float64], approaches: Sequence[str], bands: Bands, *, seed: int) -> pd.DataFrame:
    """One row per approach and band with intervals from a bootstrap of subjects, each of whom has one scan."""
    by_subject = np.moveaxis(values, 2, 0)
    n_subjects = len(by_subject)
    counts = np.random.default_rng(seed).multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), N_BOOTSTRAP)
    held = by_subject[:, 1, 0].sum(axis=0)
    found = _ratios(by_subject.sum(axis=0))
    again = _ratios(np.moveaxis(np.tensordot(counts.astype(float), by_subject, axes=1), 0, 1))
    low, high = np.quantile(again, (0.025, 0.975), axis=1)
    rows = []
    for one, approach in enumerate(approaches):
        for band, words in enumerate(bands.names):
            row: dict[str, object] = {"approach": approach, "band": words, "scan_share": held[band] / held.sum()}
            for measure, name in enumerate(("energy_kept", "detail_kept", "coherence", "explained")):
                place = (measure, one, band)
                row |= {name: found[place], f"{name}_low": low[place], f"{name}_high": high[place]}
            rows.append(row)
    return pd.DataFrame(rows)


def _arrays(table: pd.DataFrame, approaches: Sequence[str], bands: Bands, fwhm_mm: float) -> xr.Dataset:
    shape = (len(approaches), len(bands.names))
    columns = [name for name in table if name not in ("approach", "band", "scan_share")]
    share = table["scan_share"].to_numpy()[: len(bands.names)]
    return xr.Dataset(
        {str(name): (("approach", "band"), table[name].to_numpy().reshape(shape)) for name in columns}
        | {"passed": ("band", bands.passed(fwhm_mm)), "scan_share": ("band", share)},
        coords={"approach": list(approaches), "band": list(bands.names)},
    )


def _example(
    spaces: Sequence[LatentSpace],
    volumes: Volumes,
    scans: pd.DataFrame,
    values: npt.NDArray[np.float64],
    found: Sequence[Sums],
    *,
    seed: int,
) -> xr.Dataset:
    """An axial slice of the scan whose fine detail is explained no better and no worse than that of others."""
    explained = _ratios(values[:, 0])[3][:, 0]
    middle = int(np.argsort(explained, kind="stable")[len(explained) // 2])
    owner = np.repeat(np.arange(len(spaces)), [len(one.rows) for one in found])[middle]
    space, row = spaces[owner], np.concatenate([one.rows for one in found])[[middle]]
    linear = yardsticks(space, volumes, seed=seed)
    shown = {SCAN: volumes.masked(volumes.rows(list(space.scans[row])))[0]}
    drawn = pictures(space, volumes, scans, linear, row)
    shown |= {name: one[0] for name, one in zip(PAIRED, drawn, strict=True)}
    shown |= found[owner].samples
    affine, shape = volumes.grid.affine, volumes.mask.shape
    index = int(np.clip(round((AXIAL_MM - affine[2, 3]) / affine[2, 2]), 0, shape[2] - 1))
    painted = np.zeros((len(shown), *shape), dtype=np.float32)
    for volume, image in zip(painted, shown.values(), strict=True):
        volume[volumes.mask] = image
    edges = [affine[axis, 3] + (end - 0.5) * affine[axis, axis] for axis in (0, 1) for end in (0, shape[axis])]
    return xr.Dataset(
        {
            "slices": (("picture", "x", "y"), painted[..., index]),
            "extent_mm": ("edge", np.asarray(edges)),
            "position_mm": float(affine[2, 3] + index * affine[2, 2]),
        },
        coords={"picture": list(shown), "example": str(space.scans[row][0])},
    )
