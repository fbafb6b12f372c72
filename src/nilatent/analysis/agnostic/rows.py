"""The certificates of one question: what is fitted, on which features, judged on which scans, and the rows that result."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from nilatent.analysis import bounds, discriminability, held_out, stats
from nilatent.analysis.agnostic.words import COVARIATES, CUBV, LATENTS, OWN, READ_OUT, REGIONS, SAM, SAR
from nilatent.analysis.contrast import Comparison, Gradient
from nilatent.analysis.crossfit import CrossFit
from nilatent.analysis.discriminability import FoldLatents
from nilatent.analysis.held_out import Certificate
from nilatent.analysis.sar import sar
from nilatent.atlas import RegionWeights
from nilatent.errors import SettingError


@dataclass(frozen=True)
class AgnosticConfig:
    """Settings of :func:`agnostic`.

    Parameters
    ----------
    group : str
        Column of the groups.
    contrast : str
        ``"A:B"`` with B the reference, several with commas between; empty as in
        :func:`~nilatent.analysis.contrast.contrasts_of`.
    covariates : tuple[str, ...]
        Confounds removed from features and targets inside each fold.
    site : str
        Column of the site: a confound, and the block within which permutations stay. Empty for none.
    targets : tuple[str, ...]
        Continuous columns that SAR predicts; empty takes ``age`` when the cohort has it.
    adjust_global : bool
        Also remove total grey matter and head size.
    eta : float
        Probability, in (0, 1), with which one bound may fail.
    n_permutations : int
        Permutations of every p-value.
    n_folds : int
        Cross-validation folds over subjects, at least 2.
    alpha : float
        Level of the permutation p-value that a badge needs too, above 0 and at most 1.
    seed : int
        Of folds and permutations.
    """

    group: str = "group"
    contrast: str = ""
    covariates: tuple[str, ...] = ()
    site: str = ""
    targets: tuple[str, ...] = ()
    adjust_global: bool = True
    eta: float = 0.05
    n_permutations: int = 2000
    n_folds: int = 10
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values under which a certificate would mean nothing.

        Raises
        ------
        SettingError
            Names the setting and its range; one fold is resubstitution and is refused with the reason.
        """
        if self.n_folds < 2:
            raise SettingError(f"agnostic.n_folds is {self.n_folds}; it must be at least 2. {bounds.RESUBSTITUTION}")
        for name, lowest in (("n_permutations", 1), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise SettingError(f"agnostic.{name} is {getattr(self, name)}; it must be at least {lowest}.")
        if not 0 < self.alpha <= 1:
            raise SettingError(f"agnostic.alpha is {self.alpha}; it must be above 0 and at most 1, usually 0.05.")
        if not 0 < self.eta < 1:
            raise SettingError(f"agnostic.eta is {self.eta}; it must be above 0 and below 1, usually 0.05.")


def _row(test: str, features: str, *, d: int, made: Certificate, p_value: float) -> dict[str, Any]:
    return {
        "test": test,
        "features": features,
        "name": "",
        "error": made.error,
        "bound": made.bound,
        "threshold": made.threshold,
        "holds": made.holds,
        "p": p_value,
        "limit": made.limit,
        "d": d,
        "n_eff": made.n_eff,
        "sam_z": np.nan,
        "label": 0,
    }


@dataclass(frozen=True, eq=False)
class Judged:
    """A question with the features that vary, and how it is validated.

    Parameters
    ----------
    asked : Comparison or Gradient
        Groups or numbers of one scan per subject, with confounds.
    features : dict[str, ndarray or list of ndarray]
        (scan, feature) by name; latents of cross-fitted models one array per fold.
    kept : dict[str, ndarray]
        (feature,) bool by name: what does not vary, or only with the confounds, is rounding noise once they are removed.
    folds : ndarray
        (scan,) fold in which each scan is held out.
    orders, free_orders : ndarray
        (permutation, scan) orders within sites, and across them.
    """

    asked: Comparison | Gradient
    features: dict[str, FoldLatents]
    kept: dict[str, np.ndarray]
    folds: np.ndarray
    orders: np.ndarray
    free_orders: np.ndarray


def judge(
    asked: Comparison | Gradient, features: dict[str, np.ndarray], crossed: CrossFit | None, config: AgnosticConfig
) -> Judged:
    """Take a question's scans, drop features that do not vary, and draw folds and orders without looking at the labels."""
    n, confounds = len(asked.rows), asked.confounds
    taken = {name: values[asked.rows] for name, values in features.items()}
    kept = {name: stats.varying(values, confounds) for name, values in taken.items()}
    chosen: dict[str, FoldLatents] = {name: taken[name][:, columns] for name, columns in kept.items() if columns.any()}
    folds = discriminability.label_free_folds(n, min(config.n_folds, n), seed=config.seed)
    within = np.zeros(n, dtype=int)
    if crossed is not None:
        mine = crossed.rows(asked.rows)
        of_models = [values[:, stats.varying(values, confounds)] for values in mine.latents]
        chosen.pop(LATENTS, None)
        if all(values.shape[1] for values in of_models):
            chosen[LATENTS], kept[LATENTS] = of_models, np.ones_like(kept[LATENTS])
        # The split of the models may have looked at the groups: labels that stay in their fold keep that balance.
        folds = within = mine.folds
    sites = np.zeros(n, dtype=int) if asked.blocks is None else asked.blocks
    blocks = [f"{fold}/{site}" for fold, site in zip(within, sites, strict=True)]
    orders, free = (
        stats.permutations(n, config.n_permutations, seed=config.seed, blocks=one) for one in (blocks, within)
    )
    return Judged(asked, chosen, kept, folds, orders, free)


def question_rows(judged: Judged, weights: RegionWeights, config: AgnosticConfig) -> Iterator[pd.DataFrame]:
    """The certificates of one question, each with all its columns."""
    made: list[pd.DataFrame] = []
    if isinstance(judged.asked, Gradient):
        made.append(_target_rows(judged, judged.asked, config))
    else:
        made.append(_contrast_rows(judged, judged.asked, config))
        if REGIONS in judged.features:
            made += _region_rows(judged, judged.asked, weights, config)
    for table in filter(len, made):
        badges = np.where(table["holds"] & (table["p"] <= config.alpha), bounds.VALIDATED, bounds.INCONCLUSIVE)
        yield table.assign(
            target=judged.asked.label,
            delta=table["bound"] - table["error"],
            badge=badges,
            method=[bounds.chosen_method(d) for d in table["d"]],
        )


def _contrast_rows(judged: Judged, asked: Comparison, config: AgnosticConfig) -> pd.DataFrame:
    targets = discriminability.balanced_targets(asked.is_case)
    tables = [(name, values, asked.confounds, judged.orders) for name, values in judged.features.items()]
    confounds = asked.confounds[:, stats.varying(asked.confounds)]
    if confounds.shape[1]:
        # The site is a feature here, so labels must move between sites.
        tables.append((COVARIATES, confounds, np.empty((len(confounds), 0)), judged.free_orders))
    rows = []
    for name, values, removed, orders in tables:
        made = held_out.cubv(values, asked.is_case, judged.folds, confounds=removed, eta=config.eta)
        p_value = held_out.prediction_p(values, targets, judged.folds, orders, confounds=removed)
        rows.append(_row(CUBV, name, d=held_out.n_weights(values), made=made, p_value=p_value))
    return pd.DataFrame(rows)


def _region_rows(
    judged: Judged, asked: Comparison, weights: RegionWeights, config: AgnosticConfig
) -> Iterator[pd.DataFrame]:
    is_case, folds, confounds = asked.is_case, judged.folds, asked.confounds
    x = cast(np.ndarray, judged.features[REGIONS])
    kept = judged.kept[REGIONS]
    names = {"name": np.asarray(weights.names)[kept], "label": weights.labels[kept]}
    targets = discriminability.balanced_targets(is_case)
    scores = [(OWN, x, confounds)]
    if LATENTS in judged.features:
        read_out = discriminability.readout_scores(judged.features[LATENTS], x, confounds, folds)[0]
        # Residuals already: confounds were removed fold by fold before the region was read out.
        scores.append((READ_OUT, read_out, np.empty((len(x), 0))))
    for name, values, removed in scores:
        made = held_out.sam(values, is_case, folds, confounds=removed, eta=config.eta)
        certificates = {"error": made.error, "bound": made.bound, "limit": made.limit, "holds": made.holds}
        p_fwe = stats.permuted_correlation(values, targets, judged.orders, confounds=confounds).p_fwe[:, 0]
        table = pd.DataFrame(names | certificates | {"p": p_fwe, "sam_z": made.sam_z})
        table = table.assign(test=SAM, features=name, threshold=bounds.CHANCE, d=2, n_eff=made.n_eff)
        yield table.sort_values(["bound", "p", "label"])


def _target_rows(judged: Judged, asked: Gradient, config: AgnosticConfig) -> pd.DataFrame:
    rows = []
    for name, values in judged.features.items():
        made = sar(values, asked.values, judged.folds, confounds=asked.confounds, eta=config.eta)
        p_value = held_out.prediction_p(values, asked.values, judged.folds, judged.orders, confounds=asked.confounds)
        rows.append(_row(SAR, name, d=held_out.n_weights(values), made=made, p_value=p_value))
    return pd.DataFrame(rows)
