"""Errors of scans that no model has seen: by the joint model, by simple regressions, and by the mean of training scans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.analysis import exchange, stats
from nilatent.analysis.multimodal import simple
from nilatent.analysis.multimodal.asked import ALL, JOINT, Array, Fold, Question, Rows, Told, present
from nilatent.errors import SettingError

MEAN, RIVAL, EQUAL = "training mean", "best simple regression, chosen inside", "PCA of equal size"
TRAIN_ONLY = {simple.RIDGE: "ridge, training part only", simple.LOGISTIC: "logistic, training part only"}
# Fewer people, to judge by or to learn from, make no interval worth the name.
MIN_SUBJECTS = 10


@dataclass(frozen=True, eq=False)
class Judged:
    """One question, answered.

    Parameters
    ----------
    question : Question
        What was asked.
    error : dict[str, ndarray]
        By way: (scan,) squared error, or log loss of a category; NaN where a scan takes no part, the same for all ways.
    hit : dict[str, ndarray]
        Of a category, by way: (scan,) 1 where the likeliest level is the true one, else 0; NaN as above.
    chosen : tuple[str, ...]
        By fold: which simple regression had the smallest error inside.
    note : str
        Why it was not answered; empty where it was.
    """

    question: Question
    error: dict[str, Array]
    hit: dict[str, Array]
    chosen: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Paired:
    """Difference of two errors, as a share of that of the training mean; below 0 the first is smaller."""

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Truth:
    """What is there of a target, and what the training mean is.

    Parameters
    ----------
    y : ndarray
        (scan, value): coordinates, a number in SD of the training scans, or an indicator per level.
    there : ndarray
        (scan,) whether it is known.
    levels : tuple[str, ...]
        Of a category; those of the training scans.
    mean, sd : float
        Of a number.
    """

    y: Array
    there: Rows
    levels: tuple[str, ...] = ()
    mean: float = 0.0
    sd: float = 1.0


def judge(
    question: Question,
    kinds: Mapping[str, Array | pd.DataFrame],
    told: Sequence[Told],
    folds: Sequence[Fold],
    *,
    seed: int,
) -> Judged:
    """Errors of every unseen scan, each by models and regressions that have not seen its subject.

    Parameters
    ----------
    question : Question
        What is told from what.
    kinds : Mapping
        As :func:`nilatent.analysis.multimodal.simple.features` takes them.
    told : Sequence[Told]
        What the joint models said.
    folds : Sequence[Fold]
        Their splits.
    seed : int
        Of the inner folds of the simple regressions.

    Notes
    -----
    Simple regressions learn from the training and the validation part: the joint model used the latter to choose its epoch.
    What they tell from the training part alone stands beside.
    """
    ours = [one for one in told if (one.target, one.sources) == (question.modality, question.sources)]
    n_scans = len(folds[0].parts)
    error: dict[str, Array] = {}
    hit: dict[str, Array] = {}
    chosen = []
    has = np.stack([present(kinds[name]) for name in question.sources])
    enough = has.all(axis=0) if question.given == ALL else has.any(axis=0)
    for fold in folds:
        truth = _truth(question, kinds[question.modality], fold)
        learned = _learned(fold, truth, np.asarray(has.any(axis=0)))
        new = fold.rows("test") & truth.there & enough
        people = fold.parts["subject_id"][learned].nunique()
        if not new.any():
            continue
        if people < MIN_SUBJECTS:
            return Judged(question, {}, {}, (), f"only {people} people to learn from; {MIN_SUBJECTS} are needed")
        base, others = _others(question, kinds, truth, fold, learned, new, seed=seed)
        drawn = {name: one.drawn for name, one in others.items()} | {MEAN: base}
        if not question.itself:
            best, spoken = best_of(others)
            chosen.append(best)
            drawn[RIVAL] = spoken.drawn
        for one in ours:
            if isinstance(one.said, pd.DataFrame):
                drawn[one.way] = _joint(one.said, question, truth, new)
            else:
                _blank(error, one.way, n_scans)[new] = one.said[new]
        for name, values in drawn.items():
            _blank(error, name, n_scans)[new] = _missed(question, truth.y[new], values)
            if question.kind == "category":
                right = values.argmax(axis=1) == truth.y[new].argmax(axis=1)
                _blank(hit, name, n_scans)[new] = right
        _check_told(question, error, fold, new)
    if not error:
        return Judged(question, {}, {}, (), "no unseen scan has it and what it is told from")
    subjects = folds[0].parts["subject_id"].to_numpy(str)
    people = len(np.unique(subjects[np.isfinite(error[MEAN])]))
    if people < MIN_SUBJECTS:
        return Judged(question, {}, {}, (), f"only {people} unseen people to judge by; {MIN_SUBJECTS} are needed")
    return Judged(question, error, hit, tuple(chosen), "")


def simply_told(
    kinds: Mapping[str, Array | pd.DataFrame],
    target: str,
    sources: tuple[str, ...],
    fold: Fold,
    new: Rows,
    *,
    seed: int,
) -> Array:
    """What :data:`RIVAL` says of some volumes, (scan, value) in their coordinates; the same as in :func:`judge`."""
    question = Question(target, "", "volumes", sources, ALL)
    truth = _truth(question, kinds[target], fold)
    has = np.any([present(kinds[name]) for name in sources], axis=0)
    learned = _learned(fold, truth, has)
    return best_of(_others(question, kinds, truth, fold, learned, new, seed=seed)[1])[1].drawn


def _learned(fold: Fold, truth: Truth, has: Rows) -> Rows:
    """(scan,) what simple regressions learn from: all that the joint model used, where there is something to learn."""
    return fold.rows("train", "validation") & truth.there & has


def best_of(others: Mapping[str, simple.Spoken]) -> tuple[str, simple.Spoken]:
    """The simple regression with the smallest error inside, of those that learned from all scans they may."""
    whole = {name: one for name, one in others.items() if name not in TRAIN_ONLY.values()}
    return min(whole.items(), key=lambda one: one[1].inner_error)


def _check_told(question: Question, error: Mapping[str, Array], fold: Fold, new: Rows) -> None:
    missing = new & ~np.isfinite(error.get(JOINT, np.full(len(new), np.nan)))
    if missing.any():
        raise SettingError(
            f"The joint model told nothing of {question.target} of scan {fold.parts.index[missing][0]} from "
            f"{' + '.join(question.sources)}. Give what it says of every unseen scan that has both."
        )


def _truth(question: Question, one: Array | pd.DataFrame, fold: Fold) -> Truth:
    train = fold.rows("train")
    if not isinstance(one, pd.DataFrame):
        return Truth(one, present(one))
    column = one[question.column]
    if question.kind == "number":
        values = column.to_numpy(np.float64, na_value=np.nan)
        known = values[train & np.isfinite(values)]
        mean, sd = (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)
        scaled = (values - mean) / (sd if sd > 0 else 1.0)
        return Truth(scaled[:, None], np.isfinite(values) & (sd > 0), (), mean, sd)
    words = column.astype(str).to_numpy()
    levels = tuple(sorted(column[train].dropna().astype(str).unique()))
    y = (words[:, None] == np.array(levels, dtype=str)).astype(np.float64) * column.notna().to_numpy()[:, None]
    return Truth(y, y.any(axis=1) & (len(levels) > 1), levels)


def _others(
    question: Question,
    kinds: Mapping[str, Array | pd.DataFrame],
    truth: Truth,
    fold: Fold,
    learned: Rows,
    new: Rows,
    *,
    seed: int,
) -> tuple[Array, dict[str, simple.Spoken]]:
    """The mean of the training scans, and what everything but the joint model says."""
    train = fold.rows("train") & truth.there
    base = np.repeat(truth.y[train].mean(axis=0)[None], int(new.sum()), axis=0)
    if question.itself:
        drawn = simple.components(truth.y, train, new, n_components=fold.n_latent[question.modality])
        return base, {EQUAL: simple.Spoken(drawn, np.nan)}
    subjects = fold.parts["subject_id"].to_numpy(str)
    x = simple.features(kinds, question.sources, fold.rows("train", "validation"))
    ways = (simple.LOGISTIC,) if question.kind == "category" else (simple.RIDGE, simple.PLS)
    made = {way: simple.chosen(way, x, truth.y, learned, new, subjects, seed=seed) for way in ways}
    own = learned & train
    if len(np.unique(subjects[own])) > 1:
        x = simple.features(kinds, question.sources, own)
        made[TRAIN_ONLY[ways[0]]] = simple.chosen(ways[0], x, truth.y, own, new, subjects, seed=seed)
    return base, made


def _joint(said: pd.DataFrame, question: Question, truth: Truth, new: Rows) -> Array:
    if question.kind == "number":
        values = said[question.column].to_numpy(np.float64)[new]
        return np.asarray((values - truth.mean) / truth.sd)[:, None]
    return said[[f"{question.column}={level}" for level in truth.levels]].to_numpy(np.float64)[new]


def _blank(arrays: dict[str, Array], name: str, n_scans: int) -> Array:
    return arrays.setdefault(name, np.full(n_scans, np.nan))


def _missed(question: Question, y: Array, values: Array) -> Array:
    return simple.log_loss(y, values) if question.kind == "category" else simple.squared(y, values)


def paired(
    ours: Array,
    theirs: Array,
    base: Array,
    subjects: npt.NDArray[np.str_],
    *,
    n_folds: int,
    seed: int,
    n_bootstrap: int = 2000,
    n_flips: int = 5000,
    alpha: float = 0.05,
) -> Paired:
    """Compare two errors of the same scans; subjects are the unit.

    Parameters
    ----------
    ours, theirs, base : ndarray
        (scan,) errors: of the two, and of the training mean.
    subjects : ndarray
        (scan,) whose scan it is.
    n_folds : int
        Of the cross-fitting, 1 for a single split.
    seed : int
        Of the draws.
    n_bootstrap, n_flips : int
        Resamples of subjects for the interval, and flips of the sign of each subject's difference for the p-value, which is
        two-sided.
    alpha : float
        The interval covers 1 - alpha.

    Notes
    -----
    Resamples and flips take the models as they were fitted, but every two folds share training scans. The variance grows by
    the factor 1 + k / (k - 1) of k folds.

    References
    ----------
    Nadeau & Bengio 2003, doi:10.1023/A:1024068626366.
    """
    codes = pd.factorize(subjects)[0]
    # Networks say their chances and volumes in single precision: what differs by its rounding is the same.
    apart = np.where(np.abs(ours - theirs) > stats.TIE * np.abs(theirs), ours - theirs, 0.0)
    apart, total = np.bincount(codes, weights=apart), np.bincount(codes, weights=base)
    wider = float(np.sqrt(1 + n_folds / (n_folds - 1))) if n_folds > 1 else 1.0
    observed = float(apart.sum() / total.sum())
    n_people = len(apart)
    counts = np.random.default_rng(seed).multinomial(n_people, np.full(n_people, 1 / n_people), size=n_bootstrap)
    ends = np.quantile((counts @ apart) / (counts @ total), [alpha / 2, 1 - alpha / 2])
    low, high = (float(observed + wider * (end - observed)) for end in ends)
    flipped = exchange.sign_flips(n_people, n_flips, seed=seed).astype(np.float64) @ apart / total.sum()
    reached = int(np.count_nonzero(wider * np.abs(flipped) >= abs(observed) * (1 - stats.TIE)))
    return Paired(observed, low, high, (1 + reached) / (1 + n_flips))
