"""The tables of `training.py` in Markdown."""

import pandas as pd


def tell_speed(table: pd.DataFrame) -> str:
    """Markdown: medians over the turns, and the ratio to ours as it comes, within each precision."""
    lines = [
        "| Precision | Model | Weights | volumes/s (wall) | processor ms a volume | times ours |",
        "|---|---|---|---|---|---|",
    ]
    for precision, some in table.groupby("precision", sort=False):
        medians = some.groupby("model", sort=False)[["n_weights", "wall_s", "processor_s"]].median()
        ours = medians.iloc[0]["processor_s"]
        for name, row in medians.iterrows():
            lines.append(
                f"| {precision} | {name} | {row['n_weights']:,.0f} | {1 / row['wall_s']:.1f} | {1e3 * row['processor_s']:.1f} "
                f"| {row['processor_s'] / ours:.2f} |"
            )
    return "\n".join(lines)


def tell_quality(table: pd.DataFrame, pca_fvu: float) -> str:
    """Markdown: medians over the repeats; a target counts as reached when most repeats reached it."""
    lines = [
        f"Held-out FVU of PCA {pca_fvu:.4f}; targets {pca_fvu + 0.01:.4f} (PCA + .01) and .9.",
        "",
        "| Model | learning rate | processor s (wall s) to PCA + .01 | to .9 | best FVU | processor s in all |",
        "|---|---|---|---|---|---|",
    ]
    for name, some in table.groupby("model", sort=False):
        told = []
        for target in ("pca", "modest"):
            wall, processor = some[f"{target}_wall_s"], some[f"{target}_processor_s"]
            n_reached = int(processor.notna().sum())
            told.append(
                f"{processor.median():.1f} ({wall.median():.1f})"
                + (f", {n_reached} of {len(some)}" if n_reached < len(some) else "")
                if n_reached
                else f"not reached in {some['n_epochs'].median():.0f} epochs"
            )
        rate, best, spent = some["learning_rate"].iloc[0], some["best_fvu"].median(), some["processor_s"].median()
        lines.append(f"| {name} | {rate:g} | {told[0]} | {told[1]} | {best:.4f} | {spent:.0f} |")
    return "\n".join(lines)
