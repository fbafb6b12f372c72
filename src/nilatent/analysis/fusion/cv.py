"""Heads of one feature set, or of several side by side, in every outer fold, and what they say inside the training part.

The outer folds, the inner folds, the search for the penalty and the heads are those of
:mod:`nilatent.analysis.prediction.cv`. What combines heads is learnt from what they say of inner held-out scans, by heads
whose penalty was chosen without these scans too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nilatent.analysis.fusion.evidence import evidence
from nilatent.analysis.prediction.cv import outer_parts
from nilatent.analysis.prediction.heads import LinearHead, fit_linear_many
from nilatent.analysis.prediction.inner import inner_folds, subject_ranks
from nilatent.analysis.prediction.sets import FeatureSet
from nilatent.analysis.prediction.solver import Design, make_design
from nilatent.analysis.prediction.targets import Target
from nilatent.errors import SettingError

# Axes with less than this share of the largest are rounding.
TINY = 1e-8


@dataclass(frozen=True, eq=False)
class Block:
    """Features of one modality in one outer fold.

    Parameters
    ----------
    train, test : ndarray
        Positions among the scans of the target.
    x_train, x_test : ndarray
        (scan, feature).
    """

    train: np.ndarray
    test: np.ndarray
    x_train: np.ndarray
    x_test: np.ndarray


@dataclass(frozen=True, eq=False)
class Said:
    """What a head says of held-out scans of one outer fold, and what inner heads say of its training scans.

    Parameters
    ----------
    train, test : ndarray
        Positions among the scans of the target.
    dealt : ndarray
        (training scan,) inner fold.
    inner : ndarray
        (training scan, output) evidence, by heads that have seen neither the scan nor another one of its subject.
    scores : ndarray
        (held-out scan, class) probabilities, or (held-out scan, 1) numbers.
    head : LinearHead
        Fitted on all training scans.
    """

    train: np.ndarray
    test: np.ndarray
    dealt: np.ndarray
    inner: np.ndarray
    scores: np.ndarray
    head: LinearHead


def blocks_of(features: FeatureSet, target: Target, folds: np.ndarray, rows: np.ndarray) -> dict[int, Block]:
    """The features of a modality in every outer fold, with positions among all scans of the target.

    Parameters
    ----------
    features : FeatureSet
        Checked by :func:`~nilatent.analysis.prediction.sets.check_sets`.
    target : Target
        What is predicted.
    folds : ndarray
        (scan of the cohort,) outer fold.
    rows : ndarray
        Positions among the scans of the target: those that have the modality.

    Raises
    ------
    SettingError
        When no feature is left, or one fold holds all scans that have the modality.
    """
    held_in = np.unique(np.asarray(folds)[target.rows[rows]])
    if len(held_in) < 2:
        raise SettingError(f"all scans that have '{features.name}' are held out in one and the same fold")
    parts = outer_parts(features, replace(target, rows=target.rows[rows], y=target.y[rows]), folds)
    return {
        int(fold): Block(rows[part.train], rows[part.test], part.x_train, part.x_test)
        for fold, part in zip(held_in, parts, strict=True)
    }


def side_by_side(blocks: Sequence[np.ndarray]) -> Design:
    """Several blocks of features as one design in which each block has the same share of the variance.

    A penalty then means the same for a block of three features and for one of three hundred. With one block it is
    :func:`~nilatent.analysis.prediction.solver.make_design` of it.

    Parameters
    ----------
    blocks : Sequence[ndarray]
        (scan, feature) each, of the training scans. A block in which nothing varies has no share.

    Raises
    ------
    SettingError
        When no feature varies.
    """
    designs = [_design(x) for x in blocks]
    known = [design for design in designs if design is not None]
    if not known:
        raise SettingError("No feature varies between the training scans, so nothing can be predicted from them.")
    if len(blocks) == 1:
        return known[0]
    root = np.sqrt(len(known))
    left, sizes, axes = np.linalg.svd(np.hstack([one.rotated for one in known]) / root, full_matrices=False)
    kept = sizes > TINY * sizes[0]
    left, sizes, axes = left[:, kept], sizes[kept], axes[kept]
    back, scale, start = [], [], 0
    for design, x in zip(designs, blocks, strict=True):
        wide = 0 if design is None else len(design.axes)
        mine = axes[:, start : start + wide] / root
        back.append(np.zeros((len(axes), x.shape[1])) if design is None else mine @ design.axes)
        scale.append(np.ones(x.shape[1]) if design is None else design.scale)
        start += wide
    return Design(
        centre=np.concatenate([x.mean(axis=0) for x in blocks]),
        scale=np.concatenate(scale),
        rotated=left * sizes,
        axes=np.hstack(back),
        variance=np.square(sizes) / len(left),
    )


def _design(x: np.ndarray) -> Design | None:
    """The design of one block; None where nothing varies."""
    try:
        return make_design(x)
    except SettingError:
        if np.isfinite(x).all():
            return None
        raise


def say(blocks: Sequence[Block], target: Target, subjects: np.ndarray, *, n_inner: int, seed: int) -> Said:
    """Fit the head of one outer fold on the blocks side by side, and inner heads that give honest evidence of training scans.

    Parameters
    ----------
    blocks : Sequence[Block]
        One modality, or several of the same scans.
    target : Target
        What is predicted.
    subjects : ndarray
        (scan of the target,) subject.
    n_inner, seed : int
        Inner folds, and the draw that deals subjects to them.
    """
    train, test = blocks[0].train, blocks[0].test
    y, people = target.y[train], subjects[train]

    def fitted(rows: np.ndarray) -> LinearHead:
        return fit_linear_many(
            side_by_side([block.x_train[rows] for block in blocks]),
            y[rows][:, None],
            kind=target.kind,
            levels=target.levels,
            subjects=people[rows],
            seed=seed,
            n_inner=n_inner,
        )[0]

    x_train = np.hstack([block.x_train for block in blocks])
    ranks = subject_ranks(people, seed=seed)
    dealt = inner_folds(None if target.kind == "continuous" else y, *ranks, n_inner=n_inner)
    inner = np.empty((len(train), max(len(target.levels) - (target.kind != "multi-class"), 1)))
    for fold in range(int(dealt.max()) + 1):
        apart = dealt == fold
        inner[apart] = evidence(fitted(np.flatnonzero(~apart)).scores(x_train[apart]), target.kind)
    head = fitted(np.arange(len(train)))
    scores = head.scores(np.hstack([block.x_test for block in blocks]))
    return Said(train, test, dealt, inner, scores, head)
