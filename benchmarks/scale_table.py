"""Tables and the figure of what `scale.py` measured."""

import math
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

BYTES_PER_SCAN = 32 * 8
"""Of the latent table: 32 latents in double precision."""
SHOWN = (
    "pack",
    "train",
    "encode",
    "reconstruction",
    "projections",
    "lrcp",
    "prediction",
    "leaks",
    "fidelity",
    "report",
)
COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7", "#7f7f7f", "#8c564b", "#5f4b8b")
MARKERS = "osd^v<>Ph*"


MARKS = ("<!-- measured -->", "<!-- end -->")


def table(rows: pd.DataFrame) -> str:
    """Processor seconds, and memory beyond what the imports take, of every stage at every count."""
    counts = sorted(rows["count"].unique())
    seconds = rows.pivot(index="stage", columns="count", values="processor_s")
    held = rows.assign(held=rows["peak_mb"] - rows["before_mb"]).pivot(index="stage", columns="count", values="held")
    notes = rows[rows["note"] != ""].drop_duplicates("stage", keep="last").set_index("stage")["note"]
    heads = [f"s, {count:,}" for count in counts] + ["exponent"]
    heads += [f"MB, {count:,}" for count in counts] + ["latent tables", "note"]
    lines = [f"| Stage | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for stage in dict.fromkeys(rows["stage"]):
        took, kept = (of.loc[stage].to_numpy(dtype=float) for of in (seconds, held))
        cells = [*map(_number, took), _exponent(counts, took), *map(_number, kept), _tables(counts, kept)]
        lines.append(f"| {stage} | {' | '.join(cells)} | {notes.get(stage, '')} |")
    return "\n".join(lines)


def write_table(text: str, page: Path) -> None:
    """Put a table between the marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _exponent(counts: list[int], took: np.ndarray) -> str:
    """Of the time between the two largest counts that were measured: 1 is proportional."""
    known = [(count, value) for count, value in zip(counts, took, strict=True) if value > 0]
    if len(known) < 2:
        return ""
    (few, short), (many, long) = known[-2:]
    return f"{math.log(long / short) / math.log(many / few):.2f}"


def _tables(counts: list[int], held: np.ndarray) -> str:
    """How many latent tables the memory grew by for each one that the scans grew by, between the two largest counts."""
    if len(counts) < 2 or np.isnan(held[-2:]).any():
        return ""
    return f"{max(held[-1] - held[-2], 0) * 1e6 / ((counts[-1] - counts[-2]) * BYTES_PER_SCAN):.0f}"


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Seconds and memory against the number of scans, both logarithmic."""
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "scale", "font.size": 9}
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
    for stage, colour, marker in zip(SHOWN, COLOURS, MARKERS, strict=True):
        some = rows[rows["stage"] == stage].sort_values("count")
        if some.empty:
            continue
        style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.2, "label": stage}
        axes[0].plot(some["count"], some["processor_s"], **style)
        axes[1].plot(some["count"], (some["peak_mb"] - some["before_mb"]).clip(lower=1), **style)
    counts = np.array(sorted(rows["count"].unique()), dtype=float)
    for axis, title, size in (
        (axes[0], "processor seconds", 0.01),
        (axes[1], "anonymous memory at the peak, MB beyond the imports", BYTES_PER_SCAN / 1e6),
    ):
        axis.plot(counts, size * counts, color="0.6", linestyle="--", linewidth=1, zorder=0)
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="scans",
            title=title,
            xticks=counts,
            xticklabels=[f"{n:,.0f}" for n in counts],
        )
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    last = counts[-1]
    for axis, words, size in ((axes[0], "proportional", 0.01), (axes[1], "the latent table", BYTES_PER_SCAN / 1e6)):
        place = {"xytext": (-14, 0), "textcoords": "offset points", "ha": "right"}
        axis.annotate(words, (last, size * last), color="0.4", **place)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    plt.close(figure)
