from types import SimpleNamespace
from typing import cast

import pytest
import torch

from nilatent.errors import SettingError
from nilatent.models import ModelConfig, Posterior
from nilatent.study import check_study
from nilatent.training.objective import Objective


def test_the_pull_is_the_nats_of_the_score_about_the_first_latent() -> None:
    posterior = Posterior(mean=torch.tensor([[1.0, 9.0], [2.0, 9.0]]), log_var=torch.tensor([[0.0, 9.0], [9.0, 9.0]]))
    asked = SimpleNamespace(model_config=ModelConfig(align="mmse", align_weight=4.0))
    score = torch.tensor([3.0, float("nan")])
    # Half the precision times (1 - 3)^2 + 1; the scan without a score costs nothing, and the mean is over both.
    found = Objective._pull(cast(Objective, asked), posterior, score)
    assert float(found) == pytest.approx(0.5 * 4.0 * 5.0 / 2)


@pytest.mark.parametrize(("condition", "said"), [("group", "the group of the study"), ("aeg", "no column 'aeg'")])
def test_a_model_is_told_neither_the_group_nor_what_is_not_there(condition: str, said: str) -> None:
    import pandas as pd

    from nilatent.cohort import Cohort
    from nilatent.config import read_config

    cohort = Cohort(pd.DataFrame({"group": ["a", "b"], "age": [1.0, 2.0]}, index=["x", "y"]))
    with pytest.raises(SettingError, match=said):
        check_study(cohort, read_config(overrides={"study.group": "group", "model.condition": [condition]}))
