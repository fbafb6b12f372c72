"""The tables of docs/calibration.md, from the rows of `tests.calibration.run`.

python -m tests.calibration.table ROWS docs/calibration.md
python -m tests.calibration.table ROWS
"""

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from tests.calibration.run import code_hash, read_rows
from tests.calibration.studies import STUDIES

LEVEL = 0.05
METHODS = {
    "lrcp": "LRCP",
    "lent": "without own support",
    "joint": "joint",
    "linked": "linked",
    "roi": "ROI t-test",
    "vbm": "VBM",
}
BADGES = {
    "cubv_latents": "CUBV badge",
    "cubv_latents_p": "CUBV p ≤ .05",
    "sar_latents": "SAR badge",
    "sar_latents_p": "SAR p ≤ .05",
    "cubv_regions": "CUBV, regions",
    "sar_regions": "SAR, regions",
    "sam": "SAM, any region",
}


def exact_interval(count: int, total: int) -> tuple[float, float]:
    """Clopper-Pearson limits, 95 %."""
    limits = binomtest(count, total).proportion_ci(0.95, method="exact")
    return float(limits.low), float(limits.high)


def rate(hits: pd.Series) -> str:
    """Share of cohorts in per cent with its exact interval; an exclamation mark where even the lower limit is above 5 %."""
    low, high = exact_interval(int(hits.sum()), len(hits))
    mark = " !" if low > LEVEL else ""
    return f"{100 * hits.mean():.1f} ({100 * low:.1f}–{100 * high:.1f}){mark}"


def any_region(rows: pd.DataFrame | dict[str, float], method: str) -> pd.Series | bool:
    """(cohort,) whether the method called any region, planted or not."""
    return rows[f"{method}_planted"] + rows[f"{method}_other"] > 0


def false_positives(rows: pd.DataFrame) -> dict[str, str]:
    """Of cohorts in which nothing is planted: the share in which any region is called."""
    return {title: rate(any_region(rows, method)) for method, title in METHODS.items() if known(rows, method)}


def known(rows: pd.DataFrame, method: str) -> bool:
    """Whether the method was used in these cohorts."""
    return f"{method}_other" in rows and bool(rows[f"{method}_other"].notna().all())


def power(rows: pd.DataFrame) -> dict[str, str]:
    """Share of planted regions that are called, and how many others are in each cohort."""
    cells = {}
    for method, title in METHODS.items():
        if known(rows, method):
            found = rows[f"{method}_planted"] / rows["n_planted"]
            error = f" ± {1.96 * found.std(ddof=1) / np.sqrt(len(found)):.2f}" if len(found) > 1 else ""
            cells[title] = f"{found.mean():.2f}{error}; {rows[f'{method}_other'].mean():.2f}"
    return cells


def graded(rows: pd.DataFrame) -> dict[str, str]:
    """Planted regions that LRCP calls, and how many of these it grades strong."""
    called, strong = int(rows["lrcp_planted"].sum()), int(rows["strong"].sum())
    share = f"{100 * strong / called:.0f} %" if called else "-"
    return {"planted regions called": f"{called} of {int(rows['n_planted'].sum())}", "of these graded strong": share}


def badge_rates(rows: pd.DataFrame) -> dict[str, str]:
    return {title: rate(rows[name]) for name, title in BADGES.items()}


def gate_rate(rows: pd.DataFrame) -> dict[str, str]:
    return {"gate open": rate(rows["gate"])}


def planted_or_not(rows: pd.DataFrame) -> dict[str, str]:
    """Of a study that has both kinds of condition: false positives, or power and grades, in the same columns."""
    if rows["n_planted"].max() == 0:
        return false_positives(rows)
    return power(rows) | {"LRCP, graded strong": graded(rows)["of these graded strong"]}


def differences_in_rate(rows: pd.DataFrame) -> dict[str, str]:
    """Family-wise calls of each kind of measure; and of the first region p, error, coverage, and rates of subjects."""
    planted = rows["n_planted"].max() > 0
    cells = {}
    for kind, title in (("regions", "regions"), ("decoded", "decoded regions")):
        found = power(rows.rename(columns=lambda name, kind=kind: name.replace(kind, "roi"))) if planted else {}
        cells[title] = found["ROI t-test"] if planted else rate(any_region(rows, kind))
    for name, title in (("direction", "direction"), ("ratio", "likelihood ratio"), ("permuted", "permutation")):
        cells[title] = rate(rows[name]).removesuffix(" !") if planted else rate(rows[name])
    error = rows["estimate"] - rows["truth"]
    limits = 1.96 * error.std(ddof=1) / np.sqrt(len(rows))
    cells["bias"] = f"{error.mean():+.4f} ± {limits:.4f}"
    cells["coverage"] = rate(
        (rows["low"] <= rows["truth"].mean()) & (rows["truth"].mean() <= rows["high"])
    ).removesuffix(" !")
    if planted and rows["drawn"].notna().all():
        cells["drawn"] = f"{100 * rows['drawn'].mean() / rows['truth'].mean():.0f} %"
    cells["r of subjects' rates, model; own lines"] = f"{rows['slopes_r'].mean():.2f}; {rows['lines_r'].mean():.2f}"
    return cells


CELLS: dict[str, Callable[[pd.DataFrame], dict[str, str]]] = {
    "regions": false_positives,
    "badges": badge_rates,
    "gate": gate_rate,
    "gate of both models": gate_rate,
    "power": power,
    "grades": graded,
    "stages": power,
    "images": planted_or_not,
    "trained": planted_or_not,
    "longitudinal": differences_in_rate,
    "longitudinal images": differences_in_rate,
}


def table(rows: pd.DataFrame, study: str) -> str:
    """One line of Markdown per condition, in the order of the study."""
    lines = []
    for condition, settings in STUDIES[study].conditions.items():
        chosen = rows[(rows["condition"] == condition) & (rows["settings"] == repr(settings))]
        if len(chosen):
            lines.append({"condition": condition, "cohorts": str(len(chosen))} | CELLS[study](chosen))
    if not lines:
        return "No cohort yet.\n"
    found = pd.DataFrame(lines).fillna("-")
    body = [found.columns, ["---"] * found.shape[1], *found.to_numpy()]
    code = ", ".join(sorted(rows["code"].unique()))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in body) + f"\n\nCode {code}.\n"


def current_rows(folder: Path, study: str, *, any_code: bool) -> pd.DataFrame:
    """Rows of the code as it is now.

    Raises
    ------
    SystemExit
        When all rows come from other code.
    """
    rows = read_rows(folder, study)
    if any_code or not len(rows):
        return rows.drop_duplicates(["condition", "settings", "seed"], keep="last")
    now = code_hash(STUDIES[study].files())
    if not (rows["code"] == now).any():
        raise SystemExit(
            f"None of the {len(rows)} rows of '{study}' was made by the code as it is now ({now}). Run them again, or take "
            "them as they are with --any-code."
        )
    return rows[rows["code"] == now]


def inserted(text: str, tables: dict[str, str]) -> str:
    """The text with each table between its pair of marks."""
    for study, lines in tables.items():
        marks = re.escape(f"<!-- table: {study} -->"), re.escape("<!-- end -->")
        pattern = re.compile(f"({marks[0]}\n).*?({marks[1]})", re.DOTALL)
        text, count = pattern.subn(lambda found, lines=lines: f"{found[1]}\n{lines}\n{found[2]}", text)
        if count != 1:
            raise SystemExit(f"The document has {count} places for the table '{study}'; it needs exactly one.")
    return text


def tables_of(folder: Path, studies: Iterable[str], *, any_code: bool) -> dict[str, str]:
    return {study: table(current_rows(folder, study, any_code=any_code), study) for study in studies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the rows")
    parser.add_argument("document", type=Path, nargs="?", help="where the tables go; left out, they are printed")
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), help="left out: all the document has places for")
    parser.add_argument("--any-code", action="store_true", help="count rows that other code made too")
    given = parser.parse_args()
    text = None if given.document is None else given.document.read_text(encoding="utf-8")
    placed = [study for study in STUDIES if text is None or f"<!-- table: {study} -->" in text]
    made = tables_of(given.folder, given.studies or placed, any_code=given.any_code)
    if text is None:
        print("\n".join(f"{study}\n\n{lines}" for study, lines in made.items()))
    else:
        given.document.write_text(inserted(text, made), encoding="utf-8")


if __name__ == "__main__":
    main()
