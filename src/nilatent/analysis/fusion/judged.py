"""One target told in every way from the modalities that may tell it, and each way compared with the best single one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import first_scans
from nilatent.analysis.fusion.config import FusionConfig
from nilatent.analysis.fusion.cv import Block, Said, blocks_of, say
from nilatent.analysis.fusion.importance import Importance, importances
from nilatent.analysis.fusion.questions import Question
from nilatent.analysis.fusion.ways import (
    AVERAGE,
    EARLY,
    INSIDE,
    JOINT,
    PRESENT,
    PRESENT_SINGLE,
    SINGLE,
    STACKED,
    Piece,
    alone,
    averaged,
    best_inside,
    stacked,
    told_of,
)
from nilatent.analysis.prediction.compare import Comparison, compare, subject_swaps
from nilatent.analysis.prediction.cv import Told
from nilatent.analysis.prediction.measures import MAIN, Measured, measure, subject_weights
from nilatent.analysis.prediction.targets import Target


@dataclass(frozen=True, eq=False)
class Row:
    """One way of telling one target.

    Parameters
    ----------
    target : Target
        What is predicted, with the scans that are judged.
    way : str
        Of those in :mod:`~nilatent.analysis.fusion.ways`.
    features : str
        Name of the modality, or of all that take part.
    n_subjects : int
        Subjects judged.
    told : Told or None
        What was said of held-out scans; None when the way was not run.
    measured : Measured or None
        Measures with intervals.
    against : Comparison or None
        With the best single modality chosen inside, for ways that use several.
    importance : Importance or None
        What the modality carries in early fusion, for single modalities.
    weights : tuple[float, ...]
        Weight of the modality in weighted late fusion, fold by fold.
    n_chosen : int
        Folds in which the modality was the best one inside.
    note : str
        Why the way was not run, or what it rests on.
    """

    target: Target
    way: str
    features: str
    n_subjects: int
    told: Told | None = None
    measured: Measured | None = None
    against: Comparison | None = None
    importance: Importance | None = None
    weights: tuple[float, ...] = ()
    n_chosen: int = 0
    note: str = ""

    @property
    def main(self) -> str:
        """Name of the measure that is compared."""
        return MAIN[self.target.kind]

    @property
    def value(self) -> float:
        """The main measure; NaN when the way was not run."""
        return float("nan") if self.measured is None else self.measured.value[self.main]

    @property
    def chance(self) -> float:
        """What the main measure is without any information."""
        return 1 / len(self.target.levels) if self.main == "balanced_accuracy" else 0.0


def judge(asked: Question, scans: pd.DataFrame, folds: np.ndarray, config: FusionConfig) -> list[Row]:
    """Every way of telling one target.

    Parameters
    ----------
    asked : Question
        What is predicted, from what.
    scans : DataFrame
        Index scan_id; ``subject_id``.
    folds : ndarray
        (scan,) outer fold.
    config : FusionConfig
        Settings.

    Raises
    ------
    SettingError
        When a modality does not vary in some training part, or too few scans have it.
    """
    target, names = asked.target, [one.name for one in asked.modalities]
    everyone = scans["subject_id"].to_numpy().astype(str)
    subjects, held_in = everyone[target.rows], folds[target.rows]
    numbers = np.unique(held_in).tolist()
    whole = np.arange(len(target.rows))
    blocks = [blocks_of(one, target, folds, whole) for one in asked.modalities]
    single = [_heads([part], target, subjects, config) for part in blocks]
    early = _heads(blocks, target, subjects, config)
    weighted, weights = stacked(single, target, numbers)
    inside, chosen = best_inside(single, target, numbers)
    together = " + ".join(names)
    bench = _bench(target, subjects, held_in, config)
    best = bench.row(INSIDE, _how_often(names, chosen), inside)
    first = np.isin(whole, first_scans(scans.iloc[target.rows]))
    carried = importances(blocks, early, target, subjects, first, config)
    rows = [
        replace(
            bench.row(SINGLE, name, alone(said, target)),
            importance=carried[number],
            weights=tuple(weights[:, number].tolist()),
            n_chosen=int((chosen == number).sum()),
        )
        for number, (name, said) in enumerate(zip(names, single, strict=True))
    ]
    rows += [best, bench.row(EARLY, together, alone(early, target), best)]
    if asked.joint is None:
        rows.append(Row(target, JOINT, together, bench.n_subjects, note=f"not run: {asked.without_joint}"))
    else:
        said = _heads([blocks_of(asked.joint, target, folds, whole)], target, subjects, config)
        rows.append(bench.row(JOINT, asked.joint.name, alone(said, target), best))
    rows.append(bench.row(AVERAGE, together, averaged(single, target, numbers), best))
    rows.append(bench.row(STACKED, together, weighted, best))
    return rows + (_of_present(asked.present, asked, everyone, folds, config) if asked.present is not None else [])


def _of_present(
    target: Target, asked: Question, everyone: np.ndarray, folds: np.ndarray, config: FusionConfig
) -> list[Row]:
    """Late fusion of the modalities that a scan has, on all scans that have one, beside the best single one of these."""
    subjects, held_in = everyone[target.rows], folds[target.rows]
    numbers = np.unique(held_in).tolist()
    single = []
    for one in asked.modalities:
        part = blocks_of(one, target, folds, np.flatnonzero(one.finite[target.rows]))
        single.append(_heads([part], target, subjects, config))
    names = [one.name for one in asked.modalities]
    bench = _bench(target, subjects, held_in, config)
    pieces, chosen = best_inside(single, target, numbers)
    best = bench.row(PRESENT_SINGLE, _how_often(names, chosen), pieces)
    note = f"of {len(target.rows)} scans {len(target.rows) - len(asked.target.rows)} lack a modality"
    fused = bench.row(PRESENT, " + ".join(names), averaged(single, target, numbers), best)
    return [replace(fused, note=note), replace(best, note=note)]


def _heads(
    blocks: Sequence[Mapping[int, Block]], target: Target, subjects: np.ndarray, config: FusionConfig
) -> dict[int, Said]:
    return {
        fold: say([part[fold] for part in blocks], target, subjects, n_inner=config.n_inner, seed=config.seed)
        for fold in blocks[0]
    }


def _how_often(names: Sequence[str], chosen: np.ndarray) -> str:
    counts = np.bincount(chosen, minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    return ", ".join(f"{names[number]} ({counts[number]} of {len(chosen)} folds)" for number in order if counts[number])


@dataclass(frozen=True, eq=False)
class _Bench:
    """The scans on which all ways of one target are judged, with the same resamples and swaps of their subjects."""

    target: Target
    folds: np.ndarray
    n_subjects: int
    weights: np.ndarray
    swaps: np.ndarray
    alpha: float

    def row(self, way: str, features: str, pieces: Sequence[Piece], best: Row | None = None) -> Row:
        """One way, measured, and compared with the best single one where it is given."""
        told, against = told_of(pieces, self.target, self.folds), None
        if best is not None and best.told is not None:
            against = compare(
                self.target,
                told,
                best.told,
                against=best.way,
                weights=self.weights,
                swaps=self.swaps,
                alpha=self.alpha,
            )
        measured = measure(self.target, told, self.weights, alpha=self.alpha)
        return Row(self.target, way, features, self.n_subjects, told, measured, against)


def _bench(target: Target, subjects: np.ndarray, folds: np.ndarray, config: FusionConfig) -> _Bench:
    return _Bench(
        target=target,
        folds=folds,
        n_subjects=len(np.unique(subjects)),
        weights=subject_weights(subjects, config.n_bootstrap, seed=config.seed),
        swaps=subject_swaps(subjects, config.n_bootstrap, seed=config.seed),
        alpha=config.alpha,
    )
