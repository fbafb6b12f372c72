"""Who is in the study: age of every scan, by data set and group."""

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from nilatent.plots import style

SEX_NAMES = {"F": "women", "M": "men"}
UNKNOWN = "sex not given"


@mpl.rc_context(style.STYLE)
def draw(scans: pd.DataFrame, *, group: str = "") -> Figure:
    """Age of every scan, one row per data set and group, coloured by sex.

    Parameters
    ----------
    scans : (scan, column) DataFrame
        Rows of the cohort with `dataset` and, where known, `age` in years, `sex` ("F", "M") and the group column.
    group
        Name of the group column; empty when the study has none.

    Returns
    -------
    Figure
        One dot per scan with a known age.
    """
    if "age" not in scans or not scans["age"].notna().any():
        return style.message("No age is given for any scan.")
    by = ["dataset", group] if group and group in scans else ["dataset"]
    rows = list(scans.groupby(by, sort=True, dropna=False))
    drawn = style.figure(7.2, 1.0 + 0.42 * len(rows))
    axes = drawn.add_subplot()
    sexes = scans["sex"].map(SEX_NAMES).fillna(UNKNOWN) if "sex" in scans else pd.Series(UNKNOWN, scans.index)
    looks = style.looks([*SEX_NAMES.values(), UNKNOWN])
    for height, (_, members) in enumerate(reversed(rows)):
        offsets = pd.Series(0.55 * style.spread(len(members)), members.index)
        for sex, (colour, marker) in looks.items():
            chosen = members.index[sexes.loc[members.index] == sex]
            axes.scatter(
                members.loc[chosen, "age"], height + offsets[chosen], s=16, c=colour, marker=marker, alpha=0.8, lw=0
            )
    for sex, (colour, marker) in looks.items():
        if (sexes == sex).any():
            axes.scatter([], [], s=16, c=colour, marker=marker, label=sex, lw=0)
    axes.set_yticks(range(len(rows)), [_row_name(names) for names, _ in reversed(rows)])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("age (years)")
    axes.spines["left"].set_visible(False)
    drawn.legend(loc="outside upper left", ncols=3, handletextpad=0.2)
    return drawn


def _row_name(names: tuple[Any, ...]) -> str:
    return " · ".join("not given" if pd.isna(name) else style.plain(name, width=24) for name in names)
