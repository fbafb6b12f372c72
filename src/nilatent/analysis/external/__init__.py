"""External cohort: what a frozen model and head say of subjects from elsewhere, how right they are, and how far these are off."""

from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.contrast import first_scans, level_words
from nilatent.analysis.external.measures import Measure, class_measures, exact_share, number_measures, roc
from nilatent.analysis.external.shift import Shift, error_ratio, mean_differences, mmd
from nilatent.analysis.external.words import answer, caveats
from nilatent.errors import SettingError
from nilatent.finding import Finding

QUESTION = "What does the frozen head say of subjects from elsewhere, and can it be trusted there?"
N_BINS = 5
# A latent whose mean lies this many SD of the study from the study's is counted as moved.
FAR = 0.5


@dataclass(frozen=True)
class ExternalConfig:
    """Settings of :func:`external`: draws for the p-value of the shift, at least 99, and their seed."""

    n_permutations: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse too few draws to say anything."""
        if self.n_permutations < 99 or self.seed < 0:
            raise SettingError(
                f"external.n_permutations is {self.n_permutations} and external.seed {self.seed}; at least 99 and 0 are needed."
            )


@dataclass(frozen=True, eq=False)
class Rule:
    """What the frozen head says of itself.

    Parameters
    ----------
    target, column : str
        What it predicts, and the column of the cohort in which that stands.
    kind : {"binary", "multi-class", "ordinal", "continuous"}
        Of the target.
    levels : tuple[str, ...]
        Names of the codes; of two, the second is the case. Empty for a number.
    threshold : float
        Probability of the second of two classes from which on it is called.
    held_out : dict[str, float]
        Measure to its value on held-out subjects of the study.
    """

    target: str
    column: str
    kind: str
    levels: tuple[str, ...]
    threshold: float = float("nan")
    held_out: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Foreign:
    """Scans from elsewhere as the frozen model and head see them.

    Parameters
    ----------
    scans : DataFrame
        Index scan_id; ``subject_id``, ``dataset`` and, where it is known, the column of the target.
    scores : ndarray
        (scan, class) probabilities or (scan, 1) numbers.
    called : ndarray
        (scan,) codes or numbers.
    latents : ndarray
        (scan, latent) posterior means.
    names : tuple[str, ...]
        (latent,) their names.
    errors : ndarray
        (scan,) mean squared reconstruction error per voxel.
    """

    scans: pd.DataFrame
    scores: np.ndarray
    called: np.ndarray
    latents: np.ndarray
    names: tuple[str, ...]
    errors: np.ndarray


@dataclass(frozen=True, eq=False)
class Study:
    """What is normal where the model and the head come from.

    Parameters
    ----------
    mean, sd : ndarray
        (latent,) of the study's scans.
    error, error_se : float
        Mean over held-out subjects of their squared reconstruction error, and its standard error; NaN when not known.
    n_error : int
        How many these were.
    latents : ndarray, optional
        (subject, latent) of subjects of the study.
    unseen : bool
        Whether these subjects are ones that the model has not seen.
    """

    mean: np.ndarray
    sd: np.ndarray
    error: float
    error_se: float
    n_error: int
    latents: np.ndarray | None = None
    unseen: bool = False


def external(foreign: Foreign, rule: Rule, study: Study, config: ExternalConfig | None = None) -> Finding:
    """Judge frozen predictions on a cohort that neither the model nor the head has seen.

    Parameters
    ----------
    foreign : Foreign
        The new scans.
    rule : Rule
        Of the head.
    study : Study
        Where model and head come from.
    config : ExternalConfig, optional
        Settings.

    Returns
    -------
    Finding
        ``table`` has the measures of the prediction, where the target is known, and those of the domain shift, each with its
        95 % interval; every subject counts once, with its first scan. ``data`` holds scores, the ROC curve, the calibration
        in groups of equal size and the mean difference of every latent.
    """
    config = ExternalConfig() if config is None else config
    y = known_values(foreign.scans, rule)
    first = first_scans(foreign.scans)
    known = np.flatnonzero(np.isfinite(y))
    judged = known[first_scans(foreign.scans.iloc[known])]
    measures = _measures(foreign, rule, y, judged)
    shift = _shift(foreign, study, first, config)
    differences = mean_differences(foreign.latents[first], study.mean, study.sd)
    rows = [("prediction", measure) for measure in measures]
    rows += [("domain shift", measure) for measure in _shift_measures(shift, differences, foreign.names)]
    table = pd.DataFrame([{"part": part} | asdict(measure) for part, measure in rows]).rename(
        columns={"name": "measure"}
    )
    table.insert(5, "study", [rule.held_out.get(measure.name, np.nan) for _, measure in rows])
    classes = {level: int((y[judged] == code).sum()) for code, level in enumerate(rule.levels)}
    return Finding(
        name="external",
        question=QUESTION,
        answer=answer(rule.target, measures, shift, n_subjects=len(first), n_known=len(judged), classes=classes),
        table=table,
        data=_data(foreign, rule, y, judged, differences),
        settings=asdict(config)
        | {"target": rule.target, "kind": rule.kind, "levels": list(rule.levels), "threshold": rule.threshold},
        caveats=caveats(rule.column, rule.kind, shift, foreign.scans, y, unseen=study.unseen),
        n_scans=len(foreign.scans),
        n_subjects=len(first),
    )


def known_values(scans: pd.DataFrame, rule: Rule) -> np.ndarray:
    """(scan,) code or number that is known of each scan; NaN where the cohort does not know it or the head has no such level."""
    if rule.column not in scans:
        return np.full(len(scans), np.nan)
    if not rule.levels:
        return pd.to_numeric(scans[rule.column], errors="coerce").to_numpy(dtype=np.float64)
    codes = pd.Index(rule.levels).get_indexer(pd.Index(level_words(scans[rule.column])))
    return np.where(codes < 0, np.nan, codes.astype(float))


def _measures(foreign: Foreign, rule: Rule, y: np.ndarray, judged: np.ndarray) -> list[Measure]:
    if len(judged) == 0:
        return []
    if not rule.levels:
        return number_measures(foreign.scores[judged, 0], y[judged])
    return class_measures(foreign.scores[judged], foreign.called[judged], y[judged].astype(int), rule.levels)


def _shift(foreign: Foreign, study: Study, first: np.ndarray, config: ExternalConfig) -> Shift:
    mmd2, p_value, n_study = float("nan"), float("nan"), 0
    if study.latents is not None:
        mmd2, p_value = mmd(
            study.latents, foreign.latents[first], n_permutations=config.n_permutations, seed=config.seed
        )
        n_study = len(study.latents)
    ratio = error_ratio(foreign.errors[first], error=study.error, error_se=study.error_se, n_error=study.n_error)
    return Shift(mmd2, p_value, n_study, len(first), *ratio, study.n_error)


def _shift_measures(shift: Shift, differences: np.ndarray, names: tuple[str, ...]) -> list[Measure]:
    none = float("nan")
    farthest = int(np.abs(differences).argmax())
    p = "not measured: the study's latents were not at hand"
    if np.isfinite(shift.p_value):
        p = f"permutation p = {shift.p_value:.2g} against {shift.n_study} subjects of the study; 0 is alike"
    moved = f"mean more than {FAR:g} SD of the study from the study's"
    return [
        Measure("MMD2 of the latents", shift.mmd2, none, none, shift.n_new, p),
        Measure(
            "reconstruction error, here / study",
            shift.error_ratio,
            shift.error_low,
            shift.error_high,
            shift.n_new,
            f"against {shift.n_error} held-out subjects of the study; 1 is alike",
        ),
        Measure(
            "share of latents that moved", float(np.mean(np.abs(differences) > FAR)), none, none, shift.n_new, moved
        ),
        Measure(
            "largest mean difference of a latent",
            float(differences[farthest]),
            none,
            none,
            shift.n_new,
            f"{names[farthest]}, in SD of the study",
        ),
    ]


def _data(foreign: Foreign, rule: Rule, y: np.ndarray, judged: np.ndarray, differences: np.ndarray) -> xr.Dataset:
    data = xr.Dataset(
        {
            "score": (("scan", "output"), foreign.scores),
            "called": ("scan", foreign.called.astype(float)),
            "known": ("scan", y),
            "error": ("scan", foreign.errors),
            "mean_difference": ("latent", differences),
        },
        coords={
            "scan": foreign.scans.index.to_numpy(dtype=str),
            "judged": ("scan", np.isin(np.arange(len(y)), judged)),
            "output": np.asarray(rule.levels or ("number",), dtype=str),
            "latent": np.asarray(foreign.names, dtype=str),
        },
        attrs={"threshold": rule.threshold, "kind": rule.kind, "target": rule.target},
    )
    if len(rule.levels) != 2 or len(np.unique(y[judged])) < 2:
        return data
    p, is_case = foreign.scores[judged, 1], y[judged] == 1
    false_rate, true_rate = roc(p, is_case)
    groups = np.array_split(np.argsort(p, kind="stable"), min(N_BINS, max(len(p) // 5, 1)))
    limits = np.array([exact_share(int(is_case[group].sum()), len(group)) for group in groups])
    return data.assign(
        roc_false=("point", false_rate),
        roc_true=("point", true_rate),
        told=("bin", [float(p[group].mean()) for group in groups]),
        share=("bin", [float(is_case[group].mean()) for group in groups]),
        share_low=("bin", limits[:, 0]),
        share_high=("bin", limits[:, 1]),
    )
