"""What latents tell of things that are none of the brain's: scanner, head size, quality of the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.training.diagnostics import Verdict

NUISANCES = ("site", "dataset", "head_size_factor", "tiv_ml", "bias_range", "noise_ratio")
"""Columns of a prepared cohort that are looked at unless others are named."""

SIZES = ("head_size_factor", "tiv_ml")
"""Columns that maps of tissue volume hold by their making: that latents tell of them is noted, and no failure."""

MIN_SUBJECTS = 20
MIN_PER_LEVEL = 5
"""Subjects of a site with fewer are left out: nothing could be learned of it."""
MAX_SUBJECTS = 1000
N_PERMUTATIONS = 999
ALPHA = 0.01
"""Chance that any of the columns is called although the latents tell of none."""
MIN_ABOVE_CHANCE = 0.15
MIN_R2 = 0.25
NUISANCE_REMEDIES = (
    "look at the registration and the intensities of the scans concerned; tell the model (model.condition = [{columns}]), so "
    "that the latents hold what is left; more noise on scans and latents; take it out of the latents inside each fold of an "
    "analysis"
)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Told:
    """How well a column can be told from the latents, of subjects that the rule has not seen.

    Parameters
    ----------
    column : str
        Which.
    n_subjects : int
        One scan of each.
    n_levels : int
        Values of a category; 0 for a number.
    r2 : float
        Share of the variance that is predicted, at most 1; below 0 when worse than the mean of the others.
    accuracy : float
        Balanced over the levels of a category; NaN for a number.
    p_value : float
        Share of permutations of the column among the subjects that do as well; NaN when it was not asked for.
    """

    column: str
    n_subjects: int
    n_levels: int
    r2: float
    accuracy: float
    p_value: float

    @property
    def large(self) -> bool:
        """Whether it is told far above chance, be that chance or not."""
        if self.n_levels:
            return self.accuracy > 1.0 / self.n_levels + MIN_ABOVE_CHANCE
        return self.r2 > MIN_R2

    @property
    def words(self) -> str:
        """The same in words."""
        if self.n_levels:
            told = f"balanced accuracy {self.accuracy:.2f}, chance {1 / self.n_levels:.2f}"
        else:
            told = f"{100 * max(self.r2, 0.0):.0f} % of its variance"
        return f"{self.column} ({told}, p = {self.p_value:.3f}, {self.n_subjects} subjects)"


def present(scans: pd.DataFrame | None, scan_ids: Sequence[str], names: Sequence[str] = NUISANCES) -> pd.DataFrame:
    """Columns that could disturb: present, known for enough scans, and not the same for all.

    Parameters
    ----------
    scans : DataFrame or None
        Index ``scan_id``.
    scan_ids : Sequence[str]
        Scans of the training and the validation part; no other is looked at.
    names : Sequence[str]
        Columns to look for; one that is absent is passed over.

    Returns
    -------
    DataFrame
        Index `scan_ids`; no columns when there is none to look at.
    """
    if scans is None:
        return pd.DataFrame(index=pd.Index(scan_ids, name="scan_id"))
    used = scans.loc[list(scan_ids)]
    kept = [name for name in dict.fromkeys(names) if name in used and used[name].nunique(dropna=True) > 1]
    # A column that says the same as one before it would be tested twice.
    codes = [tuple(pd.factorize(used[name])[0]) for name in kept]
    return used[[name for place, name in enumerate(kept) if codes[place] not in codes[:place]]]


def told(
    latents: npt.NDArray[np.float32],
    values: pd.Series,
    subjects: Sequence[str],
    *,
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> Told | None:
    """Predict a column from the latents by ridge regression, each subject by a rule that the others gave.

    Parameters
    ----------
    latents : ndarray
        (scan, latent).
    values : Series
        (scan,) numbers or categories, in the same order; may be missing.
    subjects : Sequence[str]
        (scan,). One scan of each subject is used, the visits in turn: a rule could know a subject again by another scan.
    n_permutations : int
        0 to leave the p-value out.
    seed : int
        Of the permutations.

    Returns
    -------
    Told or None
        None with too few subjects, or when nothing varies.

    References
    ----------
    Stone 1974, Cross-validatory choice and assessment. doi:10.1111/j.2517-6161.1974.tb00994.x
    Ojala & Garriga 2010, Permutation tests for studying classifier performance. https://jmlr.org/papers/v11/ojala10a.html
    """
    rows = _one_scan_each(values, subjects)
    number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    known = values.iloc[rows]
    if not number:
        counts = known.astype(str).value_counts()
        enough = known.astype(str).isin(counts.index[counts >= MIN_PER_LEVEL]).to_numpy()
        rows, known = rows[enough], known[enough]
    target = _target(known, number=number)
    if len(rows) < MIN_SUBJECTS or target.shape[1] == 0:
        return None
    residual_maker = _ridge(latents[rows])
    if residual_maker is None:
        return None
    rng = np.random.default_rng([seed, 3])
    orders = np.stack([np.arange(len(rows)), *(rng.permutation(len(rows)) for _ in range(n_permutations))])
    r2, accuracy = _scores(residual_maker, target, orders, number=number)
    score = r2 if number else accuracy
    # Ties count against it, up to rounding.
    p_value = float((score >= score[0] - 1e-12).mean()) if n_permutations else float("nan")
    return Told(
        str(values.name), len(rows), 0 if number else target.shape[1], float(r2[0]), float(accuracy[0]), p_value
    )


def nuisance_latents(found: Sequence[Told]) -> Verdict:
    """Judge whether the latents tell of what is none of the brain's.

    Parameters
    ----------
    found : Sequence[Told]
        With p-values.

    Returns
    -------
    Verdict
        Found when a category is told with a balanced accuracy of .15 above chance, or a quarter of the variance of a number,
        and chance would do so in no more than one of a hundred cohorts, all columns taken together; noted when all of
        these are measures of the head's size, which maps of tissue volume hold by their making.
    """
    name = "nuisance latents"
    if not found:
        return Verdict(
            name,
            "not assessed",
            f"Not assessed: no column of site, head size or image quality that varies among at least {MIN_SUBJECTS} subjects.",
        )
    leaking = [one for one in found if one.large and one.p_value <= ALPHA / len(found)]
    if not leaking:
        best = min(found, key=lambda one: one.p_value)
        others = f" Best told of {len(found)}: {best.words}." if len(found) > 1 else f" {best.words}."
        return Verdict(name, "absent", f"The latents tell next to nothing of {_list(found)}.{others}")
    if all(one.column in SIZES for one in leaking):
        words = "; ".join(one.words for one in leaking)
        advice = "Maps of tissue volume hold it by their making: adjust for it in every analysis of the latents"
        return Verdict(name, "noted", f"The latents tell of {words}, and of nothing else that was looked at. {advice}.")
    columns = ", ".join(f'"{one.column}"' for one in leaking)
    advice = NUISANCE_REMEDIES.format(columns=columns)
    return Verdict(
        name,
        "found",
        f"Nuisance latents: they tell of {'; '.join(one.words for one in leaking)}. Try, in this order: {advice}.",
    )


def _list(found: Sequence[Told]) -> str:
    return ", ".join(one.column for one in found)


def _one_scan_each(values: pd.Series, subjects: Sequence[str]) -> npt.NDArray[np.intp]:
    """Row of one scan with a known value of each subject: of the k-th subject its k-th visit, counted round."""
    rows = pd.Series(np.arange(len(values)))[values.notna().to_numpy()]
    chosen = [
        group.iloc[place % len(group)]
        for place, (_, group) in enumerate(rows.groupby(np.asarray(subjects, dtype=str)[rows.to_numpy()], sort=True))
    ]
    kept = np.unique(np.linspace(0, len(chosen) - 1, min(len(chosen), MAX_SUBJECTS)).round().astype(np.intp))
    return np.asarray(chosen, dtype=np.intp)[kept] if chosen else np.zeros(0, dtype=np.intp)


def _target(known: pd.Series, *, number: bool) -> Array:
    """(subject, 1) number, or (subject, level) 0 or 1; no column when nothing varies."""
    if number:
        column = known.to_numpy(float)[:, None]
        return column if len(column) and np.ptp(column) > 0 else column[:, :0]
    words = known.astype(str).to_numpy()
    levels = np.unique(words)
    return (words[:, None] == levels).astype(float) if len(levels) > 1 else np.zeros((len(words), 0))


def _ridge(latents: npt.NDArray[np.float32]) -> tuple[Array, Array] | None:
    """Hat matrix of ridge regression on standardised latents with a free intercept, and its leverages.

    The penalty takes the latents and the noise for equally strong, so it needs no choice and none can flatter.
    """
    z = latents.astype(np.float64)
    sd = z.std(axis=0)
    z = (z - z.mean(axis=0))[:, sd > 1e-6 * max(float(sd.max(initial=0.0)), 1e-30)] / sd[
        sd > 1e-6 * max(sd.max(), 1e-30)
    ]
    if z.shape[1] == 0:
        return None
    gram, n = z @ z.T / z.shape[1], len(z)
    hat = np.linalg.solve(gram + np.eye(n) * np.trace(gram) / n, gram).T + 1.0 / n
    return hat, np.diag(hat).copy()


def _scores(
    ridge: tuple[Array, Array], target: Array, orders: npt.NDArray[np.intp], *, number: bool
) -> tuple[Array, Array]:
    """R2 and balanced accuracy for each order of the target, of predictions by leave-one-out in closed form."""
    hat, leverage = ridge
    n, n_targets = target.shape
    r2, accuracy = np.empty(len(orders)), np.full(len(orders), np.nan)
    chunk = max(1, 20_000_000 // (n * n_targets))
    for start in range(0, len(orders), chunk):
        y = target[orders[start : start + chunk]]
        flat = np.moveaxis(y, 0, 1).reshape(n, -1)
        error = ((flat - hat @ flat) / (1.0 - leverage)[:, None]).reshape(n, -1, n_targets)
        error = np.moveaxis(error, 1, 0)
        # Against the mean of the others, which a scan's own value pushes away from itself.
        mean = (target.sum(axis=0) - y) / (n - 1)
        r2[start : start + chunk] = 1.0 - np.square(error).sum(axis=(1, 2)) / np.square(y - mean).sum(axis=(1, 2))
        if not number:
            drawn = y - error - mean
            # (order, level, target): a rule leans to no level when it decides half-way between a level and the others.
            centres = np.einsum("ois,oit->ost", y, drawn) / target.sum(axis=0)[None, :, None]
            inside = np.einsum("oss->os", centres)
            outside = (centres.sum(axis=1) - inside) / (n_targets - 1)
            drawn -= 0.5 * (inside + outside)[:, None, :]
            right = np.take_along_axis(y, drawn.argmax(axis=2)[:, :, None], axis=2)
            accuracy[start : start + chunk] = ((right * y).sum(axis=1) / target.sum(axis=0)).mean(axis=1)
    return r2, accuracy
