"""Error profile: which regions make a scan hard to reconstruct, beyond what overall grey matter and covariates tell.

The log of the out-of-sample reconstruction error is predicted from regional grey matter, out of fold and beyond a null
model. Only when that *gain* is significant (the gate) do SHAP values of held-out scans say which regions carry it.

References
----------
Lundberg & Lee 2017 (SHAP), arXiv:1705.07874. Freedman & Lane 1983, doi:10.1080/07350015.1983.10509354.
Holm 1979 (adjustment for the number of models).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nilatent.analysis import bounds, stats
from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.error_profile import classes as classes
from nilatent.analysis.error_profile import gain as gaining
from nilatent.analysis.error_profile import models as models
from nilatent.analysis.error_profile import shap as shap_values
from nilatent.analysis.error_profile import words as words
from nilatent.analysis.error_profile.classes import Groups
from nilatent.analysis.error_profile.gain import Gain
from nilatent.analysis.error_profile.models import Part, Problem
from nilatent.analysis.error_profile.scans import Chosen, check_errors, choose
from nilatent.analysis.error_profile.table import ByClass, region_data, region_table
from nilatent.atlas import RegionWeights, region_map
from nilatent.errors import CohortError, SettingError
from nilatent.finding import Finding, not_run
from nilatent.volumes import Grid

NAME = "error_profile"
QUESTION = "Which brain regions make a scan hard to reconstruct, beyond overall grey matter, age, sex and head size?"
MODELS = ("ridge", "trees")


@dataclass(frozen=True)
class ErrorProfileConfig:
    """Settings of :func:`error_profile`.

    Parameters
    ----------
    group : str
        Column of the groups between which contributions are compared; any number of groups.
    covariates : tuple[str, ...]
        Columns of the null model beside total grey matter, head size, age and sex, which it takes where the cohort has them.
    site : str
        Column of the site: part of the null model, and the block within which permutations stay. Empty for none.
    models : tuple[str, ...]
        ``"ridge"`` and ``"trees"``, or one of them. Two share the error rate (Holm).
    n_permutations : int
        Permutations of the ridge gain and of the class differences.
    n_permutations_trees : int
        Permutations of the gain of the trees at most; each grows all trees again.
    n_stop : int
        The permutations of the trees stop when this many reach the observed gain; the p-value stays valid.
    n_folds : int
        Folds of the cross-validation over subjects.
    n_repeats : int
        Partitions into folds. SHAP values, and the gain of ridge, are means over them; the gain of the trees uses the first.
    cluster_r : float
        Correlation at which regions form a cluster, above 0 and below 1.
    alpha : float
        Level of the gate, above 0 and at most 1.
    seed : int
        Of folds, permutations and trees.
    """

    group: str = "group"
    covariates: tuple[str, ...] = ()
    site: str = ""
    models: tuple[str, ...] = MODELS
    n_permutations: int = 2000
    n_permutations_trees: int = 199
    n_stop: int = 10
    n_folds: int = 5
    n_repeats: int = 5
    cluster_r: float = 0.6
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that would open the gate whatever the data say, or never.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        least = {"n_permutations": 1, "n_permutations_trees": 1, "n_stop": 1, "n_folds": 2, "n_repeats": 1, "seed": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise SettingError(f"error_profile.{name} is {getattr(self, name)}; it must be at least {lowest}.")
        for name in ("alpha", "cluster_r"):
            if not 0 < getattr(self, name) <= 1:
                raise SettingError(f"error_profile.{name} is {getattr(self, name)}; it must be above 0 and at most 1.")
        if not self.models or not set(self.models) <= set(MODELS) or len(set(self.models)) < len(self.models):
            raise SettingError(
                f"error_profile.models is {list(self.models)}. Name 'ridge', 'trees' or both, each once."
            )


def error_profile(
    errors: pd.DataFrame,
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    weights: RegionWeights,
    grid: Grid,
    mask: npt.NDArray[np.bool_],
    config: ErrorProfileConfig,
) -> Finding:
    """Which regions tell how well a scan is reconstructed, if any does.

    Parameters
    ----------
    errors : DataFrame
        Index scan_id; ``error`` mean squared error inside the mask, above 0, by a model that has not seen the subject;
        ``fold`` which cross-fitted model that was; ``subject_id``; optionally ``in_training``, which must be False.
    regions : DataFrame
        Index scan_id, one column per region in the order of `weights`: mean grey matter.
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named in `config`; ``age``, ``sex`` and ``head_size_factor`` are
        used when present.
    weights : RegionWeights
        The atlas on the grid.
    grid, mask : Grid, ndarray
        Grid and (x, y, z) mask of the volumes.
    config : ErrorProfileConfig
        Settings.

    Returns
    -------
    Finding
        Gain of the regions by model; with the gate open, table and maps of regions and SHAP values of held-out scans;
        with the gate closed, an empty table and no map; or "not run" with the reason.

    Raises
    ------
    LeakageError
        When an error comes from a model that has seen the subject, or visits of a subject straddle folds.
    CohortError
        When errors, regions and scans do not belong together.
    SettingError
        When a setting names what does not exist.
    """
    check_errors(errors, scans)
    if list(regions.columns) != list(weights.names):
        raise CohortError("The columns of the regions are not the regions of the atlas. Compute the regions again.")
    if not errors.index.isin(regions.index).all():
        raise CohortError("The table of errors holds scans without regions. Compute the regions again.")
    try:
        chosen = choose(
            errors, regions, scans, n_voxels=weights.n_voxels, covariates=config.covariates, site=config.site
        )
    except NotComparableError as error:
        return not_run(NAME, QUESTION, str(error))
    problem = chosen.problem
    partitions, orders = prepared(problem, config)
    gains = [gain_of(problem, partitions, model, orders, config) for model in config.models]
    gate = gaining.holm([gain.p_value for gain in gains])
    opened = [gain for gain, p in zip(gains, gate, strict=True) if p <= config.alpha]
    deciding = max(opened, key=lambda gain: gain.gain).model if opened else ""
    data = _gain_data(gains, gate, config.alpha)
    facts: dict[str, Any] = {"deciding": deciding, "alpha": config.alpha}
    groups = classes.groups_of(chosen.scans, config.group, problem.null)
    table, maps = pd.DataFrame(), {}
    if deciding:
        table, by_region, agreement = _explained(
            chosen, partitions, orders, weights, config, opened=opened, deciding=deciding, groups=groups
        )
        data, facts = data.merge(by_region), facts | agreement
        by_label = table.set_index("label").reindex(weights.labels)
        values = {name: by_label[name].fillna(0).to_numpy() for name in ("mean_abs_phi", "signed_effect")}
        maps = {name: region_map(weights, column, grid, mask) for name, column in values.items()}
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=words.answer(gains, gate, table, facts),
        table=table,
        data=data.assign_attrs(facts),
        settings=asdict(config) | {"null_model": chosen.null_model, "left_out": chosen.left_out},
        caveats=words.caveats(
            chosen,
            facts,
            groups,
            badges=dict(zip(data["model"].values, data["badge"].values, strict=True)),
            site=config.site,
            flat=list(np.asarray(weights.names)[~chosen.kept]),
        ),
        n_scans=len(chosen.scans),
        n_subjects=len(chosen.scans),
        maps=maps,
    )


def prepared(problem: Problem, config: ErrorProfileConfig) -> tuple[list[list[Part]], np.ndarray]:
    """The partitions into folds, and the (permutation, scan) orders that stay within the blocks."""
    # The orders draw from config.seed, so the folds must not: equal seeds would tie one to the other.
    partitions = [
        models.parts_of(problem, models.dealt_folds(problem.blocks, config.n_folds, seed=config.seed + 1 + repeat))
        for repeat in range(config.n_repeats)
    ]
    n_orders = max(config.n_permutations, config.n_permutations_trees)
    orders = stats.permutations(len(problem.log_error), n_orders, seed=config.seed, blocks=problem.blocks)
    return partitions, orders


def gain_of(
    problem: Problem, partitions: Sequence[Sequence[Part]], model: str, orders: np.ndarray, config: ErrorProfileConfig
) -> Gain:
    """The gain of one model; growing trees anew is slow, so theirs rests on one partition and fewer permutations."""
    if model == "trees":
        partitions, orders = partitions[:1], orders[: config.n_permutations_trees]
    else:
        orders = orders[: config.n_permutations]
    return gaining.gain_test(problem, partitions, model, orders, n_stop=config.n_stop, seed=config.seed)


def _explained(
    chosen: Chosen,
    partitions: Sequence[Sequence[Part]],
    orders: np.ndarray,
    weights: RegionWeights,
    config: ErrorProfileConfig,
    *,
    opened: Sequence[Gain],
    deciding: str,
    groups: Groups,
) -> tuple[pd.DataFrame, xr.Dataset, dict[str, float]]:
    """Table, figure data and stability; SHAP of every model whose gate is open, ranked by the deciding one."""
    problem, seed, n_permutations = chosen.problem, config.seed, config.n_permutations
    found = {gain.model: shap_values.contributions(problem, partitions, gain.model, seed=seed) for gain in opened}
    phi, by_class = found[deciding].phi, None
    if groups.compared:
        p_size, p_sign = classes.class_difference(
            phi, groups.of_scan, problem, blocks=chosen.sites, n_permutations=n_permutations, seed=seed
        )
        own = classes.own_models(
            problem,
            groups.of_scan,
            n_folds=config.n_folds,
            n_permutations=n_permutations,
            alpha=config.alpha,
            seed=seed,
        )
        by_class = ByClass(p_size, p_sign, own)
    names, labels = np.asarray(weights.names)[chosen.kept], weights.labels[chosen.kept]
    x, cluster = shap_values.seen(partitions[0]), shap_values.clusters(partitions[0], threshold=config.cluster_r)
    table = region_table(found, deciding, x, cluster, groups, by_class, names=names, labels=labels)
    data = region_data(chosen.scans.index, phi, x, groups, by_class, names=names)
    return table, data, shap_values.stability(problem, partitions, found[deciding], deciding, orders, seed=seed)


def _gain_data(gains: Sequence[Gain], gate: np.ndarray, alpha: float) -> xr.Dataset:
    return xr.Dataset(
        {
            "r2_null": ("model", [gain.r2_null for gain in gains]),
            "r2": ("model", [gain.r2 for gain in gains]),
            "share": ("model", [gain.share for gain in gains]),
            "p_gain": ("model", [gain.p_value for gain in gains]),
            "p_gate": ("model", gate),
            "n_permutations": ("model", [gain.n_permutations for gain in gains]),
            "badge": (
                "model",
                [gain.badge if p <= alpha else bounds.INCONCLUSIVE for gain, p in zip(gains, gate, strict=True)],
            ),
        },
        coords={"model": [gain.model for gain in gains]},
    )
