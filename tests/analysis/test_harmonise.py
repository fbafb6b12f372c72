from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from nilatent.analysis import stats
from nilatent.analysis.combat import fit_combat
from nilatent.analysis.harmonise import HarmoniseConfig, Measures, harmonise
from nilatent.analysis.harmonise.words import FRESH
from nilatent.analysis.site_signal import call_labels
from nilatent.errors import CohortError, LeakageError, SettingError
from nilatent.finding import read_finding, write_finding

CONFIG = HarmoniseConfig(site="site", covariates=("age", "sex"), n_permutations=120)
N_SITES = 4


@dataclass(frozen=True, eq=False)
class Sample:
    values: np.ndarray
    scans: pd.DataFrame
    folds: np.ndarray

    @property
    def regions(self):
        names = tuple(f"region {number}" for number in range(self.values.shape[1]))
        return Measures("regions", (self.values,), names)


@pytest.fixture
def sample(rng):
    """Scans of four sites that shift and stretch every region; age acts on all regions and is alike at all sites."""

    def make(*, n=240, n_features=30, site_effect=1.0, age_effect=0.5, older=0.0):
        codes = np.arange(n) % N_SITES
        age = rng.normal(50, 10, n) + older * codes
        shift = site_effect * rng.normal(size=(N_SITES, n_features))
        spread = np.exp(0.4 * site_effect * rng.normal(size=(N_SITES, n_features)))
        slopes = age_effect * rng.uniform(0.5, 1.5, n_features)
        noise = rng.normal(size=(n, n_features)) + 0.5 * rng.normal(size=(n, 1))
        values = np.outer((age - 50) / 10, slopes) + shift[codes] + spread[codes] * noise
        index = pd.Index([f"sub-{number:03d}" for number in range(n)], name="scan_id")
        scans = pd.DataFrame(
            {"subject_id": index, "age": age, "sex": rng.choice(["F", "M"], n), "site": [f"site {code}" for code in codes]},
            index=index,
        )  # fmt: skip
        return Sample(values, scans, rng.permutation(np.arange(n) // N_SITES % 5))

    return make


def row(finding, what, measure, model=""):
    table = finding.table
    chosen = table[(table["what"] == what) & (table["measure"] == measure) & (table["model"] == model)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_site_falls_to_chance_and_age_stays(sample):
    made = sample()
    found = harmonise([made.regions], made.scans, made.folds, CONFIG)
    for model in ("linear", "non-linear"):
        site = row(found, "site", "balanced accuracy", model)
        assert site["before"] > 0.8
        assert site["p_before"] < 0.01
        assert site["after"] < 0.25 + 0.09
        assert site["p_after"] > 0.01
        assert site["chance"] == pytest.approx(0.25, abs=0.02)
    share = row(found, "site", "share of variance")
    assert share["before"] > 0.3
    assert abs(share["after"]) < 0.05
    age = row(found, "age", "correlation within sites", "linear")
    assert age["before"] > 0.7
    assert age["after"] > age["before"] - 0.05
    assert row(found, "age", "pattern of slopes")["after"] > 0.8
    assert row(found, "age", "size of slopes")["after"] == pytest.approx(1, abs=0.15)
    assert row(found, "sex", "balanced accuracy", "linear")["p_after"] > 0.001


def test_fresh_scans_show_what_harmonisation_leaves(sample):
    """With few scans per site its mean is known badly: training scans do not show it, scans ComBat has not seen do."""
    made = sample(n=200, n_features=60)
    found = harmonise([made.regions], made.scans, made.folds, CONFIG)
    plain, fresh = (row(found, "site", name, "linear") for name in ("balanced accuracy", FRESH))
    assert plain["p_after"] > 0.01
    assert fresh["p_after"] < 0.05
    assert fresh["before"] > fresh["after"] + 0.2
    assert f"tells it in {fresh['before']:.0%} before and {fresh['after']:.0%} after" in found.answer
    assert f"{plain['before']:.0%} before harmonisation and {plain['after']:.0%} after it" in found.answer
    site, called = made.scans["site"].to_numpy().astype(str), np.empty(200, dtype=object)
    keep = np.column_stack([made.scans["age"], made.scans["sex"] == "M"]).astype(float)
    for fold in range(5):
        test, learn = made.folds == fold, made.folds == (fold + 1) % 5
        fit = ~test & ~learn
        values, _ = fit_combat(made.values[fit], site[fit], keep[fit]).apply(made.values, site, keep)
        called[test] = call_labels(values[learn], site[learn], values[test])
    assert fresh["after"] == pytest.approx(balanced_accuracy_score(site, called.astype(str)))


def test_with_many_scans_per_site_nothing_is_left_for_fresh_scans_either(sample):
    made = sample(n=1000, n_features=6)
    found = harmonise([made.regions], made.scans, made.folds, CONFIG)
    fresh = row(found, "site", FRESH, "linear")
    assert fresh["before"] > 0.6
    assert fresh["after"] < 0.25 + 0.06


def test_says_when_harmonisation_puts_the_site_in(sample):
    """Sites that do nothing, and have few scans: what is subtracted is noise that all new scans of a site share."""
    made = sample(n=80, n_features=100, site_effect=0.0)
    found = harmonise([made.regions], made.scans, made.folds, CONFIG)
    fresh = row(found, "site", FRESH, "linear")
    assert fresh["after"] > fresh["before"]
    assert fresh["p_before"] > 0.05 > fresh["p_after"]
    assert any("easier to tell" in line for line in found.caveats)


def test_fresh_scans_need_three_folds(sample):
    made = sample(n=80)
    found = harmonise([made.regions], made.scans, made.folds % 2, CONFIG)
    assert FRESH not in set(found.table["measure"])


def test_without_site_effects_little_changes(sample):
    made = sample(site_effect=0.0)
    found = harmonise([made.regions], made.scans, made.folds, CONFIG)
    site = row(found, "site", "balanced accuracy", "linear")
    assert site["p_before"] > 0.01
    spread = row(found, "site", "spread of SDs")
    assert spread["before"] == pytest.approx(spread["chance"], abs=0.06)
    assert np.corrcoef(found.data["harmonised_regions"].values.ravel(), made.values.ravel())[0, 1] > 0.95


def test_held_out_values_come_from_the_other_folds_alone(sample):
    made = sample(n=120)
    found = harmonise([made.regions], made.scans, made.folds, CONFIG)
    test = made.folds == 2
    keep = np.column_stack([made.scans["age"], made.scans["sex"] == "M"]).astype(float)
    site = made.scans["site"].to_numpy()
    learnt = fit_combat(made.values[~test], site[~test], keep[~test])
    expected, _ = learnt.apply(made.values[test], site[test], keep[test])
    np.testing.assert_allclose(found.data["harmonised_regions"].values[test], expected)
    changed = made.values.copy()
    changed[np.flatnonzero(test)[0]] += 50
    again = harmonise([replace(made.regions, by_fold=(changed,))], made.scans, made.folds, CONFIG)
    np.testing.assert_array_equal(
        again.data["harmonised_regions"].values[test][1:], found.data["harmonised_regions"].values[test][1:]
    )


def test_what_is_not_kept_goes_with_the_site(sample):
    made = sample(older=6.0, age_effect=1.0)
    kept = harmonise([made.regions], made.scans, made.folds, CONFIG)
    dropped = harmonise([made.regions], made.scans, made.folds, replace(CONFIG, covariates=()))
    after = {}
    for name, found in (("kept", kept), ("dropped", dropped)):
        values = found.data["harmonised_regions"].values
        after[name] = np.mean([np.polyfit(made.scans["age"], column, 1)[0] for column in values.T])
    assert after["dropped"] < 0.85 * after["kept"]
    assert any("Sites differ in age" in line for line in kept.caveats)
    assert row(kept, "site", "balanced accuracy", "linear")["from_kept"] > 0.35
    assert np.isnan(row(dropped, "site", "balanced accuracy", "linear")["from_kept"])


def test_a_covariate_without_effect_is_not_made_predictable(rng):
    n, site = 160, np.repeat(["narrow", "wide"], [120, 40])
    values = rng.normal(size=(n, 300)) * np.where(site == "wide", 4.0, 1.0)[:, None]
    index = pd.Index([f"sub-{number}" for number in range(n)], name="scan_id")
    scans = pd.DataFrame({"subject_id": index, "site": site, "label": rng.choice(["F", "M"], n)}, index=index)
    regions = Measures("regions", (values,), tuple(f"region {number}" for number in range(300)))
    found = harmonise([regions], scans, np.arange(n) % 5, replace(CONFIG, covariates=("label",)))
    told = row(found, "label", "balanced accuracy", "linear")
    assert 0.01 < told["p_after"] < 0.99
    assert told["after"] == pytest.approx(0.5, abs=0.12)


def test_site_told_before_agrees_with_plain_folds(sample):
    made = sample(n=120, site_effect=0.3)
    found = row(harmonise([made.regions], made.scans, made.folds, CONFIG), "site", "balanced accuracy", "linear")
    site, called = made.scans["site"].to_numpy(), np.empty(120, dtype=object)
    for fold in range(5):
        train, test = made.folds != fold, made.folds == fold
        middle, sd = made.values[train].mean(axis=0), made.values[train].std(axis=0)
        classifier = LogisticRegression(class_weight="balanced", max_iter=5000)
        classifier.fit((made.values[train] - middle) / sd, site[train])
        called[test] = classifier.predict((made.values[test] - middle) / sd)
    after = harmonised_calls(made)
    orders = stats.permutations(120, CONFIG.n_permutations, seed=CONFIG.seed, blocks=made.folds.astype(str))
    assert found["before"] == pytest.approx(balanced_accuracy_score(site, called.astype(str)))
    assert found["chance"] == pytest.approx(np.mean([balanced_accuracy_score(site[order], after) for order in orders]))


def harmonised_calls(made):
    """Sites called after harmonisation, fold by fold."""
    site = made.scans["site"].to_numpy().astype(str)
    keep = np.column_stack([made.scans["age"], made.scans["sex"] == "M"]).astype(float)
    called = np.empty(len(site), dtype=object)
    for fold in range(5):
        train, test = made.folds != fold, made.folds == fold
        values, _ = fit_combat(made.values[train], site[train], keep[train]).apply(made.values, site, keep)
        called[test] = call_labels(values[train], site[train], values[test])
    return called.astype(str)


def test_latents_of_each_fold_come_from_its_own_encoder(sample, rng):
    made = sample(n=160)
    turns = [np.linalg.qr(rng.normal(size=(30, 30)))[0] for _ in range(5)]
    seen = np.array([made.folds != fold for fold in range(5)])
    arrays = tuple(made.values @ turn for turn in turns)
    latents = Measures("latents", arrays, tuple(f"z{number:03d}" for number in range(30)), seen)
    config = replace(CONFIG, on=("latents", "regions"))
    found = harmonise([made.regions, latents], made.scans, made.folds, config)
    assert list(found.table["measures"].unique()) == ["latents", "regions"]
    site = found.table[(found.table["what"] == "site") & (found.table["measure"] == "balanced accuracy")]
    assert len(site) == 4
    assert (site["before"] > 0.6).all()
    assert (site["after"] < 0.45).all()
    assert any("own encoder" in line for line in found.caveats)
    of_latents = found.data["shown_before"].sel(shown=[str(n) for n in found.data["shown"].values if "latents" in n])
    assert np.isnan(of_latents.values[:, made.folds != 0]).all()
    seen[1, np.flatnonzero(made.folds == 1)[3]] = True
    leaked = made.scans["subject_id"].iloc[np.flatnonzero(made.folds == 1)[3]]
    with pytest.raises(LeakageError, match=f"fold 1 has seen subject {leaked}"):
        harmonise([replace(latents, seen=seen)], made.scans, made.folds, replace(CONFIG, on=("latents",)))


def test_unseen_and_one_subject_sites_are_unchanged_and_counted(sample):
    made = sample()
    made.scans.loc[made.scans.index[:1], "site"] = "lonely"
    pair = np.flatnonzero(made.folds == 0)[:2]
    made.scans.iloc[pair, made.scans.columns.get_loc("site")] = "both in one fold"
    found = harmonise([made.regions], made.scans, made.folds, CONFIG)
    flags = found.data["flag_regions"].values
    assert (flags == "unseen site").sum() == len({0, *pair})
    np.testing.assert_array_equal(found.data["harmonised_regions"].values[pair], made.values[pair])
    assert row(found, "site", "balanced accuracy", "linear")["n_scans"] == len(made.scans) - len({0, *pair})
    assert any("no training scan is of their site" in line for line in found.caveats)


def test_a_site_of_which_training_has_one_subject_is_unchanged(sample):
    made = sample()
    scans, folds = made.scans.copy(), made.folds.copy()
    scans.iloc[:6, scans.columns.get_loc("site")] = "two people"
    scans.iloc[:6, scans.columns.get_loc("subject_id")] = ["one"] * 3 + ["other"] * 3
    folds[:6] = [0, 0, 0, 1, 1, 1]
    found = harmonise([made.regions], scans, folds, CONFIG)
    assert (found.data["flag_regions"].values[:6] == "one-subject site").all()
    np.testing.assert_array_equal(found.data["harmonised_regions"].values[:6], made.values[:6])
    assert any("a site cannot be told from a person" in line for line in found.caveats)


def test_missing_covariates_and_sites_leave_scans_out(sample):
    made = sample()
    made.scans.loc["sub-003", "age"] = np.nan
    made.scans.loc["sub-004", "site"] = np.nan
    found = harmonise([made.regions], made.scans, made.folds, CONFIG)
    assert found.n_scans == len(made.scans) - 2
    assert found.settings["left_out"]["missing value in a covariate that is kept"] == ["sub-003"]
    assert "sub-004" not in found.data["scan"].values


def test_later_scans_of_a_subject_are_harmonised_and_not_judged(sample):
    made = sample()
    made.scans["subject_id"] = [f"person {number // 8}-{number % 4}" for number in range(len(made.scans))]
    folds = np.arange(len(made.scans)) // 8 % 5
    found = harmonise([made.regions], made.scans, folds, CONFIG)
    assert found.n_scans == 240
    assert row(found, "site", "balanced accuracy", "linear")["n_scans"] == 120
    assert np.isfinite(found.data["harmonised_regions"].values).all()
    with pytest.raises(LeakageError, match="in 2 folds"):
        harmonise([made.regions], made.scans, np.arange(len(made.scans)) // 4 % 5, CONFIG)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"site": "scanner"}, "no column 'scanner'"),
        ({"site": ""}, "no site column named"),
        ({"site": "one"}, "1 of 1 sites"),
        ({"covariates": ("age", "copy")}, "explain a kept covariate"),
    ],
)
def test_says_why_it_was_not_run(sample, change, reason):
    made = sample(n=60)
    made.scans["one"], made.scans["copy"] = "here", (made.scans["site"] == "site 1").astype(float)
    found = harmonise([made.regions], made.scans, made.folds, replace(CONFIG, **change))
    assert reason in found.not_run


def test_too_few_subjects_is_not_run(sample):
    made = sample(n=16)
    assert "too few: 16" in harmonise([made.regions], made.scans, made.folds, CONFIG).not_run


def test_settings_that_name_nothing_are_refused(sample):
    made = sample(n=60)
    with pytest.raises(SettingError, match="names latents"):
        harmonise([made.regions], made.scans, made.folds, replace(CONFIG, on=("latents",)))
    with pytest.raises(SettingError, match="n_permutations is 0"):
        harmonise([made.regions], made.scans, made.folds, replace(CONFIG, n_permutations=0))
    with pytest.raises(SettingError, match="repeat one another"):
        harmonise([made.regions], made.scans, made.folds, replace(CONFIG, covariates=("site",)))
    with pytest.raises(SettingError, match="Column 'agee'"):
        harmonise([made.regions], made.scans, made.folds, replace(CONFIG, covariates=("agee",)))
    with pytest.raises(CohortError, match="59 folds"):
        harmonise([made.regions], made.scans, made.folds[:-1], CONFIG)
    longer = np.vstack([made.values, made.values[:1]])
    with pytest.raises(CohortError, match=r"regions: \[61\] rows for 60 scans"):
        harmonise([replace(made.regions, by_fold=(longer,))], made.scans, made.folds, CONFIG)
    with pytest.raises(CohortError, match=r"has shape \(5, 60\), for 1 arrays"):
        harmonise([replace(made.regions, seen=np.zeros((5, 60), dtype=bool))], made.scans, made.folds, CONFIG)
    with pytest.raises(SettingError, match="2 arrays for 5 folds"):
        harmonise([replace(made.regions, by_fold=(made.values,) * 2)], made.scans, made.folds, CONFIG)
    with pytest.raises(SettingError, match="30 columns and 1 names"):
        harmonise([replace(made.regions, features=("a",))], made.scans, made.folds, CONFIG)


def test_seed_and_number_of_permutations_matter_and_repeat(sample):
    made = sample(n=80, site_effect=0.2)

    def p_values(**change):
        found = harmonise([made.regions], made.scans, made.folds, replace(CONFIG, **change))
        return found.table["p_before"].dropna().tolist()

    assert p_values() == p_values()
    assert p_values() != p_values(seed=1)
    assert min(p_values(n_permutations=19)) >= 0.05


def test_comes_back_from_disk(sample, tmp_path):
    made = sample(n=80)
    found = harmonise([made.regions], made.scans, made.folds, CONFIG)
    write_finding(found, tmp_path)
    again = read_finding(tmp_path)
    pd.testing.assert_frame_equal(again.table, found.table, check_dtype=False)
    np.testing.assert_array_equal(again.data["harmonised_regions"].values, found.data["harmonised_regions"].values)
    assert "tells the site in" in again.answer


def test_folds_of_one_are_not_run(sample):
    made = sample(n=60)
    assert "no fold holds out two" in harmonise([made.regions], made.scans, np.arange(60), CONFIG).not_run
