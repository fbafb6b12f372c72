"""What change over time says in words: the answer, and what the reader must not conclude."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import level_words
from nilatent.analysis.longitudinal.drawn import Courses
from nilatent.analysis.longitudinal.forecast import CARRIED, OF_LATENTS
from nilatent.analysis.longitudinal.table import (
    DECODED,
    DIFFERENCE,
    ERROR,
    ERROR_LESS_BEST,
    LATENTS,
    RATE,
    REGIONS,
    REPEATABILITY,
    RETEST,
    Block,
)
from nilatent.analysis.longitudinal.times import AGE, age_is_of_baseline, numbers_of, years_of
from nilatent.analysis.longitudinal.visits import LongitudinalConfig, Visits

N_NAMED = 3
ALONE = (
    "Every visit was prepared by itself, without a template of the subject: what differs in position, registration or scanner "
    "between two visits looks like change."
)
TOGETHER = (
    "Visits of raw scans were prepared through a template of their subject, so that all of a subject have one transform and one "
    "brain mask; what differs in position or scanner between two visits still looks like change. The first visit so has seen the "
    "later ones: forecasts from it and repeatability look better than those of a person who comes once. Subjects with one visit "
    "were prepared by themselves, so that their level may differ for that alone."
)
# Subjects seen twice, per group, below which the reader is told what so few can say.
SMALL_GROUP = 20


def answer(table: pd.DataFrame, visits: Visits, config: LongitudinalConfig) -> str:
    """Two or three sentences with numbers; what the models do not do better than what needs none comes first."""
    foreseen, wins = _forecast(table)
    lines = [_differences(table, pair, config) for pair in visits.contrasts]
    lines = lines or [_rates(table, visits, config)]
    repeatable = [_repeatability(table, what) for what in (RETEST, REPEATABILITY) if (table["what"] == what).any()]
    return " ".join([*lines, *foreseen, *repeatable[:1]] if wins else [*foreseen, *lines, *repeatable[:1]])


def _differences(table: pd.DataFrame, pair: tuple[str, str], config: LongitudinalConfig) -> str:
    of_pair = table[(table["what"] == DIFFERENCE) & (table["group"] == ":".join(pair))]
    if of_pair["p_fwe"].isna().all():
        return (
            f"Whether {pair[0]} and {pair[1]} change at different rates was not tested: no site has subjects of both who were "
            "seen at two times, so none can take the place of another."
        )
    parts, measured = [], set[str]()
    for kind, rows in of_pair.groupby("kind", sort=False):
        found = rows[rows["p_fwe"] <= config.alpha]
        said = f"{len(found)} of {len(rows)} {kind}"
        if kind == REGIONS:
            measured = set(found["measure"])
            said += f" ({_named(table, found, pair, config)})" if len(found) else ""
        if kind == DECODED and len(found):
            said += f" ({int((~found['measure'].isin(measured)).sum())} of them not found in the scans)"
        parts.append(said)
    first, *others = parts
    more = f"; of what decoders and latents say of the same subjects {', '.join(others)}" if others else ""
    return f"{first} change at another rate in {pair[0]} than in {pair[1]} (family-wise error {config.alpha:g}){more}."


def _named(table: pd.DataFrame, found: pd.DataFrame, pair: tuple[str, str], config: LongitudinalConfig) -> str:
    rows = table[table["what"] == RATE].to_dict("records")
    rates = {(row["kind"], row["measure"], row["group"]): row for row in rows}
    named = []
    for _, row in found.head(N_NAMED).iterrows():
        case, reference = (rates[row["kind"], row["measure"], group] for group in pair)
        named.append(f"{row['measure']} {_per(case, config)} against {_per(reference, config)}")
    return "; ".join(named) + (f"; and {len(found) - N_NAMED} more" if len(found) > N_NAMED else "")


def _per(row: Mapping[Hashable, Any], config: LongitudinalConfig) -> str:
    amount = f"{row['percent']:+.2f} %" if np.isfinite(row["percent"]) else f"{row['value']:+.3g}"
    return f"{amount} a {config.step}"


def _rates(table: pd.DataFrame, visits: Visits, config: LongitudinalConfig) -> str:
    parts = []
    for group in visits.groups:
        rows = table[(table["what"] == RATE) & (table["group"] == group) & (table["kind"] == table["kind"].iloc[0])]
        found = rows[rows["q"] <= config.alpha]
        named = [f"{row['measure']} {_per(row, config)}" for row in found.head(N_NAMED).to_dict("records")]
        listed = f" ({'; '.join(named)})" if named else ""
        parts.append(f"{len(found)} of {len(rows)} {rows['kind'].iloc[0]} change in {group}{listed}")
    return f"{'; '.join(parts)} (false discovery rate {config.alpha:g}). No two groups are compared."


def _repeatability(table: pd.DataFrame, what: str) -> str:
    """Median intraclass correlation of every kind of measure, and the latents at either end by name."""
    rows = table[table["what"] == what]
    parts = []
    for kind, of_kind in rows.groupby("kind", sort=False):
        # Rows of a kind stand from the most to the least repeatable.
        most, least = of_kind.iloc[0], of_kind.iloc[-1]
        span = (
            f" ({least['measure']} {least['value']:.3f} to {most['measure']} {most['value']:.3f})"
            if kind == LATENTS
            else ""
        )
        parts.append(f"{kind} {of_kind['value'].median():.3f}{span}")
    how = (
        f"two visits of {int(rows['n_subjects'].max())} subjects close together"
        if what == RETEST
        else "share of variance between subjects in the mixed model"
    )
    return f"Repeatability, median intraclass correlation ({how}): {', '.join(parts)}."


def _forecast(table: pd.DataFrame) -> tuple[list[str], bool]:
    """What is said of forecasts of regions, and whether a latent one is surely better than all that need no latents."""
    of_regions = table[table["kind"] == REGIONS].set_index("measure")
    errors, less = (of_regions[of_regions["what"] == what] for what in (ERROR, ERROR_LESS_BEST))
    if errors.empty:
        return [], True
    latent = str(errors.loc[list(OF_LATENTS), "value"].idxmin())
    plain = str(errors.drop(index=list(OF_LATENTS))["value"].idxmin())
    gain = less.loc[latent]
    wins = bool(gain["high"] < 0)
    mean = errors["value"]
    said = (
        f"The last visit of {int(errors['n_subjects'].iloc[0])} held-out subjects is foreseen "
        f"{'better' if wins else 'no better'} with latents than without: mean error over regions {mean[latent]:.3g} ({latent}) "
        f"against {mean[plain]:.3g} ({plain}), a difference of {gain['value']:+.2g} ({gain['low']:+.2g} to "
        f"{gain['high']:+.2g}); the first scan as it is errs by {mean[CARRIED]:.3g}."
    )
    return [said], wins


def caveats(
    table: pd.DataFrame,
    blocks: list[Block],
    scans: pd.DataFrame,
    found: Courses | None,
    refused: dict[str, str],
    config: LongitudinalConfig,
    *,
    within_subject: bool,
) -> tuple[str, ...]:
    """What the reader must not conclude, and who is not in it."""
    visits = blocks[0].visits
    lines = [
        _counted(visits),
        (TOGETHER if within_subject else ALONE) + " Who stopped coming is taken to have gone on as the others did.",
        "A difference is called by permutation of subjects between groups"
        + (", within sites" if config.site else "")
        + ", family-wise over the measures of a kind, each contrast by itself. The p of the likelihood ratio beside it is too "
        "small where subjects are few; intervals are of single measures.",
        "Rates are those of an average subject"
        + (
            f" given {', '.join(config.pace)}."
            if config.pace
            else ". Covariates act on the level only: where groups differ in age and rates depend on it, name age as "
            "longitudinal.pace."
        ),
    ]
    lines += _on_time(visits, scans, config)
    lines += _on_models(table, blocks, found, config)
    lines += [f"Left out: {len(ids)} scans ({reason})." for reason, ids in visits.left_out.items()]
    lines += [f"Not said: {what} ({reason})." for what, reason in refused.items()]
    return tuple(lines)


def _counted(visits: Visits) -> str:
    times = visits.n_times[visits.first]
    said = (
        f"{len(times)} subjects: {int((times == 1).sum())} seen at one time, which tell of the level and not of its change, "
        f"{int((times == 2).sum())} at two and {int((times > 2).sum())} at three or more."
    )
    if not visits.slopes:
        said += (
            " Nobody was seen at three, so differences between subjects in their rate cannot be told from noise: models have a "
            "random intercept and no random slope."
        )
    small = [
        f"{group} ({visits.n_repeated(group)})" for group in visits.groups if visits.n_repeated(group) < SMALL_GROUP
    ]
    return said + (
        f" Few were seen more than once in {', '.join(small)}: small differences are missed." if small else ""
    )


def _on_time(visits: Visits, scans: pd.DataFrame, config: LongitudinalConfig) -> list[str]:
    lines = []
    time = numbers_of(scans[config.time]).to_numpy(dtype=np.float64)[visits.rows]
    if config.time != AGE:
        lines.append(f"The time of a visit is column '{config.time}', in {config.unit}.")
        if AGE in config.covariates and age_is_of_baseline(scans, years_of(scans, config)):
            lines.append(
                "'age' is the same at all visits of every subject, so it is taken for that of the baseline; who has no scan of "
                "the baseline was older at the first one by the time between."
            )
    if config.unit == "years" and (time == np.round(time)).all():
        lines.append(
            f"'{config.time}' is in whole years, so the time between two visits is known to a year at best: name a column of "
            "days as longitudinal.time."
        )
    if config.unit == "visits":
        lines.append("The time between visits is not known: rates are per visit, as if all were equally far apart.")
    if config.site:
        site = pd.Series(level_words(scans[config.site]).to_numpy()[visits.rows]).groupby(visits.subject).nunique()
        moved = int((site > 1).sum())
        if moved:
            lines.append(f"{moved} subjects were seen at more than one site: their change holds that of the scanner.")
    else:
        lines.append("No site column was named: a subject who changed scanners seems to change.")
    return lines


def _on_models(
    table: pd.DataFrame, blocks: list[Block], found: Courses | None, config: LongitudinalConfig
) -> list[str]:
    lines = []
    kinds = {block.kind for block in blocks}
    if len(kinds) > 1:
        lines.append(
            "Decoded regions and directions are of scans by a model that has not seen the subject. Directions were learned from "
            "its training scans; 1 is the step between two groups, or a unit of the covariate. Scores of few and noisy latents "
            "fall short of it."
        )
    if DECODED in kinds:
        lines.append(
            "A decoder draws from a few latents: it tells change from noise better than a scan does, draws less of it than there "
            "is, and draws it also where regions merely go together between people. A decoded region does not say where."
        )
    if LATENTS in kinds:
        lines.append(
            "Single latents are those of the study's own model, which was trained on most of these scans: take their rates and "
            "their repeatability as a description. Latents of cross-fitted models cannot be joined one by one."
        )
    if (table["what"] == RETEST).any():
        lines.append(
            f"Repeatability of close visits: ICC(2,1) of the two closest visits at most {config.retest_days:g} days apart. The "
            "other is the share of variance between subjects of one group and equal covariates that the mixed model finds."
        )
    if found is not None:
        groups = ", ".join(f"{group} {n}" for group, n in zip(blocks[0].visits.groups, found.n_subjects, strict=True))
        lines.append(
            f"Drawn courses rest on the latents of {groups} subjects seen at two times or more, by {found.n_models} models"
            + (" that were trained on them" if found.seen else " that have not seen them")
            + ". A drawn image is what a decoder expects, smoother than a scan. "
            + (
                "Intervals of drawn rates say what these decoders would draw of other such subjects (each drew "
                f"{len(found.redrawn)} times again with the subjects weighted at random), not how much change there is."
                if len(found.redrawn)
                else "Drawn rates carry no interval."
            )
        )
    return lines
