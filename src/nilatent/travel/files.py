"""What a way through the latent space leaves in a folder: volumes, regional effects, pictures, a slider, and the record."""

import glob
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from nilatent.errors import SettingError
from nilatent.lock import LOCK_NAME, locked
from nilatent.plots import strip, style
from nilatent.pools import Pools
from nilatent.preprocess.native import to_native
from nilatent.provenance import hash_file, plain, read_json, versions, write_json, writing
from nilatent.report import page
from nilatent.report.slider import Slider, write_slider

RECORD = "travel.json"
MARK = "synthetic (nilatent)"
"""Description in the header of every volume; the names of the files say it too."""
NOT_SCANS = (
    "These are drawings of a model and nobody's scans. A decoder draws the mean of what it expects, so they are smoother than "
    "scans and have no noise."
)


@dataclass(frozen=True, eq=False)
class Journey:
    """Images along a way through the latent space.

    Parameters
    ----------
    title, verdict : str
        What changes, and what a reader should know first; the latter is completed by the regional effects.
    labels : tuple[str, ...]
        Of each step.
    images : ndarray
        (step, voxel in mask).
    compared : tuple[int, int]
        Steps between which effects are taken, from and to.
    reference : int
        Step from which the pictures show differences.
    notes : tuple[str, ...]
        What must not be concluded.
    asked : Mapping
        What was asked for, in plain values: the same again would give the same files.
    found : Mapping
        What else the record holds.
    scan : str
        The scan that is moved; empty for the mean of the training scans.
    expected : DataFrame, optional
        Index region, column ``change``: the change of regional means that a regional regression on the training scans
        expects between the compared steps.
    tables : Mapping[str, DataFrame]
        Further tables by the stem of their file.
    """

    title: str
    labels: tuple[str, ...]
    images: np.ndarray
    compared: tuple[int, int]
    reference: int
    notes: tuple[str, ...]
    asked: Mapping[str, Any]
    found: Mapping[str, Any]
    scan: str = ""
    expected: "pd.Series[float] | None" = None
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def is_done(out: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a folder holds the answer to the same question.

    Parameters
    ----------
    out : Path
        The folder.
    asked : Mapping
        What is asked for.

    Raises
    ------
    SettingError
        When it holds anything else: nothing is ever overwritten.
    """
    if out.is_file():
        raise SettingError(f"{out} is a file. Name a folder that is new or empty.")
    if not out.is_dir() or not any(out.iterdir()):
        return False
    record = out / RECORD
    known = read_json(record) if record.is_file() else {}
    if known.get("asked") == plain(asked):
        changed = [name for name, digest in known["outputs"].items() if not _is_as_written(out / name, digest)]
        if not changed:
            return True
        raise SettingError(
            f"{out / changed[0]} is missing or not as it was written, and nothing is overwritten. Remove {out} and run the same "
            "command again."
        )
    what = "another drawing, or a part of this one," if known else "other files"
    raise SettingError(f"{out} holds {what}, and nothing is overwritten. Name a folder that is new or empty.")


def _is_as_written(path: Path, digest: str) -> bool:
    return path.is_file() and hash_file(path) == digest


def write_journey(journey: Journey, pools: Pools, out: Path) -> Path:
    """Write a journey as a whole or not at all.

    Parameters
    ----------
    journey : Journey
        Its ``asked["space"]`` is ``"model"`` for volumes on the grid of the model, or ``"subject"`` for those on the voxels
        of the file that the moved scan was prepared from.
    pools : Pools
        Of the run.
    out : Path
        Receives ``synthetic_step-01.nii.gz`` and so on, ``synthetic_steps.nii.gz`` with all of them, ``effects.tsv``,
        ``strip.png``, ``strip.svg``, ``steps.gif``, ``slider.html`` and ``travel.json``; new or empty.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    SettingError
        When the folder is not empty, or the scan has no way back into its own space.
    DiskError
        When the disk is full or cannot be written.
    """
    out = Path(out).absolute()
    is_done(out, journey.asked)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    partial = out.with_name(f".{secrets.token_hex(4)}.partial.{out.name}")
    try:
        with writing(out), locked(partial):
            _fill(journey, pools, partial)
        (partial / LOCK_NAME).unlink()
        if out.is_dir():
            # Empty, as was seen above; a folder that was filled since is not replaced.
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _sweep(out: Path) -> None:
    """Remove what killed writers of the same folder left beside it; one that still writes holds the lock of its own."""
    for left in out.parent.glob(f".*.partial.{glob.escape(out.name)}"):
        if not left.is_dir():
            continue
        with suppress(SettingError), locked(left):
            shutil.rmtree(left, ignore_errors=True)


def _fill(journey: Journey, pools: Pools, folder: Path) -> None:
    grey = pools.config.recipe.target == "gm"
    # Less than no grey matter is no image; the table is of what is written.
    images = np.maximum(journey.images, 0.0) if grey else journey.images
    table = effects(images, journey, pools)
    volumes = np.zeros((len(images), *pools.volumes.grid.shape), dtype=np.float32)
    volumes[:, pools.volumes.mask] = images
    _write_volumes(journey, pools, volumes, folder)
    for name, one in {"effects": table, **journey.tables}.items():
        one.to_csv(folder / f"{name}.tsv", sep="\t", index=False, na_rep="n/a", float_format="%.6g")
    in_words = verdict(table, images, journey, pools)
    notes = (*journey.notes, NOT_SCANS)
    _draw(journey, pools, volumes, folder, table=table, in_words=in_words, notes=notes)
    clipped = float((images - journey.images).sum(axis=1).max()) * pools.volumes.grid.voxel_ml if grey else 0.0
    write_json(
        folder / RECORD,
        {
            "Synthetic": True,
            "Description": f"{journey.title}. {in_words}",
            "asked": journey.asked,
            "labels": journey.labels,
            "compared": [journey.labels[step] for step in journey.compared],
            "clipped_ml": clipped,
            "notes": notes,
            "versions": versions(),
            "outputs": {file.name: hash_file(file) for file in sorted(folder.iterdir()) if file.name != LOCK_NAME},
        }
        | dict(journey.found),
    )


def effects(images: np.ndarray, journey: Journey, pools: Pools) -> pd.DataFrame:
    """Every region at every step and its change between the compared steps, the largest change in percent first.

    Parameters
    ----------
    images : ndarray
        (step, voxel in mask), as they are written.
    journey, pools
        What is shown, and the atlas.

    Returns
    -------
    DataFrame
        Columns ``region``, ``n_voxels``, ``step_01`` and so on (ml of grey matter, or the mean T1 intensity), ``change``,
        ``change_percent`` (n/a in a region that holds nothing), and ``regression_change`` where a column was changed: what
        a regional regression on the training scans expects.
    """
    weights = pools.of_mask
    per_mean = _per_mean(pools)
    values = (weights.matrix @ images.T.astype(np.float64)) / weights.n_voxels[:, None] * per_mean[:, None]
    first, last = (values[:, step] for step in journey.compared)
    table = pd.DataFrame({"region": weights.names, "n_voxels": weights.n_voxels})
    for step in range(len(images)):
        table[f"step_{step + 1:02d}"] = values[:, step]
    table["change"] = last - first
    table["change_percent"] = 100 * np.divide(last - first, first, out=np.full(len(first), np.nan), where=first > 0)
    if journey.expected is not None:
        table["regression_change"] = journey.expected.reindex(weights.names).to_numpy() * per_mean
    order = table["change_percent"].abs().sort_values(ascending=False, kind="stable", na_position="last").index
    return table.loc[order].reset_index(drop=True)


def _per_mean(pools: Pools) -> np.ndarray:
    """(region,) ml in a region per unit of its mean; 1 where the values are no volumes."""
    weights = pools.of_mask
    return weights.n_voxels * pools.volumes.grid.voxel_ml if in_ml(pools) else np.ones(len(weights.names))


def in_ml(pools: Pools) -> bool:
    """Whether the sum of an image is a volume: of modulated grey matter it is."""
    return pools.config.recipe.target == "gm" and pools.config.recipe.modulation


def verdict(table: pd.DataFrame, images: np.ndarray, journey: Journey, pools: Pools) -> str:
    """The change in one or two sentences."""
    first, last = (journey.labels[step] for step in journey.compared)
    if not np.abs(table["change"]).max() > 0:
        return f"From {first} to {last} nothing changes."
    top = table.iloc[0]
    regional = f"in percent most in {top['region']} ({_signed(top['change_percent'])} %)"
    if not in_ml(pools):
        return f"From {first} to {last} regional means change {regional}."
    total = images.sum(axis=1, dtype=np.float64) * pools.volumes.grid.voxel_ml
    before, after = (float(total[step]) for step in journey.compared)
    share = 100 * (after - before) / before
    words = (
        f"From {first} to {last} grey matter changes by {_signed(after - before)} ml ({_signed(share)} %), {regional}"
    )
    if "regression_change" not in table:
        return f"{words}."
    together = table[["change", "regression_change"]].dropna()
    agreement = float(together.corr(method="spearman").to_numpy()[0, 1])
    return (
        f"{words}. A regional regression on the training scans expects {_signed(together['regression_change'].sum())} ml in "
        f"all regions, where {_signed(together['change'].sum())} ml are drawn; rank correlation over regions {agreement:.2f}."
    )


def _signed(number: float) -> str:
    return f"{number:+.3g}".replace("-", "−")


def _write_volumes(journey: Journey, pools: Pools, volumes: np.ndarray, folder: Path) -> None:
    grid = pools.volumes.grid
    written = []
    for step, values in enumerate(volumes):
        image, name = grid.to_image(values), f"synthetic_step-{step + 1:02d}.nii.gz"
        if journey.asked["space"] == "subject":
            image = to_native(image, side_car(pools, journey.scan))
            name = f"synthetic_step-{step + 1:02d}_space-orig.nii.gz"
        nib.save(_marked(image), folder / name)
        written.append(image)
    together = nib.Nifti1Image(
        np.stack([np.asarray(one.dataobj, dtype=np.float32) for one in written], axis=3), written[0].affine
    )
    together.header.set_xyzt_units("mm")
    ending = "_space-orig" if journey.asked["space"] == "subject" else ""
    nib.save(_marked(together), folder / f"synthetic_steps{ending}.nii.gz")


def _marked(image: nib.Nifti1Image) -> nib.Nifti1Image:
    image.header["descrip"] = MARK.encode()
    return image


def side_car(pools: Pools, scan: str) -> Path:
    """Side-car of a prepared scan, beside which the way back into its own space lies.

    Raises
    ------
    SettingError
        When no scan is moved, or the scan was not prepared from a raw head.
    """
    if not scan:
        raise SettingError(
            "The mean of the training scans lies in nobody's space. Name a scan, or take the model's space."
        )
    row = pools.prepared.scans.loc[scan]
    if row["recipe"] != "t1":
        raise SettingError(
            f"Scan {scan} came as a map (recipe {row['recipe']}), so there is no way back into its own space. Take the model's "
            "space, or prepare the raw head."
        )
    return Path(str(row["path"]).removesuffix(".nii.gz") + ".json")


def _draw(
    journey: Journey,
    pools: Pools,
    volumes: np.ndarray,
    folder: Path,
    *,
    table: pd.DataFrame,
    in_words: str,
    notes: tuple[str, ...],
) -> None:
    affine = pools.volumes.grid.affine
    differences = np.where(pools.volumes.mask, volumes - volumes[journey.reference], np.nan)
    first, last = journey.compared
    change = np.abs(volumes[last] - volumes[first])
    shown = change if change.any() else pools.volumes.mask.astype(np.float32)
    busiest = [int(shown.sum(axis=tuple(other for other in range(3) if other != axis)).argmax()) for axis in range(3)]
    x, y, z = (float(affine[axis, 3] + index * affine[axis, axis]) for axis, index in enumerate(busiest))
    drawn = strip.Strip(
        title=journey.title,
        labels=journey.labels,
        values=volumes,
        differences=differences,
        affine=affine,
        positions_mm=(x, y, z),
        unit="grey matter" if pools.config.recipe.target == "gm" else "T1 intensity",
        reference=journey.labels[journey.reference],
    )
    picture = strip.draw(drawn)
    (folder / "strip.svg").write_text(style.to_svg(picture), encoding="utf-8")
    (folder / "strip.png").write_bytes(strip.to_png(picture, dpi=200))
    frames = tuple(strip.to_png(strip.draw_frame(drawn, step)) for step in range(len(volumes)))
    (folder / "steps.gif").write_bytes(strip.to_gif(frames))
    caption = (
        f"Three planes through the largest change, and below them the change from {drawn.reference}. The scales are the same at "
        "every step."
    )
    slider = Slider("steps", "Step", journey.labels, frames, last, caption)
    unit = "ml" if in_ml(pools) else "mean"
    names = {
        "region": ("region", ""),
        "n_voxels": ("voxels", "Size in voxels of the grid, parts of voxels counted as parts"),
        "change": (f"change ({unit})", f"From {journey.labels[first]} to {journey.labels[last]}"),
        "change_percent": ("change (%)", "Of the region at the first of the two"),
        "regression_change": (
            f"by regional regression ({unit})",
            "Fitted on the same training scans without the model",
        ),
    }
    write_slider(
        slider,
        folder / "slider.html",
        title=journey.title,
        verdict=in_words,
        notes=notes,
        effects=page.sheet(table, "Regions, largest change first", names=names),
    )
