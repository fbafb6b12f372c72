"""The people of a simulated cohort: age, sex, site, group and severity, and what was planted in each scan."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.simulate.config import (
    ADVANCED,
    ADVANCED_TIMES,
    CONTROL,
    CONVERSION,
    PATIENT,
    SEVERITY_SPREAD,
    SLOPE_PER_YEAR,
    VISIT_JITTER_YEARS,
    SimulationConfig,
)
from nilatent.simulate.deform import draw_amplitudes

# One stream of randomness per subject matter, so that an option changes what it names and nothing else.
STREAM_PERSON, STREAM_VISIT, STREAM_SHAPE, STREAM_SCAN, STREAM_SITE, STREAM_HEAD, STREAM_CAUSE = range(7)

AGE_MEAN, AGE_SD, AGE_RANGE = 70.0, 7.0, (50.0, 90.0)
AGE_GAP_CONFOUNDED = 8.0
SITE_ODDS_CONFOUNDED = 0.85
# Volume inside the skull relative to the template, which is larger than most heads.
HEAD_SIZE_WOMEN, HEAD_SIZE_MEN, HEAD_SIZE_SD = 0.76, 0.86, 0.08
GM_LOST_PER_YEAR = 0.003
GM_WOMEN_OVER_MEN = 1.015
GM_SD = 0.03
# A score like the Mini-Mental State Examination: 30 is best.
SCORE_HEALTHY, SCORE_PER_SEVERITY, SCORE_SD, SCORE_BEST = 29.0, 5.0, 1.0, 30

VISIBLE = ["subject_id", "session_id", "dataset", "age", "sex", "site", "group", "severity", "intracranial_ml", "years"]
PLANTED = ["subject_id", "disease", "disease_per_year", "atrophy", "head_size", "gm_factor"]


@dataclass(frozen=True)
class Visit:
    """What shapes the image of one person at one visit.

    Parameters
    ----------
    site : int
        Number of the scanner, from 0.
    atrophy : float
        Disease that reached the brain, 0 or more.
    head_size : float
        Volume inside the skull relative to the template.
    gm_factor : float
        What all grey matter is multiplied by.
    """

    site: int
    atrophy: float
    head_size: float
    gm_factor: float


def visits_of_people(scans: pd.DataFrame, planted: pd.DataFrame) -> list[list[Visit]]:
    """Visits of each person, people and visits in the order of the tables of :func:`draw_people`."""
    sites = scans["site"].str.removeprefix("site").astype(int) - 1
    table = planted.assign(site=sites)
    return [
        [
            Visit(int(site), float(atrophy), float(size), float(factor))
            for site, atrophy, size, factor in rows[["site", "atrophy", "head_size", "gm_factor"]].to_numpy()
        ]
        for _, rows in table.groupby("subject_id", sort=False)
    ]


def draw_people(config: SimulationConfig, *, template_ml: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Everyone and every visit.

    Parameters
    ----------
    config : SimulationConfig
        The settings.
    template_ml : float
        Volume of the template inside the skull.

    Returns
    -------
    scans : DataFrame
        Index ``scan_id``, one row per visit; what a study would know: subject_id, session_id, dataset, age in years,
        sex, site, group, severity (0 to 30, low is severe), intracranial_ml, years since the first visit; with
        `follow_up_years`, course and course_years as seen from the visit, empty in controls and beyond 1.65.
    planted : DataFrame
        Index ``scan_id``; what only the simulation knows: disease (0 in controls, mean 1 in patients at the first
        visit), disease_per_year, atrophy (the disease that reached the brain: 0 under the null), head_size relative
        to the template, gm_factor (age, sex and personal differences of all grey matter); with `n_causes`, cause_1
        and so on: how much of each cause of shape the person has, in standard deviations.
    """
    rows = [visit for index in range(config.n_subjects) for visit in _visits(config, index, template_ml=template_ml)]
    table = pd.DataFrame(rows).set_index("scan_id")
    return table[[*VISIBLE, *course_columns(config)]], table[[*PLANTED, *cause_columns(config)]]


def course_columns(config: SimulationConfig) -> list[str]:
    """Columns of what becomes of patients; none where nobody is followed."""
    return ["course", "course_years"] if config.follow_up_years else []


def cause_columns(config: SimulationConfig) -> list[str]:
    """Columns of the amplitudes with which the causes of shape are planted; none where everyone has a field alone."""
    return [f"cause_{number + 1}" for number in range(config.n_causes)]


def amplitudes_of(config: SimulationConfig, index: int) -> npt.NDArray[np.float32]:
    """How much of each cause of shape person number `index` has, (cause,), about standard normal."""
    return draw_amplitudes(np.random.default_rng([config.seed, STREAM_SHAPE, index]), config.n_causes)


def group_of(config: SimulationConfig, index: int) -> str:
    """Group of a person, spread so that any first n people hold each group in its share."""
    advanced = _falls_due(config.advanced_fraction, index)
    if advanced:
        return ADVANCED
    # Patients who are not advanced fall due among the people who are not advanced.
    n_before = index - math.floor(config.advanced_fraction * index + 0.5)
    rest = 1 - config.advanced_fraction
    share = (config.group_fraction - config.advanced_fraction) / rest if rest > 0 else 0.0
    return PATIENT if _falls_due(share, n_before) else CONTROL


def _falls_due(share: float, index: int) -> bool:
    return math.floor(share * (index + 1) + 0.5) > math.floor(share * index + 0.5)


def _visits(config: SimulationConfig, index: int, *, template_ml: float) -> list[dict[str, object]]:
    rng = np.random.default_rng([config.seed, STREAM_PERSON, index])
    z_age, z_head, z_gm = rng.standard_normal(3)
    u_sex, u_side, u_site = rng.random(3)
    b_start, b_slope = rng.beta(2, 2, size=2)
    group = group_of(config, index)
    sick = group != CONTROL
    sex = "F" if u_sex < 0.5 else "M"
    age = AGE_MEAN + AGE_SD * z_age
    if config.confounded == "age":
        age += AGE_GAP_CONFOUNDED / 2 * (1 if sick else -1)
    age = float(np.clip(age, *AGE_RANGE))
    head_size = (HEAD_SIZE_MEN if sex == "M" else HEAD_SIZE_WOMEN) * math.exp(HEAD_SIZE_SD * z_head)
    if sick:
        head_size *= config.patient_head_size
    personal = math.exp(GM_SD * z_gm) * (GM_WOMEN_OVER_MEN**0.5 if sex == "F" else GM_WOMEN_OVER_MEN**-0.5)
    start, slope = _course(config, group, b_start=b_start, b_slope=b_slope)
    site = _site(config, sick=sick, u_side=u_side, u_site=u_site)
    amplitudes = dict(zip(cause_columns(config), amplitudes_of(config, index).tolist(), strict=True))
    subject = f"sub-{index + 1:0{max(3, len(str(config.n_subjects)))}d}"
    rows: list[dict[str, object]] = []
    for visit in range(config.n_sessions):
        at_visit = np.random.default_rng([config.seed, STREAM_VISIT, index, visit])
        years = visit * config.interval_years + (at_visit.uniform(-1, 1) * VISIT_JITTER_YEARS if visit else 0.0)
        disease = start + slope * years
        score = SCORE_HEALTHY - SCORE_PER_SEVERITY * disease + SCORE_SD * at_visit.standard_normal()
        # Drawn last, so that the visits that do take place are those of a cohort in which nobody stays away.
        if visit and at_visit.random() < config.missed_fraction:
            continue
        session = f"ses-{visit + 1:02d}" if config.n_sessions > 1 else ""
        rows.append(
            {
                "scan_id": f"{subject}_{session}" if session else subject,
                "subject_id": subject,
                "session_id": session,
                "dataset": "simulated",
                "age": round(age + years, 2),
                "sex": sex,
                "site": site,
                "group": group,
                "severity": int(np.clip(round(score), 0, SCORE_BEST)),
                "intracranial_ml": round(head_size * template_ml, 1),
                "years": round(years, 3),
                "disease": disease,
                "disease_per_year": slope,
                "atrophy": 0.0 if config.null else disease,
                "head_size": head_size,
                "gm_factor": personal * math.exp(-GM_LOST_PER_YEAR * (age + years - AGE_MEAN)),
            }
            | _course_of(config, disease if sick else math.nan, slope)
            | amplitudes
        )
    return rows


def _course(config: SimulationConfig, group: str, *, b_start: float, b_slope: float) -> tuple[float, float]:
    if group == CONTROL:
        return 0.0, 0.0
    if config.class_mediated:
        b_start = b_slope = 0.5
    start = 1 + SEVERITY_SPREAD * (2 * b_start - 1)
    slow, fast = SLOPE_PER_YEAR
    return start * (ADVANCED_TIMES if group == ADVANCED else 1.0), slow + (fast - slow) * b_slope


def _course_of(config: SimulationConfig, disease: float, slope: float) -> dict[str, object]:
    """What becomes of a patient, seen from this visit."""
    if not config.follow_up_years:
        return {}
    if not disease < CONVERSION:
        return {"course": None, "course_years": math.nan}
    years = (CONVERSION - disease) / slope
    course = "progressive" if years <= config.follow_up_years else "stable"
    return {"course": course, "course_years": round(min(years, config.follow_up_years), 3)}


def _site(config: SimulationConfig, *, sick: bool, u_side: float, u_site: float) -> str:
    first, last = 0, config.n_sites
    if config.confounded == "site":
        half = config.n_sites // 2
        upper = (u_side < SITE_ODDS_CONFOUNDED) == sick
        first, last = (half, config.n_sites) if upper else (0, half)
    return f"site{first + int(u_site * (last - first)) + 1}"


def site_spread(config: SimulationConfig) -> npt.NDArray[np.float64]:
    """(site,) place of each site between -1 and 1, times the site effect; one site stands at 0."""
    if config.n_sites == 1:
        return np.zeros(1)
    return config.site_effect * np.linspace(-1, 1, config.n_sites)
