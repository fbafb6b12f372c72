"""Which of many trials are beaten by none, and which of those is the compromise."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def dominated(point: Floats, others: Floats) -> bool:
    """Whether some other is nowhere worse and somewhere better.

    Parameters
    ----------
    point : ndarray
        (objective,), low is good.
    others : ndarray
        (trial, objective).
    """
    return bool(((others <= point).all(axis=1) & (others < point).any(axis=1)).any())


def on_front(costs: Floats) -> npt.NDArray[np.bool_]:
    """Which trials are dominated by no other; equals stand on the front together.

    Parameters
    ----------
    costs : ndarray
        (trial, objective), low is good, all finite.

    Returns
    -------
    ndarray
        (trial,) bool.
    """
    return np.array([not dominated(point, costs) for point in costs], dtype=bool)


def compromise(costs: Floats) -> int:
    """Row of the front that is nearest to the best of every objective at once.

    Parameters
    ----------
    costs : ndarray
        (trial, objective), low is good, all finite, at least one row.

    Returns
    -------
    int
        Each objective is scaled by its range over the front, and the distance is Euclidean. A tie goes to the lower first
        objective, then to the earlier row. With one objective that is its lowest value.
    """
    rows = np.flatnonzero(on_front(costs))
    front = costs[rows]
    low, high = front.min(axis=0), front.max(axis=0)
    scaled = (front - low) / np.where(high > low, high - low, 1.0)
    # Rounded, or the last bit of a square root would decide ties.
    distance = np.sqrt(np.square(scaled).sum(axis=1)).round(12)
    return int(rows[np.lexsort((rows, front[:, 0], distance))[0]])
