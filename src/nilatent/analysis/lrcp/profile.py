"""Array core of LRCP: association and discriminability of every region, for two groups or a number.

References
----------
Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354. Nichols et al. 2005 (conjunction),
doi:10.1016/j.neuroimage.2004.12.005.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nilatent.analysis import discriminability, stats
from nilatent.analysis.contrast import Comparison, Gradient
from nilatent.analysis.crossfit import CrossFit, crossfit_association
from nilatent.errors import SettingError

READ_SHARE = 0.5
"""How much of the share that latents predict of a region goes to the readout in the blend."""


@dataclass(frozen=True)
class LrcpConfig:
    """Settings of :func:`nilatent.analysis.lrcp.lrcp`.

    Parameters
    ----------
    group : str
        Column of the groups.
    contrast : str
        ``"A:B"`` with B the reference, or several with commas between, ``"A:B,C:B"``. Empty takes the two groups when there
        are exactly two; of more, every group against the one named like a control group, or every pair without such a one.
    target : str
        Column of a number, such as an age or a test score, that is asked about instead of the groups; empty for groups.
    covariates : tuple[str, ...]
        Confounds removed from regions, latents and groups.
    site : str
        Column of the site: a confound, and the block within which permutations stay. Empty for none.
    adjust_global : bool
        Also remove total grey matter and head size, so that one global latent does not mark every region.
    reading : {"blended", "joint", "linked"}
        Which reading decides ``p_a`` and ``p_d``; the others stand beside it. *Blended* and *joint* use all latents at once
        and do not depend on their basis. *Joint* asks for the region's share explained by all, and of its out-of-fold readout
        from all whether it tells the groups apart. *Blended* asks the same of the region's grey matter blended with its
        readout (:func:`blended`), and controls the false discovery rate of the first. *Linked* uses single latents: the
        largest correlation, and a classifier on the latents correlated with the region.
    n_permutations : int
        Permutations of association and of the readout.
    n_permutations_linked : int
        Permutations of the linked classifier, which is refitted in each.
    n_folds : int
        Cross-validation folds over subjects; cross-fitted latents bring their own.
    alpha : float
        Error rate at which a region is called, above 0 and at most 1: family-wise for the difference, and in the blended
        reading a false discovery rate for being carried.
    seed : int
        Of folds and permutations.
    """

    group: str = "group"
    contrast: str = ""
    target: str = ""
    covariates: tuple[str, ...] = ()
    site: str = ""
    adjust_global: bool = True
    reading: Literal["blended", "joint", "linked"] = "blended"
    n_permutations: int = 5000
    n_permutations_linked: int = 2000
    n_folds: int = 10
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that would call every region, or none whatever the data say.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        for name, lowest in (("n_permutations", 1), ("n_permutations_linked", 1), ("n_folds", 2), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise SettingError(f"lrcp.{name} is {getattr(self, name)}; it must be at least {lowest}.")
        if not 0 < self.alpha <= 1:
            raise SettingError(f"lrcp.alpha is {self.alpha}; it must be above 0 and at most 1, usually 0.05.")


@dataclass(frozen=True, eq=False)
class Profile:
    """Array results of :func:`profile`; every array is (region,) unless another shape is given.

    Parameters
    ----------
    pooled, centred : CorrelationTest
        (region, latent) association of single latents; centred removes the group or the number.
    a_unadjusted : ndarray
        (region, latent) the same without total grey matter and head size removed.
    joint_p, joint_centred_p, joint_unadjusted_p : ndarray
        Association with all latents, family-wise over regions.
    joint_single_p : ndarray
        Association with all latents, of the region by itself.
    readout : ndarray
        (scan, region) out-of-fold prediction of the region from the latents, in units of its residual SD.
    r2 : ndarray
        Cross-validated share of the region that all latents predict (A2_r).
    readout_acc : ndarray
        Balanced accuracy of the readout; NaN for a number.
    readout_r : ndarray
        Partial correlation of the readout with the group (positive: more in cases) or the number.
    readout_r2 : ndarray
        Share of the number's variance predicted out of fold from the readout; NaN for groups.
    readout_p, readout_single_p : ndarray
        p of that correlation, family-wise over regions, and of the region by itself.
    blend : ndarray
        (scan, region) grey matter blended with its readout.
    blend_acc, blend_r, blend_r2, blend_p, blend_single_p : ndarray
        Of the blend, what `readout_acc`, `readout_r`, `readout_r2`, `readout_p` and `readout_single_p` are of the readout.
    carried_q : ndarray
        Association with all latents, by false discovery rate over regions.
    linked : LinkedTest
        The linked reading.
    region_p, region_single_p : ndarray
        The same test on the region's own grey matter, without latents.
    region_r : ndarray
        Partial correlation of the region's own grey matter with the group or the number.
    weighted : ndarray
        Mean of |a_rj| weighted by what each latent says out of sample (`latent_weighted`).
    readout_a : ndarray
        Partial correlation of the readout with its region.
    own_p : ndarray
        p of the own grey matter of the called regions, family-wise over these; NaN where a region is not called.
    folds : ndarray
        (scan,) fold of each scan.
    """

    pooled: stats.CorrelationTest
    centred: stats.CorrelationTest
    a_unadjusted: np.ndarray
    joint_p: np.ndarray
    joint_single_p: np.ndarray
    joint_centred_p: np.ndarray
    joint_unadjusted_p: np.ndarray
    readout: np.ndarray
    r2: np.ndarray
    readout_acc: np.ndarray
    readout_r: np.ndarray
    readout_r2: np.ndarray
    readout_p: np.ndarray
    readout_single_p: np.ndarray
    blend: np.ndarray
    blend_acc: np.ndarray
    blend_r: np.ndarray
    blend_r2: np.ndarray
    blend_p: np.ndarray
    blend_single_p: np.ndarray
    carried_q: np.ndarray
    linked: discriminability.LinkedTest
    region_p: np.ndarray
    region_single_p: np.ndarray
    region_r: np.ndarray
    weighted: np.ndarray
    readout_a: np.ndarray
    own_p: np.ndarray
    folds: np.ndarray


def profile(
    latents: np.ndarray,
    regions: np.ndarray,
    comparison: Comparison | Gradient,
    config: LrcpConfig,
    *,
    unadjusted: np.ndarray,
    crossed: CrossFit | None = None,
    n_contrasts: int = 1,
    label: str = "",
) -> Profile:
    """Association and discriminability of every region: the array core.

    Parameters
    ----------
    latents, regions : ndarray
        (scan, latent) and (scan, region) of the scans of the comparison, in its order.
    comparison : Comparison or Gradient
        Groups or a number, confounds and blocks of the same scans.
    config : LrcpConfig
        Settings.
    unadjusted : ndarray
        (scan, confound) the confounds without total grey matter and head size.
    crossed : CrossFit or None
        Latents of cross-fitted models on the same scans. Given, all but `pooled`, `centred` and `a_unadjusted` rest on
        them: readouts are fitted per model on scans it has seen and predicted for those it has not, and only these, in
        units of the region, are pooled; the fold is a confound, and permutations stay within it.
    n_contrasts : int
        Contrasts asked at once: own grey matter is asked of the regions that stay called when their p is multiplied by it.
        No p of the result is multiplied.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Returns
    -------
    Profile
        Observed values and p-values.
    """
    is_case = comparison.is_case if isinstance(comparison, Comparison) else None
    target = comparison.values if isinstance(comparison, Gradient) else comparison.is_case
    targets = target if is_case is None else discriminability.balanced_targets(is_case)
    blocks, dummies, folds = _exchangeable(comparison, config, crossed)
    confounds, plain = np.hstack([comparison.confounds, dummies]), np.hstack([unadjusted, dummies])
    with_target = np.column_stack([confounds, target])
    orders = stats.permutations(len(latents), config.n_permutations, seed=config.seed, blocks=blocks)
    site = np.full(len(latents), "") if blocks is None else blocks
    within = [f"{block}/{case}" for block, case in zip(site, is_case, strict=True)] if is_case is not None else blocks
    centred_orders = stats.permutations(len(latents), config.n_permutations, seed=config.seed + 1, blocks=within)
    own = latents if crossed is None else crossed.latents
    readout, r2 = discriminability.readout_scores(own, regions, comparison.confounds, folds)
    by_readout = stats.permuted_correlation(readout, targets, orders, confounds=confounds)
    by_region = stats.permuted_correlation(regions, targets, orders, confounds=confounds)
    joint = _joint(regions, latents, orders, confounds, crossed)
    blend = blended(regions, readout, r2, confounds)
    by_blend = stats.permuted_correlation(blend, targets, orders, confounds=confounds)
    carried_q = stats.fdr(joint.p_value)
    pooled = stats.permuted_correlation(regions, latents, orders, confounds=confounds, label=label)
    linked = discriminability.linked_test(
        own,
        regions,
        confounds,
        is_case=is_case,
        values=target if is_case is None else None,
        folds=folds,
        orders=orders[: config.n_permutations_linked],
        label=label,
    )
    readout_r, blend_r = by_readout.observed[:, 0], by_blend.observed[:, 0]
    both = {
        "blended": (carried_q, by_blend.p_fwe[:, 0]),
        "joint": (joint.p_fwe, by_readout.p_fwe[:, 0]),
        "linked": (pooled.p_fwe.min(axis=1), linked.p_fwe),
    }
    called = n_contrasts * np.maximum(*both[config.reading]) <= config.alpha
    way = blend_r if config.reading == "blended" else readout_r
    return Profile(
        pooled=pooled,
        centred=stats.permuted_correlation(regions, latents, centred_orders, confounds=with_target, label=label),
        a_unadjusted=stats.partial_correlation(regions, latents, plain),
        joint_p=joint.p_fwe,
        joint_single_p=joint.p_value,
        joint_centred_p=_joint(regions, latents, centred_orders, with_target, crossed).p_fwe,
        joint_unadjusted_p=_joint(regions, latents, orders, plain, crossed).p_fwe,
        readout=readout,
        r2=r2,
        readout_acc=_accuracy(readout, is_case, folds),
        readout_r=readout_r,
        readout_r2=_predicted(readout, comparison, folds),
        readout_p=by_readout.p_fwe[:, 0],
        readout_single_p=by_readout.p_value[:, 0],
        blend=blend,
        blend_acc=_accuracy(blend, is_case, folds),
        blend_r=blend_r,
        blend_r2=_predicted(blend, comparison, folds),
        blend_p=by_blend.p_fwe[:, 0],
        blend_single_p=by_blend.p_value[:, 0],
        carried_q=carried_q,
        linked=linked,
        region_p=by_region.p_fwe[:, 0],
        region_single_p=by_region.p_value[:, 0],
        region_r=by_region.observed[:, 0],
        weighted=discriminability.latent_weighted(own, regions, confounds, target, folds),
        readout_a=_diagonal(readout, regions, confounds),
        own_p=own_p(regions, targets, orders, confounds=confounds, called=called, way=way),
        folds=folds,
    )


def blended(regions: np.ndarray, readout: np.ndarray, r2: np.ndarray, confounds: np.ndarray | None) -> np.ndarray:
    """Grey matter of each region blended with what the latents say of it: ``(1 - w) m + w readout``, w half of A2.

    The readout has less noise than the region and lends it the effect of others; the region is noisy and its own. No label
    shapes the weight, so a permutation test of the blend is as valid as one of the region. A region of which the latents know
    nothing stays itself.

    Parameters
    ----------
    regions, readout : ndarray
        (scan, region) grey matter, and its out-of-fold prediction from the latents.
    r2 : ndarray
        (region,) cross-validated share A2 of each region that the latents predict.
    confounds : ndarray or None
        (scan, confound) removed from both.

    Returns
    -------
    ndarray
        (scan, region), from parts of unit length.
    """
    basis = stats.confound_basis(confounds, len(regions))
    # A readout that says the same of everybody says nothing.
    speaks = stats.varying(readout, confounds)
    read = np.zeros(regions.shape)
    if speaks.any():
        read[:, speaks] = stats.unit_residuals(readout[:, speaks], basis, what="The readout")
    share = np.where(speaks, READ_SHARE * np.clip(r2, 0, 1), 0.0)
    return np.asarray((1 - share) * stats.unit_residuals(regions, basis, what="The regions") + share * read)


def own_p(
    regions: np.ndarray,
    targets: np.ndarray,
    orders: np.ndarray,
    *,
    confounds: np.ndarray | None,
    called: np.ndarray,
    way: np.ndarray,
) -> np.ndarray:
    """Whether a called region's own grey matter supports it: few latents describe many regions and lend them effects.

    The maximum is taken over the regions found alone, so that this asks less than a test over all regions. It can only take
    a region away, so it costs no error rate; on simulated cohorts it halved the unplanted regions for one point of power.

    Parameters
    ----------
    regions : ndarray
        (scan, region) grey matter.
    targets : ndarray
        (scan,) what the readout was tested against.
    orders : ndarray
        (permutation, scan) orders.
    confounds : ndarray or None
        (scan, confound) removed from both.
    called : ndarray
        (region,) bool.
    way : ndarray
        (region,) correlation with the target of what decided, for its direction.

    Returns
    -------
    ndarray
        (region,) p; 1 where the grey matter goes the other way, NaN where a region is not called.
    """
    found, chosen = np.full(len(called), np.nan), np.flatnonzero(called)
    if len(chosen):
        test = stats.permuted_correlation(regions[:, chosen], targets, orders, confounds=confounds)
        agrees = np.sign(test.observed[:, 0]) == np.sign(way[chosen])
        found[chosen] = np.where(agrees, test.p_fwe[:, 0], 1.0)
    return found


def _exchangeable(
    comparison: Comparison | Gradient, config: LrcpConfig, crossed: CrossFit | None
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Blocks of permutations, columns that say the fold where it is a confound, and folds."""
    n_scans = len(comparison.confounds)
    if crossed is None:
        folds = discriminability.label_free_folds(n_scans, config.n_folds, seed=config.seed + 2)
        return comparison.blocks, np.empty((n_scans, 0)), folds
    site = np.full(n_scans, "") if comparison.blocks is None else comparison.blocks
    blocks = np.array([f"{block}/{fold}" for block, fold in zip(site, crossed.folds, strict=True)])
    return blocks, crossed.dummies, crossed.folds


def _joint(
    regions: np.ndarray, latents: np.ndarray, orders: np.ndarray, confounds: np.ndarray, crossed: CrossFit | None
) -> stats.ShareTest:
    if crossed is not None:
        return crossfit_association(crossed, regions, orders, confounds=confounds)
    return stats.permuted_share(regions, latents, orders, confounds=confounds, penalty=discriminability.PENALTY)


def _accuracy(readout: np.ndarray, is_case: np.ndarray | None, folds: np.ndarray) -> np.ndarray:
    if is_case is None:
        return np.full(readout.shape[1], np.nan)
    return discriminability.score_accuracy(readout, is_case, folds)


def _predicted(readout: np.ndarray, comparison: Comparison | Gradient, folds: np.ndarray) -> np.ndarray:
    if isinstance(comparison, Comparison):
        return np.full(readout.shape[1], np.nan)
    return discriminability.target_r2(readout, comparison.values, comparison.confounds, folds)


def _diagonal(left: np.ndarray, right: np.ndarray, confounds: np.ndarray) -> np.ndarray:
    basis = stats.confound_basis(confounds, len(left))
    x = stats.unit_residuals(left, basis, what="The readout of the regions")
    return np.asarray((x * stats.unit_residuals(right, basis, what="The regions")).sum(axis=0))


def ranking_score(r2: np.ndarray, bal_acc: np.ndarray) -> np.ndarray:
    """Ranking score sqrt(A_r max(0, 2 bal_acc - 1)), in [0, 1]; it orders the table and decides nothing.

    A_r is the cross-validated multiple correlation sqrt(max(A2_r, 0)) of the region with all latents, not the largest
    single |a_rj|: a region's signal may spread over several latents, and how much falls on one depends on their basis.
    """
    association = np.sqrt(np.clip(r2, 0, 1))
    return np.asarray(np.sqrt(association * np.maximum(0, 2 * bal_acc - 1)))
