import numpy as np
import pandas as pd

from nilatent.plots import training

HISTORY = pd.DataFrame(
    {"epoch": [0, 1, 2, 3], "train_loss": [np.nan, 3, 2, 1], "validation_fvu": [0.9, 0.8, 0.7, 0.75], "pca_fvu": 0.85}
)


def test_curves_are_the_history_and_the_kept_epoch_is_marked() -> None:
    loss, fvu = training.draw(HISTORY, best_epoch=2).axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 3], [2, 2], [3, 1]])
    np.testing.assert_array_equal(fvu.lines[0].get_ydata(), HISTORY["validation_fvu"])
    np.testing.assert_array_equal(fvu.collections[0].get_offsets(), [[2, 0.7]])
    assert set(fvu.lines[1].get_ydata()) == {0.85}


def test_a_variational_model_has_its_kl() -> None:
    assert len(training.draw(HISTORY.assign(kl=[1.0, 2, 3, 4]), best_epoch=0).axes) == 3
    assert len(training.draw(HISTORY.assign(kl=np.nan), best_epoch=0).axes) == 2


def test_no_epoch_is_said_in_words() -> None:
    assert "no epoch" in training.draw(HISTORY.head(0), best_epoch=None).axes[0].texts[0].get_text()
