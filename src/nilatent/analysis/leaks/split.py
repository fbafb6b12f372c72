"""Leak audit, split: subjects and families on one side, and encoders that have not seen whom they are judged on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.leaks.images import Pair
from nilatent.analysis.leaks.row import CLEAN, FOUND, NOT_CHECKED, Check, examples

SUBJECTS = "subject on both sides"
FAMILIES = "family on both sides"
ENCODER = "encoder and its test subjects"


def subjects_apart(scans: pd.DataFrame, split: pd.DataFrame) -> Check:
    """All scans of a subject in one part and one fold."""
    return _apart(
        SUBJECTS,
        scans["subject_id"],
        split,
        sides=split["part"],
        what="subjects have scans in more than one fold or part",
        clean=f"All scans of each of {scans['subject_id'].nunique()} subjects are in one part and one fold.",
        advice="Split again by subject, then train again.",
        elsewhere="training and cross-fitting stop with LeakageError; the split itself keeps subjects together",
    )


def families_apart(scans: pd.DataFrame, split: pd.DataFrame, family: str) -> Check:
    """All members of a family in one part and one fold."""
    if not family or family not in scans:
        reason = f"the cohort has no column '{family}'" if family else "no column of families was named"
        return Check(FAMILIES, NOT_CHECKED, reason)
    families = scans[family].dropna()
    members = scans.loc[families.index, "subject_id"].groupby(families.to_numpy()).nunique()
    if not (members > 1).any():
        return Check(FAMILIES, NOT_CHECKED, f"no two subjects share a value of '{family}'")
    return _apart(
        FAMILIES,
        families,
        split,
        # Siblings of the training and of the validation part choose an epoch together; they judge nothing.
        sides=split["part"] == "test",
        what="families have members in more than one fold, or in the test part and another",
        clean=f"All members of each of {families.nunique()} families are in one part and one fold.",
        advice="Siblings look alike. Split by family: hand in a split, or keep one member of each family.",
        elsewhere="",
    )


def _apart(
    name: str,
    keys: "pd.Series[str]",
    split: pd.DataFrame,
    *,
    sides: "pd.Series[Any]",
    what: str,
    clean: str,
    advice: str,
    elsewhere: str,
) -> Check:
    """Keys, such as subjects, whose scans stand on both sides."""
    stands = pd.DataFrame({"key": keys.astype(str), "side": sides.loc[keys.index]})
    if "fold" in split:
        stands["fold"] = split.loc[keys.index, "fold"]
    counts = stands.groupby("key").nunique().max(axis=1)
    straddling = counts.index[counts > 1]
    if not len(straddling):
        return Check(name, CLEAN, clean, elsewhere=elsewhere)
    return Check(
        name,
        FOUND,
        f"{len(straddling)} {what}.",
        n=len(straddling),
        examples=examples(map(str, straddling)),
        advice=advice,
        elsewhere=elsewhere,
    )


def encoder_blind(
    scans: pd.DataFrame,
    split: pd.DataFrame,
    latents: xr.Dataset | None,
    folds: Sequence[xr.Dataset],
    *,
    copies: Sequence[Pair],
) -> Check:
    """No model has seen a subject that it holds out, or a copy of that subject's image.

    Parameters
    ----------
    scans, split : DataFrame
        Cohort and its split, in one order.
    latents : Dataset or None
        By the study's model, which holds out the test part.
    folds : Sequence of Dataset
        By the model of each fold, which holds out that fold.
    copies : Sequence of Pair
        Scans that are one image.
    """
    elsewhere = (
        "cross-fitted latents of models that have seen a held-out subject are refused where they are read and used"
    )
    if latents is None and not len(folds):
        return Check(ENCODER, NOT_CHECKED, "there are no latents", elsewhere=elsewhere)
    if len(folds) and "fold" not in split:
        return Check(ENCODER, NOT_CHECKED, "the split has no folds to hold against the models", elsewhere=elsewhere)
    wrong: dict[str, str] = {}
    held_out = 0
    for name, made, out in _models(split, latents, folds):
        seen = made["subject_in_training"].sel(scan=scans.index.to_numpy()).values.astype(bool)
        held_out += int(out.sum())
        known = set(scans["subject_id"].to_numpy()[seen])
        for row in np.flatnonzero(out & (seen | scans["subject_id"].isin(known).to_numpy())):
            wrong.setdefault(str(scans.index[row]), f"{scans.index[row]} ({name})")
        for pair in copies:
            for row, other in (pair, pair[::-1]):
                if out[row] and seen[other]:
                    wrong.setdefault(str(scans.index[row]), f"{scans.index[row]} ({name}, as {scans.index[other]})")
    if not wrong:
        said = f"None of {held_out} encodings of held-out scans is by a model that had seen the subject or a copy of the scan."
        return Check(ENCODER, CLEAN, said, elsewhere=elsewhere)
    return Check(
        ENCODER,
        FOUND,
        f"{len(wrong)} held-out scans are of subjects that the model had seen, by themselves or as a copy.",
        n=len(wrong),
        examples=examples(wrong.values()),
        advice="Latents of these scans prove nothing. Split again, train again, and encode with models that have not seen them.",
        elsewhere=elsewhere,
    )


def _models(
    split: pd.DataFrame, latents: xr.Dataset | None, folds: Sequence[xr.Dataset]
) -> list[tuple[str, xr.Dataset, np.ndarray]]:
    """Name, latents and (scan,) bool what is held out, of every model."""
    models = []
    if latents is not None:
        models.append(("study's model", latents, (split["part"] == "test").to_numpy()))
    for number, made in enumerate(folds):
        models.append((f"model of fold {number}", made, (split["fold"] == number).to_numpy()))
    return models
