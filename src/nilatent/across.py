"""Across modalities: what a joint model expects of one modality of the scans of a run, from others that they have."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from nilatent.cohort import load_cohort
from nilatent.config import RunConfig, read_config
from nilatent.errors import LeakageError, SettingError
from nilatent.further import MADE
from nilatent.modalities import JOINT, modality_names, open_modalities
from nilatent.multimodal import TISSUES, predict_modality
from nilatent.pools import read_split
from nilatent.preprocess.derivative import SPACE, SPATIAL_REFERENCE, number_label
from nilatent.progress import track
from nilatent.provenance import atomic, read_json, versions, write_json
from nilatent.study import nearest
from nilatent.training.conditions import Column
from nilatent.training.multimodal.data import Modality, known_scans
from nilatent.training.multimodal.folder import TrainedMultimodal, load_multimodal, subjects_seen
from nilatent.volumes import Volumes

CLIPPED = " Values below 0 were set to 0."
ERRORS = ("fvu", "squared_error", "squared_error_of_mean")
RECORD, SUMMARY, TABLE = "across.json", "summary.tsv", "predicted.tsv"
MARK = "predicted (nilatent)"
"""Description in the header of every volume; the names of the files say it too."""
NOTE = (
    "What a joint model expects of this modality, from others of the same scan: no measurement. What the modalities do not "
    "share is as in the average training scan, so it is smoother than a scan and has no noise."
)


@dataclass(frozen=True, eq=False)
class Crossing:
    """What is predicted, from what, and of which scans.

    Parameters
    ----------
    target : str
        Name of the modality.
    use : tuple[str, ...]
        Modalities that are looked at.
    source : str
        Suffix or column of the target's images; empty for the modelled image and for tables.
    description : str
        How the maps of the run were made, for the entity ``desc-``.
    modalities : Mapping[str, Volumes or DataFrame]
        All of the run.
    scans : DataFrame
        Index scan_id; ``dataset``, ``subject_id`` and ``session_id``: the scans wanted.
    """

    target: str
    use: tuple[str, ...]
    source: str
    description: str
    modalities: Mapping[str, Modality]
    scans: pd.DataFrame

    @property
    def positive(self) -> bool:
        """Whether the target cannot be negative: shares of tissue and T1 intensities cannot, a blood flow may."""
        return self.source in ("", *MADE)

    def place(self, out: Path, scan: str, spacing_mm: float) -> Path:
        """Where the predicted image of a scan lies."""
        of = ("dataset", "subject_id", "session_id")
        dataset, subject, session = (str(self.scans.at[scan, name] or "") for name in of)
        # With several data sets the names of subjects begin with theirs, which is then a folder.
        label = subject.removeprefix(f"{dataset}_")
        out, subject = (out if label == subject else out / dataset), label
        folder = out.joinpath(*filter(None, (subject, session)), "anat")
        space = f"{'_'.join(filter(None, (subject, session)))}_space-{SPACE}_res-{number_label(spacing_mm)}"
        tissue = "GM" if self.target == "gm" else self.source if self.source in ("GM", *TISSUES) else ""
        suffix = re.sub(r"[^A-Za-z0-9]", "", self.source or "T1w")
        kind = f"label-{tissue}_desc-{self.description}Predicted_probseg" if tissue else f"desc-predicted_{suffix}"
        return folder / f"{space}_{kind}.nii.gz"


def predict_across(
    run: Path, target: str, *, use: Sequence[str] = (), scans: Sequence[str] = (), out: Path | None = None
) -> Path:
    """Predict one modality of the scans of a run from others, by models that have not seen their subjects where there are any.

    Parameters
    ----------
    run : Path
        Folder of a run whose study names further modalities.
    target : str
        What is predicted: the name of a modality, that of the modelled image being ``"gm"`` or ``"t1w"``.
    use : Sequence[str]
        From which; all others where none is named. Of these, every scan gives what it has.
    scans : Sequence[str]
        Ids; all where none is named.
    out : Path, optional
        A new folder; left out ``generated/<target>_from_<use>`` in the run.

    Returns
    -------
    Path
        The folder. A NIfTI with a side-car for every scan, or of a table ``predicted.tsv``; and ``summary.tsv`` with a row per
        scan: the model, whether it has seen the subject, what was looked at, and where the truth is known the squared error,
        that of the mean of the training scans, and ``fvu``, their ratio (1: no better than the mean). Of a table these count
        its numbers, in standard deviations.

    Raises
    ------
    SettingError
        When a name does not exist, there is nothing to predict from, or the folder holds something else.
    LeakageError
        When a cross-fitted model has seen a subject of its fold.

    Notes
    -----
    With folds, every scan is predicted by the model of the fold in which it is held out. Without, the study's own model predicts
    all, and ``seen`` marks the scans that it learned from or was chosen by: these do not say how well others are predicted.

    Examples
    --------
    >>> predict_across(Path("run"), "wm", use=["gm", "scores"])  # doctest: +SKIP
    """
    run = Path(run).absolute()
    config, prepared, parts = read_config(run / "study.toml"), load_cohort(run / "prepared").scans, read_split(run)
    use = _checked(modality_names(config), target, use)
    for scan in scans:
        if scan not in prepared.index:
            raise SettingError(f"--scans: there is no scan '{scan}'.{nearest(scan, list(prepared.index))}")
    asked = Crossing(
        target=target,
        use=use,
        source=config.study.modalities.get(target, ""),
        description=_description(prepared["path"]),
        modalities=open_modalities(run, config, load_cohort(run / "prepared")),
        scans=prepared.loc[[name for name in prepared.index if not scans or name in scans]],
    )
    places = _places(config, parts.loc[asked.scans.index])
    models = {place: load_multimodal(run / place) for place in places}
    for place, model in models.items():
        if place != JOINT:
            _check_unseen(model, place, asked, parts.loc[places[place]])
    out = run / "generated" / f"{target}_from_{'-'.join(use)}" if out is None else Path(out).absolute()
    said: dict[str, Any] = {"target": target, "from": list(use), "scans": list(asked.scans.index), "note": NOTE}
    said |= {"models": {place: model.content_hash for place, model in models.items()}}
    if _is_done(out, said):
        return out
    # First of all, so that a folder that was interrupted is known again.
    write_json(out / RECORD, {"asked": said, "done": False})
    rows = [row for place, model in models.items() for row in _predicted(asked, model, place, places[place], out)]
    cells = {row["scan_id"]: row.pop("cells") for row in rows if "cells" in row}
    if cells:
        _write_tsv(pd.DataFrame.from_dict(cells, orient="index").rename_axis("scan_id"), asked, out / TABLE)
    _write_tsv(pd.DataFrame(rows).set_index("scan_id"), asked, out / SUMMARY)
    write_json(out / RECORD, {"asked": said, "done": True, "versions": versions()})
    return out


def _checked(names: Sequence[str], target: str, use: Sequence[str]) -> tuple[str, ...]:
    if not names:
        raise SettingError(
            "The study of this run names no modality beside the modelled image. Run it again with the sources and --modality "
            "wm=WM or --table scores=COLUMN,COLUMN."
        )
    for flag, name in [("The target", target), *(("--from", name) for name in use)]:
        if name not in names:
            raise SettingError(f"{flag}: there is no modality '{name}'.{nearest(name, names)}")
    if target in use:
        raise SettingError(f"--from names '{target}', which is to be predicted. Name others, or none for all others.")
    return tuple(name for name in names if name != target and (not use or name in use))


def _description(paths: "pd.Series[str]") -> str:
    """How the maps of the run were made, as most of their names say."""
    found = [re.search(r"_desc-([A-Za-z0-9]+)_", Path(path).name) for path in paths]
    words = Counter(one.group(1) for one in found if one is not None)
    return max(words, key=words.__getitem__, default="")


def _places(config: RunConfig, parts: pd.DataFrame) -> dict[str, list[str]]:
    """Folder of each joint model in the run, and the scans that it predicts."""
    if not config.folds:
        return {JOINT: list(parts.index)}
    known = {f"folds/{fold}/{JOINT}": list(parts.index[parts["fold"] == fold]) for fold in range(config.folds)}
    return {place: scans for place, scans in known.items() if scans}


def _volumes(asked: Crossing) -> dict[str, Volumes]:
    return {name: one for name, one in asked.modalities.items() if isinstance(one, Volumes)}


def _check_unseen(model: TrainedMultimodal, place: str, asked: Crossing, parts: pd.DataFrame) -> None:
    seen = subjects_seen(model.seen, parts["subject_id"], _volumes(asked))
    if seen.any():
        raise LeakageError(
            f"The model in {place} has seen the subject of {parts.index[seen][0]}, who is held out in it. Delete the folder "
            "and run again."
        )


def _is_done(out: Path, asked: Mapping[str, Any]) -> bool:
    """Whether the folder holds the answer to the same question; one that was interrupted is filled anew."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        known = read_json(out / RECORD) if (out / RECORD).is_file() else {}
        if known.get("asked") != asked:
            raise SettingError(
                f"{out} holds {'another prediction' if known else 'something else'}, and nothing is overwritten. Name a new "
                "folder with -o."
            )
        return bool(known["done"])
    return False


def _predicted(
    asked: Crossing, model: TrainedMultimodal, place: str, scans: Sequence[str], out: Path
) -> list[dict[str, Any]]:
    """Predict and write the target of some scans by one model; a row of the summary for each."""
    has = {name: known_scans(asked.modalities[name]) for name in asked.use}
    of_scan = {scan: [name for name in asked.use if scan in has[name]] for scan in scans}
    seen = subjects_seen(model.seen, asked.scans.loc[list(scans), "subject_id"], _volumes(asked))
    rows: dict[str, dict[str, Any]] = {
        scan: {
            "scan_id": scan,
            "subject_id": asked.scans.at[scan, "subject_id"],
            "model": place,
            "seen": bool(knows),
            "from": ", ".join(of_scan[scan]) or "nothing: not predicted",
            "path": "",
        }
        | dict.fromkeys(ERRORS, np.nan)
        for scan, knows in zip(scans, seen, strict=True)
    }
    some = [scan for scan in scans if of_scan[scan]]
    given = {name: asked.modalities[name] for name in asked.use}
    batches = predict_modality(model, given, some, target=asked.target)
    target = asked.modalities[asked.target]
    if isinstance(target, Volumes):
        found = _images(asked, target, model, batches, rows, out)
    else:
        found = _cells(target, model.columns[asked.target], batches)
    for scan, one in track(found, total=len(some), label=f"predict ({place})"):
        rows[scan] |= one
    return list(rows.values())


def _errors(drawn: Any, true: Any, mean: Any) -> dict[str, float]:
    """What is missed by a prediction and by the mean of the training scans, and the ratio of both."""
    missed, of_mean = (float(np.square(np.asarray(one, dtype=np.float64) - true).sum()) for one in (drawn, mean))
    return dict(zip(ERRORS, (missed / of_mean if of_mean > 0 else np.nan, missed, of_mean), strict=True))


def _images(
    asked: Crossing,
    truth: Volumes,
    model: TrainedMultimodal,
    batches: Iterator[tuple[list[str], Any]],
    rows: Mapping[str, Mapping[str, Any]],
    out: Path,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write predicted volumes; for each scan its errors and its file."""
    mean = model.module.part(asked.target).get_buffer("mean").numpy()
    for scans, drawn in batches:
        for scan, values in zip(scans, drawn, strict=True):
            path = asked.place(out, scan, truth.grid.spacing_mm)
            values = np.maximum(values, 0.0) if asked.positive else values
            volume = np.zeros(truth.grid.shape, dtype=np.float32)
            volume[truth.mask] = values
            image = truth.grid.to_image(volume)
            image.header["descrip"] = MARK.encode()
            with atomic(path) as temporary:
                nib.save(image, temporary)
            _write_side_car(asked, model, rows[scan], path)
            found: dict[str, Any] = {"path": path.relative_to(out).as_posix()}
            if scan in truth.scans.index:
                true = truth.masked(truth.rows([scan]))[0].astype(np.float64)
                found |= _errors(values, true, mean)
            yield scan, found


def _write_side_car(asked: Crossing, model: TrainedMultimodal, row: Mapping[str, Any], path: Path) -> None:
    described = {
        "Description": f"{asked.target}, predicted by a joint model. {NOTE}{CLIPPED if asked.positive else ''}",
        "Predicted": True,
        "SpatialReference": SPATIAL_REFERENCE,
        "SkullStripped": True,
        "nilatent": {
            "Target": asked.target,
            "From": row["from"],
            "Model": {"Folder": row["model"], "ContentHash": model.content_hash},
            "SubjectSeenByModel": row["seen"],
        },
    }
    write_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), described)


def _cells(
    truth: pd.DataFrame, columns: Sequence[Column], batches: Iterator[tuple[list[str], Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is predicted of every column, and errors of the numbers, for each scan."""
    known = truth.rename(columns=str)
    numbers = {column.name: column for column in columns if not column.levels}
    for _, drawn in batches:
        for scan, told in drawn.iterrows():
            found: dict[str, Any] = {"cells": told.to_dict(), "path": TABLE}
            true = pd.to_numeric(known.loc[scan, list(numbers)], errors="coerce").dropna()
            if len(true):
                mean, sd = (np.array([getattr(numbers[name], of)[0] for name in true.index]) for of in ("mean", "sd"))
                found |= _errors(told[true.index] / sd, true.to_numpy(float) / sd, mean / sd)
            yield str(scan), found


def _write_tsv(table: pd.DataFrame, asked: Crossing, path: Path) -> None:
    order = asked.scans.index[asked.scans.index.isin(table.index)]
    with atomic(path) as temporary:
        table.loc[order].to_csv(temporary, sep="\t", float_format="%.6g", na_rep="n/a")
