"""Utility: what a classifier learns from synthetic brains, judged on real brains that nobody has seen.

Train on synthetic, test on real, beside train on real. The density of the latents is conditioned on the group, so the
synthetic scans come with labels; as many are drawn as there are real training scans, with the same labels.

References
----------
Esteban, Hyland & Raetsch 2017, arXiv:1706.02633 (train on synthetic, test on real). DeLong et al. 1988,
doi:10.2307/2531595, on comparing areas from the same subjects; here by bootstrap over subjects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import NotComparableError, compare_groups, level_words
from nilatent.analysis.density import fit_density
from nilatent.analysis.density.columns import common
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.prediction.heads import fit_linear
from nilatent.analysis.prediction.measures import auc, interval, subject_weights
from nilatent.atlas import RegionWeights

REAL, SYNTHETIC, BOTH, PCA = "real scans", "synthetic scans", "real and synthetic scans", "synthetic scans of PCA"
MIN_TRAINING, MIN_TESTED = 8, 5
"""Subjects per group that a head learns from, in every latent space, and that it is judged on, in all of them."""
COLUMNS = (
    "trained_on", "auc", "auc_low", "auc_high", "auc_gain", "auc_gain_low", "auc_gain_high", "balanced_accuracy",
    "balanced_accuracy_low", "balanced_accuracy_high", "n_train", "n_tested",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Told:
    """What one kind of training said of every tested scan.

    Parameters
    ----------
    scores : ndarray
        (repeat, scan) probability of the case group.
    called : ndarray
        (repeat, scan) bool.
    n_train : float
        Mean number of training scans of a head.
    """

    scores: np.ndarray
    called: np.ndarray
    n_train: float


@dataclass(frozen=True, eq=False)
class Fold:
    """Real scans of one latent space, one per subject, in whose place synthetic ones are put.

    Parameters
    ----------
    space : LatentSpace
        Draws the synthetic ones.
    train, test : ndarray
        Rows of the space.
    x : ndarray
        (row of the space, region) regional means of all real scans.
    is_case : ndarray
        (row of the space,) bool.
    """

    space: LatentSpace
    train: np.ndarray
    test: np.ndarray
    x: np.ndarray
    is_case: np.ndarray


def utility(
    spaces: Mapping[str, Sequence[LatentSpace]],
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    weights: RegionWeights,
    *,
    group: str,
    contrast: str = "",
    columns: Sequence[str] = (),
    n_repeats: int = 5,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Train on synthetic or real scans, test on unseen real ones.

    Parameters
    ----------
    spaces : Mapping
        :data:`SYNTHETIC`, and perhaps :data:`PCA`, to latent spaces over the same scans with the same parts, one per
        cross-fitted model. All scans of a space are judged by the head of that space only.
    regions : DataFrame
        Index scan_id: regional means of the real scans, by the same weights as those of the images.
    scans : DataFrame
        Index scan_id: the cohort.
    weights : RegionWeights
        The atlas inside the mask of the images.
    group, contrast : str
        As in :func:`nilatent.analysis.contrast.compare_groups`.
    columns : Sequence[str]
        On which the density is conditioned beside the group, such as sex.
    n_repeats : int
        Synthetic cohorts that are drawn, each with a head of its own; what they say is averaged.
    n_bootstrap : int
        Resamples of the tested subjects.
    seed : int
        Of all draws.

    Returns
    -------
    DataFrame
        :data:`COLUMNS`, the highest area first. A gain is the difference to training on real scans, with its interval over the
        tested subjects; areas are over pairs that one head has judged.

    Raises
    ------
    NotComparableError
        When a group has too few subjects, with the reason.
    """
    compared = compare_groups(scans, group=group, contrast=contrast)
    folds = {
        name: [_fold(space, regions, scans, compared.rows, group=group, case=compared.case) for space in of_kind]
        for name, of_kind in spaces.items()
    }
    real = folds[SYNTHETIC]
    _check(real, compared.case, compared.reference)
    told = {REAL: _told([(fold.x[fold.train], fold.is_case[fold.train]) for fold in real], real, seed=seed)}
    for name, of_kind in folds.items():
        draws = [
            _synthetic(fold, scans, weights, [group, *columns], n_repeats=n_repeats, seed=seed + 101 * number)
            for number, fold in enumerate(of_kind)
        ]
        made = [
            [(of_fold[repeat], fold.is_case[fold.train]) for of_fold, fold in zip(draws, of_kind, strict=True)]
            for repeat in range(n_repeats)
        ]
        told[name] = _stacked([_told(one, real, seed=seed) for one in made])
        if name == SYNTHETIC:
            joined = [
                [
                    (np.vstack([fold.x[fold.train], x]), np.tile(fold.is_case[fold.train], 2))
                    for (x, _), fold in zip(one, real, strict=True)
                ]
                for one in made
            ]
            told[BOTH] = _stacked([_told(one, real, seed=seed) for one in joined])
    return _table(told, real, n_bootstrap=n_bootstrap, seed=seed)


def _fold(
    space: LatentSpace, regions: pd.DataFrame, scans: pd.DataFrame, rows: np.ndarray, *, group: str, case: str
) -> Fold:
    chosen = space.scans.isin(scans.index[rows])
    train, test = np.flatnonzero(chosen & space.training), np.flatnonzero(chosen & space.unseen)
    is_case = (level_words(scans[group]).loc[space.scans] == case).to_numpy(dtype=bool)
    return Fold(space, train, test, regions.loc[space.scans].to_numpy(dtype=np.float64), is_case)


def _check(folds: Sequence[Fold], case: str, reference: str) -> None:
    tested = np.concatenate([fold.is_case[fold.test] for fold in folds])
    learnt = [min(int((fold.is_case[fold.train] == side).sum()) for fold in folds) for side in (True, False)]
    judged = [int((tested == side).sum()) for side in (True, False)]
    if min(learnt) < MIN_TRAINING or min(judged) < MIN_TESTED:
        raise NotComparableError(
            f"too few: {learnt[0]} {case} and {learnt[1]} {reference} to learn from, and {judged[0]} and {judged[1]} that no "
            f"model has seen; {MIN_TRAINING} and {MIN_TESTED} of each are needed"
        )


def _synthetic(
    fold: Fold, scans: pd.DataFrame, weights: RegionWeights, columns: Sequence[str], *, n_repeats: int, seed: int
) -> list[np.ndarray]:
    """Synthetic cohorts (training scan, region); each scan has the group and the columns of the real one in its place."""
    space, rng = fold.space, np.random.default_rng(seed)
    of_training = scans.loc[space.scans[fold.train]]
    # A column that a training scan lacks, or that is nearly the same for all, can be no condition.
    people = space.subjects[fold.train]
    usable = [name for name in columns if common(of_training[[name]], people).all()]
    known = [name for name in usable if of_training[name].nunique() > 1]
    # The density learns from the compared scans alone: another group, or a scan without one, would bend it.
    training = np.isin(np.arange(len(space.scans)), fold.train)
    density = fit_density(replace(space, training=training), scans=scans, columns=known, kind="gaussian", seed=seed)
    found = []
    for _ in range(n_repeats):
        places = density.sample(len(fold.train), rng=rng, told=of_training[known])
        images = space.draw(places, of_training if space.told else None)
        found.append(np.concatenate([(weights.matrix @ batch.T).T / weights.n_voxels for batch in images]))
    return found


def _told(training: Sequence[tuple[np.ndarray, np.ndarray]], folds: Sequence[Fold], *, seed: int) -> Told:
    """Heads of every latent space on its tested scans, these in the order of the spaces."""
    scores, called, sizes = [], [], []
    for (x, is_case), fold in zip(training, folds, strict=True):
        head = fit_linear(
            x,
            is_case.astype(np.intp),
            kind="binary",
            levels=("reference", "case"),
            subjects=np.arange(len(x)),
            seed=seed,
        )
        tested = fold.x[fold.test]
        scores.append(head.scores(tested)[:, 1])
        called.append(head.call(tested) == 1)
        sizes.append(len(x))
    return Told(np.concatenate(scores)[None], np.concatenate(called)[None], float(np.mean(sizes)))


def _stacked(repeats: Sequence[Told]) -> Told:
    return Told(
        np.concatenate([one.scores for one in repeats]),
        np.concatenate([one.called for one in repeats]),
        float(np.mean([one.n_train for one in repeats])),
    )


def _table(told: Mapping[str, Told], folds: Sequence[Fold], *, n_bootstrap: int, seed: int) -> pd.DataFrame:
    is_case = np.concatenate([fold.is_case[fold.test] for fold in folds])
    of_fold = np.repeat(np.arange(len(folds)), [len(fold.test) for fold in folds])
    subjects = np.concatenate([fold.space.subjects[fold.test] for fold in folds])
    # The first row is the cohort itself.
    weights = np.vstack([np.ones(len(is_case)), subject_weights(subjects, n_bootstrap, seed=seed)])
    areas, right = {}, {}
    for name, one in told.items():
        areas[name] = np.mean([auc(scores, is_case, weights, of_fold) for scores in one.scores], axis=0)
        right[name] = np.mean([_balanced(called, is_case, weights) for called in one.called], axis=0)
    rows = []
    for name, one in told.items():
        row = {"trained_on": name, "n_train": one.n_train, "n_tested": len(np.unique(subjects))}
        gain = areas[name] - areas[REAL]
        for measure, drawn in (("auc", areas[name]), ("auc_gain", gain), ("balanced_accuracy", right[name])):
            row[measure] = float(drawn[0])
            row[f"{measure}_low"], row[f"{measure}_high"] = interval(drawn[1:], 0.05)
        rows.append(row)
    return pd.DataFrame(rows)[list(COLUMNS)].sort_values("auc", ascending=False, kind="stable", ignore_index=True)


def _balanced(called: np.ndarray, is_case: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draw,) mean of sensitivity and specificity; NaN where a group is not drawn."""
    found = []
    for side in (True, False):
        n = weights @ (is_case == side)
        found.append(np.where(n > 0, weights @ ((is_case == side) & (called == side)) / np.maximum(n, 1e-300), np.nan))
    return np.asarray(np.mean(found, axis=0))
