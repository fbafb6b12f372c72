"""Who is in the study and who was left out: the first section of the page, which needs no model."""

import pandas as pd

from nilatent.plots import cohort as cohort_plot
from nilatent.report import page, study

COHORT_NAMES = {
    "dataset": ("data set", ""),
    "n_scans": ("scans", ""),
    "n_subjects": ("persons", ""),
    "age": ("age (years), mean ± SD", "Over scans with a known age"),
    "age_range": ("age (years), range", ""),
    "women": ("women", "Persons"),
    "men": ("men", "Persons"),
    "unknown": ("sex not given", "Persons"),
}
EXCLUSION_NAMES = {"scan_id": ("scan", ""), "stage": ("stage", ""), "rule": ("rule", ""), "reason": ("reason", "")}


def cohort_section(run: study.Run) -> page.Section:
    """Who is in the study and who was left out, with the reason."""
    scans = run.cohort.scans
    excluded = run.cohort.excluded.reindex(columns=list(EXCLUSION_NAMES)).astype(object)
    excluded["reason"] = excluded["reason"].astype(str).map(study.without_paths)
    by = "data set and group" if run.group else "data set"
    counted = cohort_table(scans, group=run.group)
    if not counted["unknown"].any():
        counted = counted.drop(columns="unknown")
    sheets = [page.sheet(counted, f"Scans by {by}.", names=_cohort_names(run.group))]
    if run.site:
        caption = f"Scans at each value of {run.site}" + (f", by {run.group}." if run.group else ".")
        sheets.append(page.sheet(site_table(scans, site=run.site, group=run.group), caption, names={}))
    if len(excluded):
        caption = "Scans that were left out: every one, with the rule it broke."
        sheets.append(page.sheet(excluded, caption, names=EXCLUSION_NAMES))
    drawn = page.picture(
        cohort_plot.draw(scans, group=run.group),
        "cohort",
        caption=f"Age of every scan, by {by}.",
        alternative=f"One dot per scan at its age, in rows by {by}. The table below gives the numbers.",
    )
    n_subjects = scans["subject_id"].nunique()
    return page.Section(
        "Cohort",
        "cohort",
        "Who is in the study, and who was left out and why.",
        answer=f"{study.count(len(scans), 'scan')} of {study.count(n_subjects, 'person')} "
        f"{'is' if len(scans) == 1 else 'are'} in; {study.count(len(excluded), 'scan')} left out.",
        pictures=(drawn,),
        sheets=tuple(sheets),
        files=("cohort/scans.tsv", "cohort/excluded.tsv"),
    )


def _cohort_names(group: str) -> dict[str, tuple[str, str]]:
    """The group column stands after the data set, under its own name."""
    first = {"dataset": COHORT_NAMES["dataset"]} | ({group: (group, "")} if group else {})
    return first | {name: look for name, look in COHORT_NAMES.items() if name not in first}


def cohort_table(scans: pd.DataFrame, *, group: str) -> pd.DataFrame:
    """Scans, persons, age and sex by data set and group; persons of unknown group or sex are counted too.

    Parameters
    ----------
    scans : (scan, column) DataFrame
        Rows of the cohort.
    group
        Name of the group column; empty when there is none.
    """
    rows = []
    by = ["dataset", group] if group else ["dataset"]
    for names, members in scans.groupby(by, dropna=False, sort=True):
        persons = members.drop_duplicates("subject_id")
        age = members["age"].dropna() if "age" in members else pd.Series(dtype=float)
        # Known of a person as soon as one of the scans says it.
        sex = (
            members.groupby("subject_id")["sex"].first() if "sex" in members else pd.Series(float("nan"), persons.index)
        )
        row: dict[str, object] = dict(zip(by, names, strict=True))
        row |= {"n_scans": len(members), "n_subjects": len(persons)}
        row["age"] = (
            f"{age.mean():.1f} ± {age.std():.1f}" if len(age) > 1 else f"{age.mean():.1f}" if len(age) else None
        )
        row["age_range"] = (
            " to ".join(page.number_text(round(end, 1)) for end in (age.min(), age.max())) if len(age) else None
        )
        row |= {"women": int((sex == "F").sum()), "men": int((sex == "M").sum()), "unknown": int(sex.isna().sum())}
        rows.append(row)
    return pd.DataFrame(rows)


def site_table(scans: pd.DataFrame, *, site: str, group: str) -> pd.DataFrame:
    """Scans by site and group, those of unknown site or group too: a group that one site holds alone is seen at a glance.

    Parameters
    ----------
    scans : (scan, column) DataFrame
        Rows of the cohort.
    site, group
        Names of the columns; an empty group for none.
    """
    sites = scans[site].astype(object).where(scans[site].notna(), page.MISSING).astype(str)
    if not group:
        counted = sites.value_counts(sort=False).sort_index().rename("scans").to_frame()
    else:
        groups = scans[group].astype(object).where(scans[group].notna(), page.MISSING).astype(str)
        counted = pd.crosstab(sites, groups).rename(columns={"all": "all (level)"})
        counted = counted.assign(**{"all": sites.value_counts()})
    counted.insert(0, site if site not in counted else f"{site} (site)", counted.index)
    return counted.rename_axis(columns=None).reset_index(drop=True)
