"""What a classifier tells of the site when it learns from harmonised scans that ComBat was not fitted on.

ComBat aligns the scans it is fitted on better than any others, so a classifier that learns from these sees sites without a
difference and stays blind to what is left in new scans. Here three folds play three parts: ComBat is fitted on all folds
but two, the classifier learns from one of the two, and calls the scans of the other. It learns from fewer scans, which is
why it is held against the same classifier before harmonisation.
"""

import numpy as np

from nilatent.analysis.combat import ADJUSTED, fit_combat
from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.harmonise.folds import AFTER, BEFORE, STATES, Measures, Usable
from nilatent.analysis.held_out import parts
from nilatent.analysis.site_signal import MODELS, call_labels


def fresh_calls(measures: Measures, scans: Usable) -> tuple[dict[tuple[str, str], np.ndarray], np.ndarray]:
    """Sites called of held-out scans, fold by fold.

    Parameters
    ----------
    measures : Measures
        One description of the scans.
    scans : Usable
        The scans.

    Returns
    -------
    calls : dict
        State and model to the site called of each scan, (scan,) str.
    judged : ndarray
        (scan,) bool: could be harmonised by the folds that are left. None with fewer than three folds.
    """
    n, folds = len(scans.rows), np.unique(scans.folds)
    calls = {(state, model): np.full(n, "", dtype="<U128") for state in STATES for model in MODELS}
    judged = np.zeros(n, dtype=bool)
    if len(folds) < 3:
        return calls, judged
    for number, (train, test) in enumerate(parts(scans.folds)):
        x = np.asarray(measures.of_fold(number), dtype=np.float64)[scans.rows]
        learn = np.flatnonzero(scans.folds == folds[(number + 1) % len(folds)])
        fit = np.setdiff1d(train, learn)
        try:
            combat = fit_combat(x[fit], scans.site[fit], scans.keep[fit], subjects=scans.subjects[fit])
        except NotComparableError:
            continue
        made, flags = combat.apply(x, scans.site, scans.keep)
        learn = learn[flags[learn] == ADJUSTED]
        if len(np.unique(scans.site[learn])) < 2:
            continue
        judged[test] = flags[test] == ADJUSTED
        for state, values in ((BEFORE, x), (AFTER, made)):
            for model in MODELS:
                calls[state, model][test] = call_labels(values[learn], scans.site[learn], values[test], model=model)
    return calls, judged
