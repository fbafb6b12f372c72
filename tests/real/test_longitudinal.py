"""Visits of OASIS-2 and 808 sessions of tissue volumes: rates and their differences beside statsmodels called by hand."""

import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from nilatent.analysis.longitudinal import LongitudinalConfig, change_over_time
from nilatent.errors import CohortError

pytestmark = [pytest.mark.real, pytest.mark.slow]


def tables() -> Path:
    if "NILATENT_REAL_DATA" not in os.environ:
        pytest.skip("NILATENT_REAL_DATA names no folder")
    return Path(os.environ["NILATENT_REAL_DATA"]) / "tables"


def oasis():
    """(visit, measure) of OASIS-2 and its scans."""
    read = pd.read_csv(tables() / "oasis_longitudinal.csv")
    index = pd.Index(read["MRI ID"], name="scan_id")
    scans = pd.DataFrame(
        {
            "subject_id": read["Subject ID"].to_numpy(),
            "session_id": read["MRI ID"].str[-3:].to_numpy(),
            "days": read["MR Delay"].to_numpy(),
            "age": read["Age"].to_numpy(),
            "sex": read["M/F"].to_numpy(),
            "group": read["Group"].to_numpy(),
            "rating": np.where(read["CDR"] > 0, "impaired", "well"),
        },
        index,
    )
    return read[["nWBV"]].set_index(index), scans


def volumes():
    """(session, tissue) and its scans."""
    read = pd.read_csv(tables() / "pystatsml_brain_volumes.csv")
    index = pd.Index(read["participant_id"] + "_" + read["session"], name="scan_id")
    scans = read[["age", "sex", "site", "group"]].set_index(index)
    scans["subject_id"], scans["session_id"] = read["participant_id"].to_numpy(), read["session"].to_numpy()
    scans["visit"] = read["session"].str.extract(r"ses-(\d+)")[0].astype(int).to_numpy()
    return read[["gm_vol", "wm_vol", "csf_vol"]].set_index(index), scans


def by_hand(y, columns, years, subject, *, slopes, restricted):
    random = np.column_stack([np.ones(len(y)), years])[:, : 2 if slopes else 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MixedLM(y, np.column_stack(columns), subject, exog_re=random).fit(
            reml=restricted, method="powell", maxiter=2000
        )


@pytest.mark.parametrize("slopes", [True, False])
def test_oasis_2_changes_as_statsmodels_says(slopes):
    values, scans = oasis()
    if not slopes:
        # Two visits of each: nobody has a slope to be told from noise.
        kept = scans.groupby("subject_id").cumcount() < 2
        values, scans = values[kept], scans[kept]
    config = LongitudinalConfig(time="days", unit="days", covariates=("age", "sex"), n_permutations=2000)
    table = change_over_time(values, scans, config)
    assert set(table["random"]) == {"intercept and slope" if slopes else "intercept"}
    groups = ["Converted", "Demented", "Nondemented"]
    years = scans["days"].to_numpy() / 365.25
    member = [(scans["group"] == group).to_numpy(dtype=float) for group in groups]
    held = [scans.groupby("subject_id")["age"].transform("first"), (scans["sex"] == "M").astype(float)]
    columns = [*member, *(one * years for one in member), *held]
    # In percent of the skull, because their search depends on the unit.
    y = 100 * values["nWBV"].to_numpy()
    theirs = by_hand(y, columns, years, scans["subject_id"], slopes=slopes, restricted=True)
    assert theirs.converged
    rates = table[table["what"] == "rate"].set_index("group").loc[groups]
    np.testing.assert_allclose(100 * rates["value"], theirs.fe_params[3:6], rtol=1e-3)
    half = 100 * (rates["high"] - rates["low"]) / 2 / stats.t(150 - 3).ppf(0.975)
    # Theirs are of the curvature of the likelihood by variances and effects at once.
    np.testing.assert_allclose(half, theirs.bse_fe[3:6], rtol=0.03)
    whole, without = (
        by_hand(y, one, years, scans["subject_id"], slopes=slopes, restricted=False).llf
        for one in (columns, [*member, member[0] * years, (member[1] + member[2]) * years, *held])
    )
    row = table[(table["what"] == "difference in rate") & (table["group"] == "Demented:Nondemented")].iloc[0]
    assert row["p"] == pytest.approx(stats.chi2(1).sf(2 * (whole - without)), rel=0.01)


def test_demented_brains_of_oasis_2_shrink_faster():
    values, scans = oasis()
    config = LongitudinalConfig(
        contrast="Demented:Nondemented", time="days", unit="days", covariates=("age", "sex"), pace=("age",)
    )
    table = change_over_time(values, scans, config).set_index(["what", "group"])
    difference = table.loc[("difference in rate", "Demented:Nondemented")]
    assert difference["high"] < 0
    assert difference["p_permutation"] < 0.03
    # Percent of brain volume a year: about half in healthy age.
    assert table.loc[("rate", "Nondemented"), "percent"] == pytest.approx(-0.5, abs=0.1)
    assert table.loc[("rate", "Demented"), "percent"] == pytest.approx(-0.8, abs=0.1)
    assert table.loc[("repeatability", ""), "value"] > 0.9


def test_a_rating_that_changes_between_visits_is_no_group():
    values, scans = oasis()
    with pytest.raises(CohortError, match="at different visits"):
        change_over_time(values, scans, LongitudinalConfig(group="rating", time="days", unit="days"))


def test_tissue_volumes_of_808_sessions_change_as_statsmodels_says():
    values, scans = volumes()
    assert len(scans) == 808
    config = LongitudinalConfig(
        time="visit", unit="visits", covariates=("age", "sex"), site="site", n_permutations=2000
    )
    table = change_over_time(values, scans, config)
    rates = table[(table["what"] == "rate") & (table["measure"] == "gm_vol")].set_index("group")
    # 42 sessions are of people without a group.
    assert rates["n_scans"].sum() == 766
    known = scans.dropna(subset=["group"])
    first = known.groupby("subject_id")["visit"].transform("min")
    later = (known["visit"] - first).to_numpy(dtype=float)
    member = [(known["group"] == group).to_numpy(dtype=float) for group in ("Control", "Patient")]
    sites = [(known["site"] == site).to_numpy(dtype=float) for site in sorted(set(known["site"]))[1:]]
    columns = [*member, *(one * later for one in member), known["age"], (known["sex"] == "M").astype(float), *sites]
    y = values.loc[known.index, "gm_vol"].to_numpy()
    theirs = by_hand(10 * y, columns, later, known["subject_id"], slopes=True, restricted=True)
    np.testing.assert_allclose(
        10 * rates.loc[["Control", "Patient"], "value"], theirs.fe_params[2:4], rtol=0.01, atol=2e-4
    )
    # Nothing is to be found in months, and nothing is.
    assert (table["p_fwe"].dropna() > 0.05).all()
    repeat = table[table["what"] == "repeatability"].set_index("measure")["value"]
    assert (repeat > 0.9).all()
