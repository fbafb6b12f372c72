from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.latent_space import LatentSpace
from nilatent.analysis.prediction.heads import fit_linear
from nilatent.analysis.utility import BOTH, COLUMNS, PCA, REAL, SYNTHETIC, utility
from nilatent.atlas import RegionWeights
from nilatent.latents import Frame

N_REGIONS, Q = 5, 3


def study(rng, *, n=80, n_folds=2, effect=2.0, blind=False):
    """Latent spaces over scans whose regions are a linear picture of the latents; a blind model knows nothing of the group."""
    index = pd.Index([f"s{number:03d}" for number in range(n)], name="scan_id")
    is_case = np.arange(n) // 2 % 2 == 0
    z = rng.normal(size=(n, Q))
    shifted = z + effect * is_case[:, None] * np.eye(Q)[0]
    pattern = np.linalg.qr(rng.normal(size=(N_REGIONS, Q)))[0].T
    weights = RegionWeights(
        sparse.csr_matrix(np.eye(N_REGIONS)),
        np.arange(N_REGIONS) + 1,
        [f"R{k}" for k in range(N_REGIONS)],
        pd.DataFrame(),
    )
    regions = pd.DataFrame(shifted @ pattern + 0.3 * rng.normal(size=(n, N_REGIONS)), index=index)
    scans = pd.DataFrame(
        {"subject_id": index, "group": np.where(is_case, "AD", "CN"), "sex": rng.choice(["F", "M"], n)}
    )
    scans.index = index

    def draw(latents, _told):
        yield (latents @ pattern).astype(np.float32)

    whole = LatentSpace(
        scans=index,
        subjects=index.to_numpy(dtype=str),
        values=z if blind else shifted,
        frame=Frame(np.zeros(Q), np.eye(Q)),
        variance=np.zeros((n, Q)),
        names=tuple(f"z{number}" for number in range(Q)),
        training=np.ones(n, dtype=bool),
        unseen=np.zeros(n, dtype=bool),
        has_prior=False,
        told=(),
        draw_latents=draw,
    )
    folds = np.arange(n) % n_folds
    spaces = [replace(whole, training=folds != fold, unseen=folds == fold) for fold in range(n_folds)]
    return spaces, regions, scans, weights


def run(spaces, regions, scans, weights, **changes):
    settings = {"group": "group", "columns": ("sex",), "n_repeats": 2, "n_bootstrap": 300, "seed": 0}
    of_kind = {SYNTHETIC: spaces, PCA: spaces}
    return utility(of_kind, regions, scans, weights, **settings | changes).set_index("trained_on")


def test_synthetic_scans_of_a_model_that_knows_the_group_teach_as_much_as_real_ones(rng):
    found = run(*study(rng))
    assert found.at[REAL, "auc"] > 0.8
    assert found.at[SYNTHETIC, "auc"] > 0.8
    assert found.at[SYNTHETIC, "auc_gain_low"] < 0 < found.at[SYNTHETIC, "auc_gain_high"] + 0.05
    assert abs(found.at[SYNTHETIC, "auc_gain"]) < 0.1
    assert found.at[BOTH, "n_train"] == 2 * found.at[REAL, "n_train"] == 80
    assert (found["n_tested"] == 80).all()
    assert found["auc"].is_monotonic_decreasing
    assert [found.index.name, *found.columns] == list(COLUMNS)
    assert (found["balanced_accuracy"] > 0.7).all()


def test_a_model_that_knows_nothing_of_the_group_teaches_nothing(rng):
    found = [run(*study(rng, blind=True), n_bootstrap=10, seed=seed) for seed in range(8)]
    assert np.mean([one.at[REAL, "auc"] for one in found]) > 0.8
    # Each head points anywhere, and the group lies along one direction: single areas scatter widely around one half.
    assert abs(np.mean([one.at[SYNTHETIC, "auc"] for one in found]) - 0.5) < 0.2


def test_the_gain_is_over_real_scans_and_has_its_sign(rng):
    found = run(*study(rng, blind=True))
    assert found.at[SYNTHETIC, "auc_gain"] < -0.1
    assert found.at[SYNTHETIC, "auc_gain"] == pytest.approx(
        found.at[SYNTHETIC, "auc"] - found.at[REAL, "auc"], abs=0.02
    )


def test_a_third_group_bends_no_density(rng):
    spaces, regions, scans, weights = study(rng)
    plain = run(spaces, regions, scans, weights, contrast="AD:CN")
    other = scans.index[::5]
    scans.loc[other, "group"] = "far"
    # So far spread that a density of all three would drown the two that are compared.
    spread = np.where(scans["group"] == "far", 50.0, 1.0)[:, None]
    far = [replace(one, values=one.values * spread) for one in spaces]
    bent = run(far, regions, scans, weights, contrast="AD:CN")
    assert abs(bent.at[SYNTHETIC, "auc"] - plain.at[SYNTHETIC, "auc"]) < 0.1


def test_a_rare_or_missing_condition_is_passed_over(rng):
    spaces, regions, scans, weights = study(rng)
    for value in (np.nan, "other"):
        scans.loc[scans.index[3], "sex"] = value
        assert run(spaces, regions, scans, weights).at[SYNTHETIC, "auc"] > 0.8


def test_training_on_real_scans_is_the_head_of_each_space_on_its_unseen_scans(rng):
    spaces, regions, scans, weights = study(rng)
    found = run(spaces, regions, scans, weights)
    is_case, right, pairs = (scans["group"] == "AD").to_numpy(), 0.0, 0
    called = np.empty(80, dtype=bool)
    for space in spaces:
        train, test = np.flatnonzero(space.training), np.flatnonzero(space.unseen)
        x, y = regions.to_numpy(), is_case.astype(int)
        head = fit_linear(x[train], y[train], kind="binary", levels=("a", "b"), subjects=np.arange(len(train)), seed=0)
        n_pairs = int(y[test].sum() * (1 - y[test]).sum())
        right += n_pairs * roc_auc_score(y[test], head.scores(x[test])[:, 1])
        pairs += n_pairs
        called[test] = head.call(x[test]) == 1
    # Heads of two spaces have two scales: their scores are never ranked against each other.
    assert found.at[REAL, "auc"] == pytest.approx(right / pairs)
    assert found.at[REAL, "balanced_accuracy"] == pytest.approx(balanced_accuracy_score(is_case, called))
    assert found.at[REAL, "auc_gain"] == 0


def test_unseen_scans_have_no_say_in_what_is_drawn(rng):
    spaces, regions, scans, weights = study(rng, n_folds=4)
    of_one = run([replace(one, unseen=one.unseen & (np.arange(80) > 40)) for one in spaces], regions, scans, weights)
    assert of_one.at[REAL, "n_tested"] == 39
    wild = [replace(one, values=np.where(one.unseen[:, None], 50.0, one.values)) for one in spaces]
    pd.testing.assert_frame_equal(run(wild, regions, scans, weights), run(spaces, regions, scans, weights))


def test_conditions_repeats_and_seed_have_a_say(rng):
    cohort = study(rng)
    plain = run(*cohort)
    for changes in ({"columns": ()}, {"n_repeats": 3}, {"seed": 1}):
        assert not run(*cohort, **changes).equals(plain)
    pd.testing.assert_frame_equal(run(*cohort), plain)


def test_what_the_decoder_is_told_is_that_of_the_scan_in_the_same_place(rng):
    spaces, regions, scans, weights = study(rng)
    asked = []

    def draw(latents, told):
        asked.append((len(latents), list(told["sex"])))
        return spaces[0].draw_latents(latents, None)

    run([replace(one, told=("sex",), draw_latents=draw) for one in spaces], regions, scans, weights, n_repeats=1)
    assert asked[0] == (40, list(scans["sex"][spaces[0].training]))


def test_too_few_of_a_group_are_a_reason(rng):
    spaces, regions, scans, weights = study(rng, n=80)
    scans.loc[scans.index[scans["group"] == "AD"][10:], "group"] = np.nan
    with pytest.raises(NotComparableError, match="to learn from"):
        run(spaces, regions, scans, weights)
