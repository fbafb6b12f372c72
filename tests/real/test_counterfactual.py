"""Real brains ten years older, beside the ages of another cohort that had no part in the model.

NILATENT_REAL_RUNS names a folder with ``depression``, a run on ds002748 (`nilatent run ... --folds 5`), and ``oasis``, the
OASIS scans prepared with the same recipe.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from nilatent.analysis.counterfactual import TOTAL, CounterfactualConfig, agreement, counterfactual
from nilatent.analysis.regional import regional
from nilatent.cohort import load_cohort
from nilatent.pools import open_pools
from nilatent.spaces import fold_spaces
from nilatent.volumes import pack

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def runs():
    if "NILATENT_REAL_RUNS" not in os.environ:
        pytest.skip("NILATENT_REAL_RUNS names no folder")
    return Path(os.environ["NILATENT_REAL_RUNS"])


def test_grey_matter_falls_with_age_where_it_does_in_other_people(runs, tmp_path):
    pools, oasis = open_pools(runs / "depression"), load_cohort(runs / "oasis")
    config = CounterfactualConfig(changes=("age=+10",), covariates=("age", "sex"))
    found = counterfactual(
        fold_spaces(pools), pools.volumes, pools.regions, pools.prepared.scans, pools.of_mask, config
    )
    table = found.table.set_index("region")
    assert -25 < table.loc[TOTAL, "ml_low"] < table.loc[TOTAL, "ml_high"] < 0
    # 0.2 to 0.5 % a year is what large cross-sections report of adults.
    assert -5 < table.loc[TOTAL, "percent"] < -0.5
    assert float(found.data["own_changed"][0]) > 2 * float(found.data["own_chance"][0])
    regions = regional(pack(oasis, pools.volumes.grid, tmp_path, mask=pools.volumes.mask), pools.of_mask)
    effect = 100 * found.data["effect"].values[0] / pools.regions.mean().to_numpy()
    others = ("sex", "head_size_factor")
    asked = agreement(effect, 100 * regions / regions.mean(), oasis.scans, "age", others=others, n_permutations=5000)
    assert asked.n_subjects == 20
    assert asked.rho > 0.2
    assert asked.p_value < 0.05
    unrelated = agreement(
        np.roll(effect, 7), 100 * regions / regions.mean(), oasis.scans, "age", others=others, n_permutations=1000
    )
    assert unrelated.p_value > 0.05
