"""Which modality carries what: how much is lost when one is replaced by draws from what the others say of it.

Plain permutation credits a modality with everything it shares with others. Here what a block of features adds to the decision
is predicted from the other modalities by a regression learnt in the training part; on held-out scans this part stays in place,
and only what is left over is exchanged between subjects of whom the others say alike. The decision is linear, so that drawing
the block's part of it is drawing the block. The mean prediction over draws is what would be said without knowing the modality,
and what it loses is known to the modality alone: R² of numbers, not the twice as much by which single draws mislead.

References
----------
Strobl et al. 2008, doi:10.1186/1471-2105-9-307. Debeer & Strobl 2020, doi:10.1186/s12859-020-03622-2. Chamma et al. 2023,
arXiv 2309.07593. Bénard et al. 2022 (why single draws say too much), arXiv 2102.13347. Candès et al. 2018 (conditional
randomisation), doi:10.1111/rssb.12265. Berrett et al. 2020 (conditional permutation), doi:10.1111/rssb.12340.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nilatent.analysis import stats
from nilatent.analysis.fusion.config import FusionConfig
from nilatent.analysis.fusion.cv import Block, Said, side_by_side
from nilatent.analysis.fusion.evidence import loss, scores_of
from nilatent.analysis.fusion.ways import unknowing
from nilatent.analysis.prediction.heads import LinearHead, fit_linear_many
from nilatent.analysis.prediction.measures import interval, subject_weights
from nilatent.analysis.prediction.targets import Target

# Held-out subjects of one fold that are exchanged with one another: the mean over fewer is a draw of its own, more are less
# alike.
LIKE = 10
# Heads of one fold learn from the scans that another fold judges, and the other way round: each pair of folds is counted
# twice, so that under the null what is lost varies with up to twice the variance that draws with the heads as they are show.
CROSSED = np.sqrt(2)


@dataclass(frozen=True)
class Lost:
    """What is lost without knowing a modality, as a share of the loss of knowing no feature at all.

    Parameters
    ----------
    value, low, high : float
        Of numbers this is R²; of classes the share of the log loss. Below 0 where the head is better off without it.
        Interval over held-out subjects.
    p_value : float
        That single draws do as well as the modality itself; one-sided.
    """

    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Importance:
    """What one modality carries beyond the others, and with what it shares with them."""

    conditional: Lost
    marginal: Lost


@dataclass(frozen=True, eq=False)
class Decision:
    """The linear decision on held-out scans of one outer fold, and what each modality adds to it.

    Parameters
    ----------
    rows : ndarray
        Positions among the scans of the target, one per subject.
    intercept : ndarray
        (output,).
    added : ndarray
        (modality, scan, output).
    expected : ndarray
        (modality, scan, output) the same as the other modalities let expect it.
    """

    rows: np.ndarray
    intercept: np.ndarray
    added: np.ndarray
    expected: np.ndarray


def importances(
    blocks: Sequence[Mapping[int, Block]],
    said: Mapping[int, Said],
    target: Target,
    subjects: np.ndarray,
    first: np.ndarray,
    config: FusionConfig,
) -> list[Importance]:
    """What each modality carries in the head that has all of them side by side.

    Parameters
    ----------
    blocks : Sequence of Mapping
        For each modality, its features by outer fold; the same scans for all.
    said : Mapping
        What the head on all blocks, in this order, says by outer fold.
    target : Target
        What is predicted.
    subjects : ndarray
        (scan of the target,) subject.
    first : ndarray
        (scan of the target,) bool: the one scan by which a subject is judged.
    config : FusionConfig
        Draws, resamples, inner folds, error rate and seed.

    Returns
    -------
    list[Importance]
        In the order of the modalities.
    """
    n, n_modalities = len(target.y), len(blocks)
    totals = np.zeros((n_modalities, 2, config.n_draws))
    without = np.zeros((n_modalities, 2, n))
    observed, scale = np.zeros(n), np.zeros(n)
    for fold, one in said.items():
        made = decision([part[fold] for part in blocks], one, subjects, first, config)
        rows, y, whole = made.rows, target.y[made.rows], made.added.sum(axis=0) + made.intercept
        observed[rows] = loss(scores_of(whole, target.kind), y, target.kind)
        scale[rows] = unknowing(y, target.y[one.train], target)
        for number in range(n_modalities):
            rng = np.random.default_rng([config.seed, fold, number])
            rest = whole - made.added[number]
            for way, (kept, like) in enumerate([(made.expected[number], alike(rest)), (0 * rest, 0 * rows)]):
                orders = _orders(like, config.n_draws, rng)
                scores = _scores(rest + kept + (made.added[number] - kept)[orders], target)
                totals[number, way] += (loss(scores, y, target.kind) - observed[rows]).sum(axis=1)
                without[number, way, rows] = loss(_averaged(scores, orders), y, target.kind)
    weights = subject_weights(np.flatnonzero(first), config.n_bootstrap, seed=config.seed)
    lost = without[..., first] - observed[first]
    return [
        Importance(*(_lost(lost[number, way], totals[number, way], scale[first], weights, config) for way in (0, 1)))
        for number in range(n_modalities)
    ]


def decision(
    blocks: Sequence[Block], said: Said, subjects: np.ndarray, first: np.ndarray, config: FusionConfig
) -> Decision:
    """What each modality adds to the decision on held-out scans, and what the others say of that."""
    mine = np.flatnonzero(first[said.test])
    added, expected, start = [], [], 0
    for number, block in enumerate(blocks):
        columns = slice(start, start := start + block.x_train.shape[1])
        learnt, held = (_added(said.head, x, columns) for x in (block.x_train, block.x_test[mine]))
        others = [other for position, other in enumerate(blocks) if position != number]
        added.append(held)
        expected.append(_expected(others, learnt, subjects[said.train], mine, config))
    return Decision(said.test[mine], said.head.intercept, np.array(added), np.array(expected))


def _added(head: LinearHead, x: np.ndarray, columns: slice) -> np.ndarray:
    """(scan, output) part of the decision that comes from some columns."""
    return np.asarray((x - head.centre[columns]) / head.scale[columns] @ head.coefficients[:, columns].T)


def _expected(
    others: Sequence[Block], learnt: np.ndarray, people: np.ndarray, mine: np.ndarray, config: FusionConfig
) -> np.ndarray:
    """(held-out scan, output) what ridge regression on the other modalities, fitted on training scans, expects of a part."""
    heads = fit_linear_many(
        side_by_side([block.x_train for block in others]),
        learnt,
        kind="continuous",
        levels=(),
        subjects=people,
        seed=config.seed,
        n_inner=config.n_inner,
    )
    x = np.hstack([block.x_test[mine] for block in others])
    return np.hstack([head.scores(x) for head in heads])


def alike(rest: np.ndarray) -> np.ndarray:
    """(scan,) strata of at least :data:`LIKE` scans of which the other modalities say alike.

    Parameters
    ----------
    rest : ndarray
        (scan, output) the decision without a modality; of several outputs the direction counts in which they differ most.
    """
    centred = rest - rest.mean(axis=0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    rank = np.argsort(np.argsort(along, kind="stable"), kind="stable")
    return np.asarray(rank * max(1, len(rest) // LIKE) // len(rest))


def _orders(like: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draw, scan) random orders within the strata."""
    orders = np.tile(np.arange(len(like)), (n_draws, 1))
    for stratum in np.unique(like):
        rows = np.flatnonzero(like == stratum)
        orders[:, rows] = rng.permuted(orders[:, rows], axis=1)
    return orders


def _scores(decisions: np.ndarray, target: Target) -> np.ndarray:
    """(draw, scan, class) probabilities, or (draw, scan, 1) numbers, of (draw, scan, output) decisions."""
    flat = scores_of(decisions.reshape(-1, decisions.shape[-1]), target.kind)
    return flat.reshape(*decisions.shape[:-1], -1)


def _averaged(scores: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """(scan, class) mean over the draws in which a scan has what is left over of another one."""
    moved = (orders != np.arange(orders.shape[1]))[..., None]
    # A scan that nobody is like keeps its own.
    moved |= ~moved.any(axis=0)
    return np.asarray((scores * moved).sum(axis=0) / moved.sum(axis=0))


def _lost(lost: np.ndarray, totals: np.ndarray, scale: np.ndarray, weights: np.ndarray, config: FusionConfig) -> Lost:
    """What differences of loss amount to, per loss of knowing nothing.

    Parameters
    ----------
    lost : ndarray
        (scan,) loss without the modality less the loss with it.
    totals : ndarray
        (draw,) loss with a draw less the loss with the modality itself, summed over scans.
    scale : ndarray
        (scan,) loss of knowing nothing.
    weights : ndarray
        (resample, scan).
    config : FusionConfig
        Error rate of the interval.
    """
    value = float(lost.sum() / scale.sum())
    low, high = (
        float(value + CROSSED * (end - value)) for end in interval(weights @ lost / (weights @ scale), config.alpha)
    )
    centre = totals.mean()
    reached = int(np.count_nonzero(centre + CROSSED * (totals - centre) <= stats.TIE * scale.sum()))
    return Lost(value, low, high, (1 + reached) / (1 + len(totals)))
