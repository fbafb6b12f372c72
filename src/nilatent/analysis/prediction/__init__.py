"""Prediction of what is known of people from their scans, by nested cross-validation over given folds.

Several feature sets are judged on several targets with the same scans, folds and heads, as they are and without head size:
the latents of models that have not seen the subject, and what stands beside them. Everything that learns does so inside the
training part of a fold, and permutations repeat all of it. The array core is :mod:`nilatent.analysis.prediction.cv`.

References
----------
Varma & Simon 2006, doi:10.1186/1471-2105-7-91. Ojala & Garriga 2010, "Permutation tests for studying classifier
performance". Frank & Hall 2001, doi:10.1007/3-540-44795-4_13.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import NotComparableError, confound_matrix, level_words
from nilatent.analysis.prediction.badge import badge
from nilatent.analysis.prediction.compare import compare, subject_swaps
from nilatent.analysis.prediction.config import PredictionConfig
from nilatent.analysis.prediction.cv import OuterPart, Told, label_orders, nested_cv, outer_parts, permuted_p
from nilatent.analysis.prediction.heads import FitPredict
from nilatent.analysis.prediction.measures import main_measure, measure, subject_weights
from nilatent.analysis.prediction.sets import FeatureSet, check_sets
from nilatent.analysis.prediction.table import Row, arrays_of, calibrations_of, table_of
from nilatent.analysis.prediction.targets import Target, check_named, known_by, make_target, make_targets
from nilatent.analysis.prediction.words import answer, caveats
from nilatent.errors import SettingError
from nilatent.finding import Finding, not_run
from nilatent.progress import track

__all__ = ["NAME", "QUESTION", "FitPredict", "PredictionConfig", "nested_cv", "prediction"]

NAME = "prediction"
QUESTION = (
    "What can be told of people from the latent description of their scans, and is it more than simpler numbers tell?"
)
# A feature that says this much of what is predicted is the target under another name.
# The preparation renames what the source says of the head's volume where it has a column of that name itself.
HEAD_SIZE_COLUMNS = (("head_size_factor", "tiv_ml", "source_tiv_ml"), ("gm_ml", "total_gm", "total"))


def prediction(
    sets: Sequence[FeatureSet],
    scans: pd.DataFrame,
    folds: np.ndarray,
    config: PredictionConfig,
    *,
    network: FitPredict | None = None,
    label: str = "",
) -> Finding:
    """Predict the targets from every feature set.

    Parameters
    ----------
    sets : Sequence[FeatureSet]
        What predicts; those with ``baseline=True`` are what the others have to beat.
    scans : DataFrame
        Index scan_id; ``subject_id`` and the columns named in `config`; ``head_size_factor`` (or ``tiv_ml``) and ``gm_ml``
        (or ``total_gm``) are used when known of every scan.
    folds : ndarray
        (scan,) outer fold in which each scan is held out, counted from 0.
    config : PredictionConfig
        Settings.
    network : FitPredict or None
        The head ``"network"``, for sets with a grid.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Returns
    -------
    Finding
        A row per target, feature set, with and without head size, and head; or "not run" with the reason.

    Raises
    ------
    LeakageError
        When features of a fold come from a model that has seen a subject held out in it, or a subject is in two folds.
    SettingError
        When a setting names what does not exist, or shapes do not fit.
    """
    folds = np.asarray(folds)
    check_sets(sets, scans, folds)
    if "network" in config.heads and network is None:
        raise SettingError("prediction.heads names 'network', but no network was handed in. Name other heads.")
    usable = np.all([one.finite for one in sets], axis=0)
    if config.harmonise:
        kept = confound_matrix(scans, config.covariates)
        usable &= scans[config.site].notna().to_numpy() & np.isfinite(kept).all(axis=1)
    targets, refused = make_targets(scans, folds, config, usable=usable)
    if not targets:
        return not_run(NAME, QUESTION, "; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    check_named(targets, scans, config)
    study = _study(scans, folds, config, usable)
    jobs = _jobs(sets, targets, study, config, refused)
    rows: list[Row] = []
    weights: dict[str, np.ndarray] = {}
    for job in track(jobs, total=len(jobs), label=label) if label else jobs:
        name = job.target.name
        if name not in weights:
            weights[name] = subject_weights(study.subjects[job.target.rows], config.n_bootstrap, seed=config.seed)
        rows += _judged(job, study, config, weights[name], refused, network=network)
    if not rows:
        return not_run(NAME, QUESTION, "; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    rows = _compared(rows, study, config, weights)
    calibrations = calibrations_of(rows)
    used = np.unique(np.concatenate([row.target.rows for row in rows]))
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=answer(rows, config),
        table=table_of(rows, calibrations, study.subjects),
        data=arrays_of(rows, calibrations, weights, scans.index, alpha=config.alpha),
        settings=asdict(config)
        | {
            "targets": [target.name for target in targets],
            "n_folds": len(np.unique(folds)),
            "left_out": {target.name: target.left_out for target in targets},
            "refused": refused,
            "head_size_columns": study.head_size_columns,
        },
        caveats=caveats(rows, refused=refused, head_size=study.without_head_size),
        n_scans=len(used),
        n_subjects=len(np.unique(study.subjects[used])),
    )


@dataclass(frozen=True, eq=False)
class _Study:
    """What is known of the scans, in their order."""

    scans: pd.DataFrame
    folds: np.ndarray
    subjects: np.ndarray
    blocks: np.ndarray | None
    site: Target | None
    head_size: np.ndarray | None
    head_size_columns: tuple[str, ...]
    without_head_size: str


@dataclass(frozen=True, eq=False)
class _Job:
    """A feature set judged on a target, with or without head size."""

    target: Target
    features: FeatureSet
    adjusted: bool
    of_site: bool


def _study(scans: pd.DataFrame, folds: np.ndarray, config: PredictionConfig, usable: np.ndarray) -> _Study:
    blocks = site = None
    if config.site:
        confound_matrix(scans, [config.site], levels=[config.site])
        blocks = level_words(scans[config.site]).fillna("").to_numpy().astype(str)
        try:
            site = make_target(scans, folds, config.site, name=config.site, config=config, usable=usable)
        except NotComparableError:
            site = None
    columns, reason = _head_size_columns(scans, config)
    values = scans[list(columns)].to_numpy(dtype=np.float64) if columns else None
    subjects = scans["subject_id"].to_numpy().astype(str)
    return _Study(scans, folds, subjects, blocks, site, values, columns, reason)


def _head_size_columns(scans: pd.DataFrame, config: PredictionConfig) -> tuple[tuple[str, ...], str]:
    """Columns of head size and total grey matter, or why there are none."""
    if not config.adjust_head_size:
        return (), ""
    numbers = {
        name: pd.to_numeric(scans[name], errors="coerce")
        for names in HEAD_SIZE_COLUMNS
        for name in names
        if name in scans
    }
    whole = [name for name, values in numbers.items() if np.isfinite(values).all()]
    chosen = [next((name for name in names if name in whole), "") for names in HEAD_SIZE_COLUMNS]
    if not chosen[0]:
        known = [int(np.isfinite(numbers[name]).sum()) for name in HEAD_SIZE_COLUMNS[0] if name in numbers]
        return (), (
            f"Head size is known of {max(known, default=0)} of {len(scans)} scans, so nothing is judged without it. Where a "
            "column of the source holds it, name it with --column tiv_ml=COLUMN."
        )
    return tuple(name for name in chosen if name), ""


def _jobs(
    sets: Sequence[FeatureSet],
    targets: Sequence[Target],
    study: _Study,
    config: PredictionConfig,
    refused: dict[str, str],
) -> list[_Job]:
    """What is to be judged; the site from the same features comes last."""
    asked = [(target, target.column == config.site) for target in targets]
    if study.site is not None and not any(of_site for _, of_site in asked):
        asked.append((study.site, True))
    jobs = []
    for target, of_site in asked:
        for features in sets:
            known = known_by(features, target)
            if known:
                refused[f"{target.name} from {features.name}"] = known
                continue
            both = study.head_size is not None and target.column not in study.head_size_columns
            for adjusted in (False, True) if both else (False,):
                jobs.append(_Job(target, features, adjusted, of_site))
    return jobs


def _judged(
    job: _Job,
    study: _Study,
    config: PredictionConfig,
    weights: np.ndarray,
    refused: dict[str, str],
    *,
    network: FitPredict | None,
) -> Iterator[Row]:
    """Rows of one feature set, one per head."""
    target = job.target
    subjects = study.subjects[target.rows]
    try:
        parts = _parts(job, study, config)
        orders = label_orders(
            target,
            subjects,
            n_permutations=config.n_permutations,
            seed=config.seed,
            blocks=None if study.blocks is None or job.of_site else study.blocks[target.rows],
        )
    except SettingError as error:
        refused[f"{target.name} from {job.features.name}{', without head size' if job.adjusted else ''}"] = str(error)
        return
    for head in config.heads:
        if head == "network" and not job.features.grid:
            continue
        procedure = _Procedure(tuple(parts), target, subjects, head, config.n_inner, config.seed, network)
        told = procedure.told(target.y[:, None])
        measured = measure(target, told, weights, time=_time(target, study.scans, config), alpha=config.alpha)
        p_value, n_drawn = float("nan"), 0
        # Where labels never change places, as when every site has one class, nothing is tested.
        if head != "network" and config.n_permutations and bool((target.y[orders] != target.y).any()):
            observed = float(main_measure(target, target.y[:, None], told)[0])
            n_jobs = 1 if head == "linear" else config.n_jobs
            p_value, n_drawn = permuted_p(
                observed, procedure.main, target.y, orders, n_stop=config.n_stop, n_jobs=n_jobs
            )
        found = badge(
            told.called[:, 0],
            target.y,
            study.folds[target.rows],
            kind=target.kind,
            head=head,
            n_features=parts[0].x_train.shape[1],
            independent=len(np.unique(subjects)) == len(subjects),
            p_value=p_value,
            alpha=config.alpha,
        )
        yield Row(
            target=target,
            features=job.features.name,
            baseline=job.features.baseline,
            adjusted=job.adjusted,
            head=head,
            told=told,
            measured=measured,
            p_value=p_value,
            n_permutations=n_drawn,
            badge=found,
            of_site=job.of_site,
        )


@dataclass(frozen=True, eq=False)
class _Procedure:
    """The whole nested procedure of one row, to be repeated under shuffled labels."""

    parts: tuple[OuterPart, ...]
    target: Target
    subjects: np.ndarray
    head: str
    n_inner: int
    seed: int
    network: FitPredict | None

    def told(self, labels: np.ndarray) -> Told:
        """What is told of each column of labels."""
        return nested_cv(
            self.parts,
            labels,
            self.target,
            subjects=self.subjects,
            head=self.head,
            n_inner=self.n_inner,
            seed=self.seed,
            network=self.network,
        )

    def main(self, labels: np.ndarray) -> np.ndarray:
        """(column,) the main measure of each column of labels."""
        return main_measure(self.target, labels, self.told(labels))


def _parts(job: _Job, study: _Study, config: PredictionConfig) -> list[OuterPart]:
    """The outer folds of a job."""
    site = keep = None
    if config.harmonise and not job.of_site:
        kept = [name for name in config.covariates if name not in (job.target.column, config.site)]
        site, keep = study.blocks, confound_matrix(study.scans, kept) if kept else None
    return outer_parts(
        job.features,
        job.target,
        study.folds,
        head_size=study.head_size if job.adjusted else None,
        site=site,
        keep=keep,
        subjects=study.subjects,
    )


def _time(target: Target, scans: pd.DataFrame, config: PredictionConfig) -> np.ndarray | None:
    """(scan,) times of a two-class target, of its column or of its contrast."""
    column = config.times.get(target.name, config.times.get(target.column, ""))
    if not column or target.kind != "binary":
        return None
    if column not in scans:
        raise SettingError(
            f"prediction.times names column '{column}' for {target.name}, which the cohort lacks. Name one of "
            f"{', '.join(map(str, scans.columns))}."
        )
    return pd.to_numeric(scans[column].iloc[target.rows], errors="coerce").to_numpy(dtype=np.float64)


def _compared(
    rows: Sequence[Row], study: _Study, config: PredictionConfig, weights: dict[str, np.ndarray]
) -> list[Row]:
    """The rows, each that is no baseline compared with the best baseline of its target, head and treatment of head size."""
    found = []
    for row in rows:
        rivals = [
            other
            for other in rows
            if other.baseline and other.target.name == row.target.name and other.adjusted == row.adjusted
        ]
        # Baselines without a grid have no network: it has to beat the best of their other heads.
        rivals = [other for other in rivals if other.head == row.head] or rivals
        if row.baseline or row.of_site or not rivals:
            found.append(row)
            continue
        best = max(rivals, key=lambda other: other.value)
        swaps = subject_swaps(study.subjects[row.target.rows], config.n_bootstrap, seed=config.seed)
        against = compare(
            row.target,
            row.told,
            best.told,
            against=best.features,
            weights=weights[row.target.name],
            swaps=swaps,
            alpha=config.alpha,
        )
        found.append(replace(row, against=against))
    return found
