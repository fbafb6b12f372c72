"""Ways of telling a target from several modalities: each alone, the best one chosen inside, side by side, and late fusion.

Whatever combines heads (weights, the choice, the threshold of a decision) is learnt from the evidence of inner held-out
scans of the training part.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nilatent.analysis.fusion.cv import Said
from nilatent.analysis.fusion.evidence import Stack, average, evidence, fit_stack, loss, scores_of
from nilatent.analysis.prediction.cv import Told
from nilatent.analysis.prediction.heads import calls
from nilatent.analysis.prediction.inner import best_threshold
from nilatent.analysis.prediction.targets import Target

SINGLE, INSIDE = "single", "best single, chosen inside"
EARLY, JOINT = "early fusion", "joint latents"
AVERAGE, STACKED = "late fusion, average", "late fusion, weighted"
PRESENT, PRESENT_SINGLE = "late fusion of what is there", "best single of what is there"

ByFold = Mapping[int, Said]
"""What the heads of one feature set say, by outer fold."""


@dataclass(frozen=True, eq=False)
class Piece:
    """What one way says of held-out scans of one outer fold: (held-out scan, class or 1) scores, and what is called."""

    test: np.ndarray
    scores: np.ndarray
    called: np.ndarray


@dataclass(frozen=True, eq=False)
class Shown:
    """Evidence of all modalities in one outer fold, aligned to all scans of the target.

    Parameters
    ----------
    inner, outer : ndarray
        (scan of the target, modality, output) evidence of training scans by inner heads, and of held-out scans; NaN
        elsewhere and where a scan lacks the modality.
    train, test : ndarray
        Positions of scans with one modality at least.
    """

    inner: np.ndarray
    outer: np.ndarray
    train: np.ndarray
    test: np.ndarray


def told_of(pieces: Iterable[Piece], target: Target, folds: np.ndarray) -> Told:
    """Pieces of all folds put together.

    Parameters
    ----------
    pieces : Iterable[Piece]
        Of every scan of the target once.
    target : Target
        What is predicted.
    folds : ndarray
        (scan of the target,) outer fold.
    """
    n = len(target.y)
    scores = np.full((n, 1, max(len(target.levels), 1)), np.nan)
    called, constant = np.full((n, 1), np.nan), np.empty((n, 1))
    for piece in pieces:
        scores[piece.test, 0], called[piece.test, 0] = piece.scores, piece.called
    for fold in np.unique(folds):
        known = target.y[folds != fold]
        constant[folds == fold] = known.mean() if target.kind == "continuous" else np.round(np.median(known))
    return Told(scores, called, constant, folds)


def alone(said: ByFold, target: Target) -> list[Piece]:
    """One head as it is: a single modality, several side by side, or joint latents."""
    return [_own(one, target) for one in said.values()]


def _own(said: Said, target: Target) -> Piece:
    head = said.head
    called = calls(said.scores, target.kind, threshold=head.threshold, prior=head.prior)
    return Piece(said.test, said.scores, called)


def shown(modalities: Sequence[ByFold], target: Target, fold: int) -> Shown:
    """Evidence of all modalities in one outer fold."""
    there = [(number, said[fold]) for number, said in enumerate(modalities) if fold in said]
    shape = (len(target.y), len(modalities), there[0][1].inner.shape[1])
    inner, outer = np.full(shape, np.nan), np.full(shape, np.nan)
    for number, said in there:
        inner[said.train, number] = said.inner
        outer[said.test, number] = evidence(said.scores, target.kind)
    train, test = (np.flatnonzero(np.isfinite(one[:, :, 0]).any(axis=1)) for one in (inner, outer))
    return Shown(inner, outer, train, test)


def averaged(modalities: Sequence[ByFold], target: Target, folds: Iterable[int]) -> list[Piece]:
    """Late fusion by the mean evidence of the modalities that a scan has."""
    pieces = []
    for fold in folds:
        seen = shown(modalities, target, fold)
        known, said = average(seen.inner[seen.train]), average(seen.outer[seen.test])
        pieces.append(_called(seen.test, said, known, target, target.y[seen.train]))
    return pieces


def stacked(modalities: Sequence[ByFold], target: Target, folds: Iterable[int]) -> tuple[list[Piece], np.ndarray]:
    """Late fusion by one weight per modality, for scans that have all; and the (fold, modality) weights."""
    pieces, weights = [], []
    for fold in folds:
        seen = shown(modalities, target, fold)
        known, y = seen.inner[seen.train], target.y[seen.train]
        dealt = modalities[0][fold].dealt
        whole = _fitted(known, y, target)
        # The threshold, too, is chosen on scans that had no say in the weights.
        honest = np.empty((len(y), known.shape[2]))
        for inner in range(int(dealt.max()) + 1):
            apart = dealt == inner
            honest[apart] = _fitted(known[~apart], y[~apart], target).say(known[apart])
        pieces.append(_called(seen.test, whole.say(seen.outer[seen.test]), honest, target, y))
        weights.append(whole.weights)
    return pieces, np.array(weights)


def _fitted(said: np.ndarray, y: np.ndarray, target: Target) -> Stack:
    return fit_stack(said, y, target.kind, n_levels=len(target.levels))


def _called(test: np.ndarray, said: np.ndarray, known: np.ndarray, target: Target, y: np.ndarray) -> Piece:
    """Scores and calls of combined evidence; the threshold from the combined evidence of training scans."""
    scores, threshold = scores_of(said, target.kind), np.nan
    prior = np.array([(y == code).mean() for code in range(len(target.levels))])
    if target.kind == "binary":
        threshold = best_threshold(scores_of(known, target.kind)[:, 1], y)
    return Piece(test, scores, calls(scores, target.kind, threshold=threshold, prior=prior))


def inner_skill(said: Said, target: Target) -> float:
    """Share of the inner loss of knowing no feature that a head saves on the scans that have its modality."""
    y = target.y[said.train]
    lost = loss(scores_of(said.inner, target.kind), y, target.kind)
    return float(1 - lost.mean() / unknowing(y, y, target).mean())


def unknowing(y: np.ndarray, known: np.ndarray, target: Target) -> np.ndarray:
    """(scan,) loss of saying the mean, or the shares of the classes, of `known` of scans with truth `y`."""
    if target.kind == "continuous":
        return np.asarray(np.square(y - known.mean()))
    # Half a scan for each class: one that the training part lacks is not impossible.
    counts = np.bincount(known.astype(np.intp), minlength=len(target.levels)) + 0.5
    return np.asarray(-np.log(counts / counts.sum())[y.astype(np.intp)])


def best_inside(modalities: Sequence[ByFold], target: Target, folds: Iterable[int]) -> tuple[list[Piece], np.ndarray]:
    """The single modality that does best on inner held-out scans, of those that a scan has; and the (fold,) choice."""
    pieces, chosen = [], []
    for fold in folds:
        there = {number: said[fold] for number, said in enumerate(modalities) if fold in said}
        order = sorted(there, key=lambda number: -inner_skill(there[number], target))
        chosen.append(order[0])
        done = np.empty(0, dtype=np.intp)
        for number in order:
            piece = _own(there[number], target)
            left = ~np.isin(piece.test, done)
            pieces.append(Piece(piece.test[left], piece.scores[left], piece.called[left]))
            done = np.union1d(done, piece.test)
    return pieces, np.array(chosen)
