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


def test_a_variational_model_with_all_figures_has_a_panel_each() -> None:
    full = HISTORY.assign(kl=1.0, active_share=[0.0, 0.5, 1.0, 1.0], beta_eff=2.0, shuffle_ratio=[1.0, 1.1, 1.2, 1.3])
    panels = training.draw(full, best_epoch=1).axes
    assert len(panels) == 6
    np.testing.assert_array_equal(panels[3].lines[0].get_ydata(), full["active_share"])
    np.testing.assert_array_equal(panels[5].lines[0].get_ydata(), full["shuffle_ratio"])


def test_failures_are_marked_in_the_epochs_in_which_they_were_found() -> None:
    named = ["mean local minimum, posterior collapse", "posterior collapse", "none", "over-fitting"]
    strip = training.draw(HISTORY.assign(failures=named), best_epoch=2).axes[-1]
    rows = [text.get_text() for text in strip.get_yticklabels()]
    assert rows == ["mean local minimum", "posterior collapse", "over-fitting"]
    marked = [line.get_xydata().tolist() for line in strip.lines[1::2][:3]]
    assert marked == [[[0, 0]], [[0, 1], [1, 1]], [[3, 2]]]
    assert strip.lines[-1].get_xdata()[0] == 2


def test_a_quiet_training_has_a_strip_that_says_so() -> None:
    strip = training.draw(HISTORY.assign(failures="none"), best_epoch=None).axes[-1]
    assert [text.get_text() for text in strip.get_yticklabels()] == ["none found"]
    assert all(len(line.get_xdata()) == 0 for line in strip.lines[1::2])
