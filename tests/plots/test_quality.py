import numpy as np
import pandas as pd

from nilatent.plots import quality, style
from nilatent.preprocess.quality import MEASURES

TABLE = pd.DataFrame(
    {"scan_id": list("abcd"), "gm_ml": [600.0, 700, 650, 100], "mask_dice": [0.9, 0.91, 0.92, 0.93], "tiv_ml": 1.0}
).assign(flags=["", "", np.nan, "gm_ml"])


def test_flagged_scans_are_set_apart_in_their_measure_only() -> None:
    dice, gm = (axes for axes in quality.draw(TABLE).axes if axes.get_xlabel())
    normal, flagged = gm.collections
    assert list(normal.get_offsets()[:, 0]) == [600.0, 700.0, 650.0]
    assert list(flagged.get_offsets()[:, 0]) == [100.0]
    assert len(dice.collections[1].get_offsets()) == 0
    assert flagged.get_facecolor()[0, :3].tolist() != normal.get_facecolor()[0, :3].tolist()


def test_a_constant_measure_is_left_out() -> None:
    shown = [axes.get_xlabel() for axes in quality.draw(TABLE).axes if axes.get_xlabel()]
    assert shown == ["mask Dice", "GM (mL)"]


def test_nothing_to_show_is_said_in_words() -> None:
    drawn = quality.draw(TABLE[["scan_id", "tiv_ml", "flags"]])
    assert "varies" in drawn.axes[0].texts[0].get_text()
    assert drawn.axes[0].texts[0].get_color() == style.INK


def test_every_measure_has_a_name_and_is_looked_at_from_its_bad_side() -> None:
    assert set(MEASURES) <= set(quality.COLUMN_NAMES)
    high = {name for name, (_, _, side) in MEASURES.items() if side == "high"}
    assert high <= set(quality.WORST_FIRST)
    assert not {name for name, (_, _, side) in MEASURES.items() if side in ("low", "both")} & set(quality.WORST_FIRST)
