from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.analysis import stats
from nilatent.analysis.leaks import CLEAN, FOUND, NOT_CHECKED, LeaksConfig, images, leaks
from nilatent.analysis.leaks.columns import cramers_v, told_by
from nilatent.analysis.leaks.features import scaled_columns
from nilatent.analysis.site_signal import call_labels, judge
from nilatent.errors import CohortError
from nilatent.finding import read_finding, write_finding
from nilatent.latents import make_latents
from nilatent.volumes import Grid, volumes_in_memory

CONFIG = LeaksConfig(
    group="group", site="site", covariates=("age", "sex"), targets=("age",), family="family", n_permutations=200
)
N_FOLDS = 4
SHAPE = (15, 17, 13)


@dataclass(frozen=True, eq=False)
class Audited:
    scans: pd.DataFrame
    parts: pd.DataFrame
    latents: xr.Dataset
    folds: list
    regions: pd.DataFrame
    images: np.ndarray
    grid: Grid

    def rows(self, config=CONFIG, **change):
        """Rows of the audit by the name of the check."""
        mask = np.zeros(SHAPE, dtype=bool)
        mask[2:-2, 2:-2, 2:-2] = True
        volumes = volumes_in_memory(self.images, mask=mask, grid=self.grid, scans=self.scans[["subject_id", "dataset"]])
        given = {"latents": self.latents, "folds": self.folds, "regions": self.regions, "volumes": volumes} | change
        return leaks(self.scans, self.parts, config, **given).table.set_index("check")


def encoded(values, index, subjects, seen):
    return make_latents(
        values, np.zeros_like(values), scan=list(index), subject=list(subjects), subject_in_training=seen,
        part=np.where(seen, "train", "test"), model_hash="", volumes_hash="",
    )  # fmt: skip


@pytest.fixture
def audited(rng, grid):
    """A cohort without a leak."""
    n = 64
    index = pd.Index([f"sub-{number:02d}" for number in range(n)], name="scan_id")
    scans = pd.DataFrame(
        {
            "subject_id": index.astype(object),
            "sha256": [f"{number:064x}" for number in range(n)],
            "dataset": "ds",
            "group": rng.permutation(np.repeat(["case", "control"], n // 2)),
            "site": rng.choice(["east", "west"], n),
            "age": rng.normal(50, 10, n),
            "sex": rng.choice(["F", "M"], n),
        },
        index=index,
    )
    fold = rng.permutation(np.arange(n) % N_FOLDS)
    parts = pd.DataFrame({"subject_id": index, "part": np.where(fold == 0, "test", "train"), "fold": fold}, index=index)
    # Siblings, two by two, stand in one fold.
    rank = pd.Series(fold).groupby(fold).cumcount().to_numpy()
    scans["family"] = [f"family {one}-{place // 2}" for one, place in zip(fold, rank, strict=True)]
    folds = [encoded(rng.normal(2, 3, (n, 5)), index, index, fold != number) for number in range(N_FOLDS)]
    latents = encoded(rng.normal(2, 3, (n, 5)), index, index, fold != 0)
    regions = pd.DataFrame(rng.uniform(size=(n, 8)), index=index)
    return Audited(scans, parts, latents, folds, regions, rng.uniform(size=(n, *SHAPE)), grid)


def test_a_clean_cohort_is_clean(audited):
    rows = audited.rows()
    assert set(rows["verdict"]) == {CLEAN}
    assert len(rows) == 12


def test_a_scan_under_two_subject_ids_is_found_by_its_bytes(audited):
    first, second = (audited.scans.index[audited.parts["fold"] == fold][0] for fold in (0, 1))
    audited.scans.loc[second, "sha256"] = audited.scans.loc[first, "sha256"]
    rows = audited.rows()
    row = rows.loc["same image twice"]
    assert (row["verdict"], row["n"]) == (FOUND, 1)
    assert set(row["examples"].split(" = ")) == {first, second}
    assert "1 of them under two subjects; 1 stand on both sides" in row["what"]
    # The model that holds out the one has seen the other, which is the same image.
    assert rows.loc["encoder and its test subjects", "verdict"] == FOUND
    assert f"as {second}" in rows.loc["encoder and its test subjects", "examples"]
    assert rows.loc["nearly the same image twice", "verdict"] == CLEAN


def test_a_copy_that_was_written_anew_is_found_by_its_looks(audited, rng):
    audited.images[7] = audited.images[3] * 1.02 + 0.02 * rng.normal(size=SHAPE)
    row = audited.rows().loc["nearly the same image twice"]
    assert (row["verdict"], row["n"], row["examples"]) == (FOUND, 1, "sub-03 = sub-07")


def test_sessions_of_one_subject_may_look_alike(audited):
    audited.images[7] = audited.images[3]
    audited.scans.loc["sub-07", "subject_id"] = "sub-03"
    audited.parts.loc["sub-07", ["part", "fold"]] = audited.parts.loc["sub-03", ["part", "fold"]]
    assert audited.rows().loc["nearly the same image twice", "verdict"] == CLEAN


def test_images_that_vary_in_few_ways_are_no_copies(audited, rng):
    ways = rng.normal(size=(3, *SHAPE))
    audited.images[:] = np.tensordot(rng.normal(size=(64, 3)), ways, axes=1) + 0.05 * rng.normal(size=(64, *SHAPE))
    assert audited.rows().loc["nearly the same image twice", "verdict"] == CLEAN


def test_blocks_of_scans_find_the_pairs_that_all_at_once_would(rng, monkeypatch):
    values = rng.normal(size=(60, 300)).astype(np.float32)
    values[[9, 40, 41]] = values[3] + 0.05 * rng.normal(size=(3, 300))
    values[17] = 1.0
    left = values - values.mean(axis=0)
    left -= left.mean(axis=1, keepdims=True)
    expected = {}
    for one in range(60):
        for other in range(one + 1, 60):
            r = left[one] @ left[other] / np.linalg.norm(left[one]) / np.linalg.norm(left[other])
            if r > 0.9:
                expected[one, other] = r
    monkeypatch.setattr(images, "BLOCK", 7)
    for usual in (2000, 12):
        monkeypatch.setattr(images, "MAX_USUAL", usual)
        found = images._correlated(lambda some: values[some], 60)
        assert found == pytest.approx(expected, rel=1e-4)
    assert len(expected) == 6


def test_equal_regions_are_found_without_volumes(audited):
    audited.regions.iloc[9] = audited.regions.iloc[2]
    row = audited.rows(volumes=None).loc["nearly the same image twice"]
    assert (row["verdict"], row["examples"]) == (FOUND, "sub-02 = sub-09")


@pytest.mark.parametrize(
    ("column", "check"), [("subject_id", "subject on both sides"), ("family", "family on both sides")]
)
def test_those_who_straddle_are_named(audited, column, check):
    first, second = (audited.scans.index[audited.parts["fold"] == fold][0] for fold in (1, 2))
    audited.scans.loc[second, column] = audited.scans.loc[first, column]
    row = audited.rows().loc[check]
    assert (row["verdict"], row["n"]) == (FOUND, 1)
    assert row["examples"] == audited.scans.loc[first, column]


def test_parts_count_where_there_are_no_folds(audited):
    audited.parts.loc["sub-00", "part"], audited.parts.loc["sub-01", "part"] = "test", "validation"
    audited.scans.loc[["sub-00", "sub-01"], "family"] = "one family"
    split = replace(audited, parts=audited.parts.drop(columns="fold"))
    assert split.rows(folds=[], latents=None).loc["family on both sides", "verdict"] == FOUND
    audited.parts.loc["sub-00", "part"] = "train"
    audited.scans.loc["sub-01", "subject_id"] = "sub-00"
    rows = replace(audited, parts=audited.parts.drop(columns="fold")).rows(folds=[], latents=None)
    assert rows.loc["subject on both sides", "verdict"] == FOUND
    both_learn = replace(split, parts=split.parts.replace({"part": {"test": "train"}}))
    assert both_learn.rows(folds=[], latents=None).loc["family on both sides", "verdict"] == CLEAN


def test_an_encoder_trained_on_test_subjects_is_found(audited):
    held_out = audited.scans.index[audited.parts["fold"] == 2]
    seen = audited.parts["fold"].to_numpy() != 2
    seen[audited.scans.index.get_loc(held_out[1])] = True
    values = audited.folds[2]["mean"].values
    audited.folds[2] = encoded(values, audited.scans.index, audited.scans.index, seen)
    row = audited.rows().loc["encoder and its test subjects"]
    assert (row["verdict"], row["n"]) == (FOUND, 1)
    assert row["examples"] == f"{held_out[1]} (model of fold 2)"
    everybody = encoded(values, audited.scans.index, audited.scans.index, np.ones(64, dtype=bool))
    alone = audited.rows(folds=[], latents=everybody).loc["encoder and its test subjects"]
    assert alone["n"] == (audited.parts["part"] == "test").sum()


@pytest.mark.parametrize("kind", ["recoded", "missing for controls", "several codes", "a score that separates"])
def test_a_target_hidden_in_a_covariate_is_found(audited, rng, kind):
    case = (audited.scans["group"] == "case").to_numpy()
    audited.scans["hidden"] = {
        "recoded": np.where(case, 2, 1),
        "missing for controls": np.where(case, rng.normal(20, 5, 64), np.nan),
        "several codes": np.where(case, rng.choice(["F32", "F33"], 64), "none"),
        "a score that separates": np.where(case, rng.normal(30, 2, 64), rng.normal(5, 2, 64)),
    }[kind]
    rows = audited.rows(replace(CONFIG, covariates=("age", "hidden", "sex")))
    row = rows.loc["target in a covariate (group)"]
    assert (row["verdict"], row["n"]) == (FOUND, 1)
    assert row["examples"].startswith("hidden")
    assert rows.loc["target in a covariate (age)", "verdict"] == CLEAN


def test_a_number_in_other_units_is_found(audited):
    audited.scans["born"] = 2020 - audited.scans["age"]
    rows = audited.rows(replace(CONFIG, covariates=("sex", "born")))
    assert rows.loc["target in a covariate (age)", "examples"] == "born (1.00)"
    assert rows.loc["target in a covariate (group)", "verdict"] == CLEAN


def test_a_label_of_every_subject_says_nothing_of_others(audited):
    target = audited.scans["group"]
    assert told_by(pd.Series([f"id {n}" for n in range(64)], index=target.index), target) < 0.7
    assert told_by(audited.scans["age"], target) < 0.75
    assert told_by(target == "case", target) == 1.0


def test_site_that_is_the_group_is_found(audited):
    audited.scans["site"] = np.where(audited.scans["group"] == "case", "east", "west")
    row = audited.rows().loc["site and group"]
    assert (row["verdict"], row["n"]) == (FOUND, 2)
    assert "1.00" in row["what"]


def test_cramers_v_is_one_for_a_recoding_and_near_zero_by_chance(rng):
    labels = rng.choice(["a", "b", "c"], 200)
    assert cramers_v(labels, np.char.add(labels, "x")) == pytest.approx(1.0)
    by_chance = [cramers_v(rng.choice(20, 60), rng.choice(2, 60)) for _ in range(50)]
    assert np.mean(by_chance) < 0.15
    half = np.array(["a"] * 50 + ["b"] * 50), np.array(["x"] * 40 + ["y"] * 10 + ["x"] * 10 + ["y"] * 40)
    assert cramers_v(*half) == pytest.approx(0.6, abs=0.02)


def test_the_site_is_told_by_the_encoder_that_holds_the_scan_out(audited):
    west, fold = (audited.scans["site"] == "west").to_numpy(), audited.parts["fold"].to_numpy()
    shifted = [
        made.assign(mean=made["mean"] + (1 + number) * west[:, None].astype("f4"))
        for number, made in enumerate(audited.folds)
    ]
    site, called = audited.scans["site"].to_numpy().astype(str), np.full(64, "", dtype=object)
    for number in range(N_FOLDS):
        values = shifted[number]["mean"].values.astype(float)
        called[fold == number] = call_labels(values[fold != number], site[fold != number], values[fold == number])
    orders = stats.permutations(64, CONFIG.n_permutations, seed=CONFIG.seed, blocks=fold.astype(str))
    expected = judge(called.astype(str), site, orders)
    said = audited.rows(folds=shifted).loc["site in the latents", "what"]
    assert f"told in {expected.accuracy:.0%}, balanced; chance is {expected.chance:.0%}" in said
    assert f"(p = {expected.p_value:.2g})" in said


def test_chance_is_that_of_the_folds(audited):
    """Where every fold has sites of its own, calls that only know the fold are no better than chance."""
    fold = audited.parts["fold"].to_numpy()
    audited.scans["site"] = np.where((fold < 2) ^ (np.arange(64) % 8 == 0), "east", "west")
    audited.regions.loc[:] += 3.0 * (fold[:, None] >= 2)
    row = audited.rows().loc["site in the regions"]
    site, called = audited.scans["site"].to_numpy().astype(str), np.full(64, "", dtype=object)
    for number in range(N_FOLDS):
        train, values = fold != number, audited.regions.to_numpy()
        called[~train] = call_labels(values[train], site[train], values[~train])
    within = stats.permutations(64, CONFIG.n_permutations, seed=CONFIG.seed, blocks=fold.astype(str))
    anywhere = stats.permutations(64, CONFIG.n_permutations, seed=CONFIG.seed)
    expected, other = (judge(called.astype(str), site, orders) for orders in (within, anywhere))
    assert f"chance is {expected.chance:.0%} (p = {expected.p_value:.2g})" in row["what"]
    assert abs(expected.chance - other.chance) > 0.1


def test_another_scan_of_the_subject_gives_a_model_away(audited):
    first, second = (audited.scans.index[audited.parts["fold"] == fold][0] for fold in (1, 2))
    audited.scans.loc[second, "subject_id"] = audited.scans.loc[first, "subject_id"]
    row = audited.rows(latents=None).loc["encoder and its test subjects"]
    assert (row["verdict"], row["n"]) == (FOUND, 2)


def test_features_that_know_the_site_are_found(audited):
    west = (audited.scans["site"] == "west").to_numpy()
    audited.regions.loc[west] += 0.4
    rows = audited.rows()
    assert rows.loc["site in the regions", "verdict"] == FOUND
    assert rows.loc["site in the latents", "verdict"] == CLEAN
    shifted = [made.assign(mean=made["mean"] + 8 * west[:, None].astype("f4")) for made in audited.folds]
    assert audited.rows(folds=shifted).loc["site in the latents", "verdict"] == FOUND


def test_scaling_before_the_split_is_found(audited):
    values = audited.regions.to_numpy()
    scaled = pd.DataFrame((values - values.mean(axis=0)) / values.std(axis=0), index=audited.regions.index)
    row = audited.rows(regions=scaled).loc["scaled over all scans: regions"]
    assert (row["verdict"], row["n"]) == (FOUND, 8)
    train = values[:40]
    assert not scaled_columns((values - train.mean(axis=0)) / train.std(axis=0)).any()
    assert scaled_columns((values - values.mean(axis=0)) / values.std(axis=0, ddof=1)).all()


def test_what_cannot_be_checked_says_why(audited):
    bare = replace(audited, scans=audited.scans.drop(columns="sha256"), parts=audited.parts.drop(columns="fold"))
    rows = bare.rows(LeaksConfig(), latents=None, folds=[], regions=None, volumes=None)
    assert set(rows["verdict"]) == {CLEAN, NOT_CHECKED}
    assert (rows["verdict"] == CLEAN).sum() == 1
    assert rows.loc["same image twice", "what"] == "the cohort has no hashes of its files"
    assert rows.loc["family on both sides", "what"] == "no column of families was named"
    missing = audited.rows(LeaksConfig(group="grp", site="site", family="house", covariates=("age",)))
    assert missing.loc["site and group", "what"] == "the cohort has no column 'grp'"
    assert missing.loc["family on both sides", "what"] == "the cohort has no column 'house'"


def test_tables_of_other_scans_are_refused(audited):
    with pytest.raises(CohortError, match=r"sub-63 \(1 in all\) is in the cohort and not in the regions"):
        audited.rows(regions=audited.regions.iloc[:-1])
    with pytest.raises(CohortError, match="no column 'part'"):
        replace(audited, parts=audited.parts.drop(columns="part")).rows()


def test_rows_are_joined_by_scan_and_come_back_from_disk(audited, tmp_path):
    mixed = replace(audited, parts=audited.parts.iloc[::-1], regions=audited.regions.iloc[::-1])
    pd.testing.assert_frame_equal(mixed.rows(), audited.rows())
    found = leaks(audited.scans, audited.parts, CONFIG, regions=audited.regions)
    write_finding(found, tmp_path)
    again = read_finding(tmp_path)
    assert again.table["verdict"].tolist() == found.table["verdict"].tolist()
    assert again.answer.startswith("None of 9 checks found a leak. 3 could not be made.")


def test_seed_and_permutations_matter(audited):
    west = (audited.scans["site"] == "west").to_numpy()
    audited.regions.loc[west] += 0.1
    said = {n: audited.rows(replace(CONFIG, n_permutations=n)).loc["site in the regions", "what"] for n in (19, 999)}
    assert said[19] != said[999]
    told = [audited.rows(replace(CONFIG, seed=seed)).loc["site in the regions", "what"] for seed in (0, 0, 5)]
    assert told[0] == told[1] != told[2]


def test_sites_too_small_for_cramer_are_still_seen_to_be_the_group(audited):
    audited.scans["site"] = [f"site {number // 2}" for number in range(len(audited.scans))]
    audited.scans["group"] = np.where(np.arange(len(audited.scans)) // 2 % 2, "case", "control")
    assert audited.rows().loc["site and group", "verdict"] == FOUND


def test_families_of_one_are_no_check(audited):
    audited.scans["family"] = None
    row = audited.rows().loc["family on both sides"]
    assert (row["verdict"], "no two subjects share" in row["what"]) == (NOT_CHECKED, True)


def test_an_infinite_covariate_does_not_stop_the_audit(audited):
    audited.scans.loc[audited.scans.index[3], "age"] = np.inf
    assert len(audited.rows()) == 12
