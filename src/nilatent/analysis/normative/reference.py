"""What is expected of a brain of this age, sex and site, and how far a new one lies from it: the array core.

Least squares on the reference scans; the deviation of a scan that was not among them is divided by the SD of a *prediction*,
which holds the uncertainty of the fit as well, and its t-distribution is turned into an exact z. So z-scores of new reference
subjects are standard normal whether forty or four hundred were fitted, as long as residuals are normal.

References
----------
Bozek et al. 2023, doi:10.1016/j.neuroimage.2023.119864 (uncertainty in normative models). Harrell 2015,
doi:10.1007/978-3-319-19425-7 (natural splines and their knots). Crawford & Howell 1998,
doi:10.1076/clin.12.4.482.7241 (one case against few controls).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import ndtri_exp
from scipy.stats import t as student_t

# Reference scans from which on a curve of age, one with another knot, and a variance that changes may be chosen: on
# simulated cohorts of fewer, what was chosen so often was noise that more than 5 % of new scans lay beyond 1.96.
MIN_CURVE, MIN_FINE_CURVE, MIN_UNEVEN = 30, 100, 60
KNOTS = {3: (0.1, 0.5, 0.9), 4: (0.05, 0.35, 0.65, 0.95)}
# Slopes of the logarithm of the variance per SD of age that may be chosen, beside none.
VARIANCE_SLOPES = (-0.8, -0.4, 0.4, 0.8)
# A more complex model has to predict left-out scans better by this many standard errors.
STANDARD_ERRORS = 2.0
# A prediction from fewer degrees of freedom says little of anybody.
MIN_DEGREES = 5
FLAT = 1e-9


@dataclass(frozen=True, eq=False)
class Predictors:
    """What is known of scans beside their images; nothing missing.

    Parameters
    ----------
    plain : ndarray
        (scan, predictor) numbers and 0/1 columns that act linearly.
    age : ndarray or None
        (scan,) the one that may act along a curve, and with which the variance may change; None for none.
    """

    plain: np.ndarray
    age: np.ndarray | None

    def rows(self, chosen: np.ndarray) -> "Predictors":
        """The same of some scans."""
        return Predictors(self.plain[chosen], None if self.age is None else self.age[chosen])

    @property
    def linear(self) -> np.ndarray:
        """(scan, 1 + predictor) intercept, plain predictors and age as it is."""
        age = np.empty((len(self.plain), 0)) if self.age is None else self.age[:, None]
        return np.hstack([np.ones((len(self.plain), 1)), self.plain, age])


@dataclass(frozen=True, eq=False)
class Deviations:
    """How far new scans lie from what the reference scans let expect.

    Parameters
    ----------
    z : ndarray
        (new, column) standard normal for a new scan of the reference population; NaN where a column is flat.
    units : ndarray
        (new, column) the same in SD of a prediction: a t.
    residuals : ndarray
        (reference, column) residuals of the fit, in columns of unit variance.
    sd : ndarray
        (column,) residual SD at the mean age, in the unit of the values.
    curved, uneven : ndarray
        (column,) bool: age acts along a curve; the variance changes with age.
    """

    z: np.ndarray
    units: np.ndarray
    residuals: np.ndarray
    sd: np.ndarray
    curved: np.ndarray
    uneven: np.ndarray


@dataclass(frozen=True, eq=False)
class _Model:
    """One candidate: designs and relative variances of reference and new scans."""

    reference: np.ndarray
    new: np.ndarray
    variance: np.ndarray
    new_variance: np.ndarray
    curved: bool
    uneven: bool


def normal_score(t_value: np.ndarray, degrees: int | np.ndarray) -> np.ndarray:
    """The z that is as improbable as a t: exact in the tails, where a cumulative probability would round to 1.

    Examples
    --------
    >>> round(float(normal_score(np.array(2.228), 10)), 2)
    1.96
    """
    tail = np.log(np.maximum(student_t.sf(np.abs(t_value), degrees), 1e-300))
    return np.asarray(-np.sign(t_value) * ndtri_exp(tail))


def foreseen(reference: Predictors, new: Predictors) -> np.ndarray:
    """(new,) bool: the reference scans say what to expect, because they hold the scan's site, sex and so on.

    A prediction exists when the row of predictors is a combination of the rows that were fitted. A site without a reference
    scan, or an age when all reference scans are of one age, is none.
    """
    design, rows = reference.linear, new.linear
    centre, scale = design[:, 1:].mean(axis=0), design[:, 1:].std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    design[:, 1:], rows[:, 1:] = (design[:, 1:] - centre) / scale, (rows[:, 1:] - centre) / scale
    _, singular, right = np.linalg.svd(design, full_matrices=False)
    right = right[singular > 1e-8 * singular[0]]
    beyond = rows - rows @ right.T @ right
    return np.asarray(np.linalg.norm(beyond, axis=1) <= 1e-6 * np.linalg.norm(rows, axis=1))


def degrees_of_freedom(reference: Predictors) -> int:
    """Residual degrees of freedom of the linear model."""
    return len(reference.plain) - int(np.linalg.matrix_rank(_unit_columns(reference.linear)))


def deviations(values: np.ndarray, reference: Predictors, new_values: np.ndarray, new: Predictors) -> Deviations:
    """Deviations of new scans from a model fitted on reference scans alone.

    Column by column, age may act along a natural spline and the residual variance may change with age: whichever predicts
    the reference scans better when each is left out, by two standard errors of the mean gain in log density; otherwise age
    acts linearly and the variance is one.

    Parameters
    ----------
    values : ndarray
        (reference, column) values of the reference scans; independent rows.
    reference, new : Predictors
        Of the same scans; every new row is `foreseen`.
    new_values : ndarray
        (new, column) values of scans of subjects that are not among the reference scans.

    Returns
    -------
    Deviations
        Columns that are constant in the reference scans, or explained without remainder, are NaN.
    """
    best: Deviations | None = None
    simple = gained = np.empty(0)
    for model in _models(reference, new):
        found, density = _fitted(values, new_values, model)
        if best is None:
            best, simple, gained = found, density, np.zeros(values.shape[1])
            continue
        gain = density - simple
        known = np.isfinite(gain).all(axis=1)
        mean = gain[known].mean(axis=0)
        sure = mean > STANDARD_ERRORS * gain[known].std(axis=0, ddof=1) / np.sqrt(known.sum())
        better = sure & (mean > gained)
        gained = np.where(better, mean, gained)
        best = _merged(best, found, better)
    assert best is not None  # The first candidate always exists.
    return best


def _merged(one: Deviations, other: Deviations, take: np.ndarray) -> Deviations:
    names = ("z", "units", "residuals", "sd", "curved", "uneven")
    return Deviations(**{name: np.where(take, getattr(other, name), getattr(one, name)) for name in names})


def _models(reference: Predictors, new: Predictors) -> Iterator[_Model]:
    """Candidates, the simplest first."""
    flat, ones = np.ones(len(reference.plain)), np.ones(len(new.plain))
    yield _Model(reference.linear, new.linear, flat, ones, curved=False, uneven=False)
    if reference.age is None or new.age is None or len(flat) < MIN_CURVE or np.ptp(reference.age) == 0:
        return
    age = (reference.age - reference.age.mean()) / reference.age.std()
    # Beyond the ages that were fitted, the variance stays what it is at their edge.
    new_age = np.clip((new.age - reference.age.mean()) / reference.age.std(), age.min(), age.max())
    designs = [(reference.linear, new.linear, False)]
    designs += [
        (np.hstack([reference.linear, curve]), np.hstack([new.linear, new_curve]), True)
        for curve, new_curve in _curves(reference.age, new.age)
    ]
    for design, new_design, curved in designs:
        for slope in (0.0, *(VARIANCE_SLOPES if len(flat) >= MIN_UNEVEN else ())):
            if curved or slope:
                variance = np.exp(slope * age), np.exp(slope * new_age)
                yield _Model(design, new_design, *variance, curved=curved, uneven=bool(slope))


def _curves(age: np.ndarray, new_age: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Bases of natural splines by number of knots, without what is linear in age."""
    for n_knots, quantiles in KNOTS.items():
        knots = np.quantile(age, quantiles)
        if n_knots > 3 and len(age) < MIN_FINE_CURVE:
            continue
        if np.diff(knots).min() > 1e-6 * np.ptp(age):
            # One of the cardinal splines less for the intercept, one less for the linear part.
            spline = CubicSpline(knots, np.eye(n_knots)[:, 1:-1], bc_type="natural")
            yield _natural(spline, age), _natural(spline, new_age)


def _natural(spline: CubicSpline, age: np.ndarray) -> np.ndarray:
    """Values of a spline that goes on as a straight line beyond its outer knots."""
    inside = np.clip(age, spline.x[0], spline.x[-1])
    return np.asarray(spline(inside) + spline(inside, 1) * (age - inside)[:, None])


def _unit_columns(design: np.ndarray) -> np.ndarray:
    return np.asarray(design / np.maximum(np.linalg.norm(design, axis=0), np.finfo(float).tiny))


def _fitted(values: np.ndarray, new_values: np.ndarray, model: _Model) -> tuple[Deviations, np.ndarray]:
    """Deviations by one candidate, and (reference, column) the log density it gives each scan when that is left out."""
    root = np.sqrt(model.variance)[:, None]
    size = np.maximum(np.linalg.norm(model.reference, axis=0), np.finfo(float).tiny)
    left, singular, right = np.linalg.svd(model.reference / size / root, full_matrices=False)
    kept = singular > 1e-8 * singular[0]
    left, back = left[:, kept], (right[kept] / singular[kept, None]).T
    degrees = len(values) - int(kept.sum())
    scores = left.T @ (values / root)
    residuals = values / root - left @ scores
    squares = np.square(residuals).sum(axis=0)
    sd = np.sqrt(squares / degrees)
    flat = sd <= FLAT * np.maximum(np.abs(values).max(axis=0), np.finfo(float).tiny)
    sd, squares = np.where(flat, np.nan, sd), np.where(flat, np.nan, squares)
    row = (model.new / size) @ back
    spread = np.sqrt(model.new_variance + np.square(row).sum(axis=1))
    units = (new_values - row @ scores) / (sd * spread[:, None])
    # A scan that is the only one of its site has no prediction when it is left out.
    stays = 1 - np.square(left).sum(axis=1)
    stays = np.where(stays > 1e-8, stays, np.nan)[:, None]
    without = np.sqrt(np.maximum(squares - np.square(residuals) / stays, np.finfo(float).tiny) / (degrees - 1))
    density = student_t.logpdf(residuals / (without * np.sqrt(stays)), degrees - 1)
    density -= np.log(without * root / np.sqrt(stays))
    density[:, flat] = 0.0
    n_columns = values.shape[1]
    found = Deviations(
        z=normal_score(units, degrees),
        units=units,
        residuals=residuals / sd * np.sqrt(len(values) / degrees),
        sd=sd,
        curved=np.full(n_columns, model.curved),
        uneven=np.full(n_columns, model.uneven),
    )
    return found, density
