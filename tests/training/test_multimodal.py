import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import LinearRegression

from nilatent.errors import CohortError, GridError, LatentsError, LeakageError, SettingError
from nilatent.multimodal import encode_jointly, predict_modality
from nilatent.training.multimodal import (
    MultimodalConfig,
    _as_joint,
    load_multimodal,
    shown_at_random,
    train_multimodal,
)
from nilatent.training.multimodal.data import code, learn_columns
from nilatent.training.multimodal.start import sized
from nilatent.training.stored import ModelError
from nilatent.volumes import Grid, volumes_in_memory

SHAPES = {"gm": (15, 17, 13), "wm": (12, 14, 10)}
QUICK = MultimodalConfig(n_latent=6, channels=(4, 8), n_epochs=0)


def smooth(rng, shape):
    """A pattern of unit root mean square."""
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in shape], indexing="ij")
    waves = [
        np.cos(3 * sum(k * axis for k, axis in zip(rng.uniform(-1, 1, 3), axes, strict=True)) + phase)
        for phase in (0, 2)
    ]
    pattern = waves[0] + waves[1] * rng.uniform()
    return pattern / np.sqrt(np.mean(pattern**2))


def images(rng, name, causes, *, noise=0.5):
    """Volumes in which each column of `causes` has a pattern; the bend of the first is only seen by a curve."""
    n_scans = len(causes)
    array = np.zeros((n_scans, *SHAPES[name]))
    for cause in causes.T:
        array += cause[:, None, None, None] * smooth(rng, SHAPES[name])
    array += noise * rng.standard_normal(array.shape)
    ids = [f"sub-{number:03d}" for number in range(n_scans)]
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=pd.Index(ids, name="scan_id"))
    mask = smooth(np.random.default_rng(5), SHAPES[name]) > -1
    return volumes_in_memory(array, mask=mask, grid=Grid(SHAPES[name], np.diag([4.0, 4.0, 4.0, 1.0])), scans=scans)


def cohort(rng, n_scans=120):
    """One cause that both images and the table tell of, and in every image two private ones that are far larger."""
    shared = rng.standard_normal(n_scans)
    private = {name: 2.0 * rng.standard_normal((n_scans, 2)) for name in SHAPES}
    modalities = {name: images(rng, name, np.column_stack([shared, own])) for name, own in private.items()}
    index = modalities["gm"].scans.index
    mood = rng.standard_normal(n_scans)
    table = pd.DataFrame(
        {
            "score": 50 + 10 * (shared + 0.5 * rng.standard_normal(n_scans)),
            "mood": mood + 0.3 * rng.standard_normal(n_scans),
            "worry": mood + 0.3 * rng.standard_normal(n_scans),
            "group": np.where(shared + rng.standard_normal(n_scans) > 0, "patient", "control"),
        },
        index=index,
    )
    table = table.mask(rng.random(table.shape) < 0.1)
    part = np.repeat(
        ["train", "validation", "test"], [n_scans // 2, n_scans // 6, n_scans - n_scans // 2 - n_scans // 6]
    )
    parts = pd.DataFrame({"subject_id": modalities["gm"].scans["subject_id"], "part": part}, index=index)
    return shared, modalities | {"table": table}, parts


def learned_on_training(x, y, parts):
    """R2 on the test scans of a regression fitted on the training scans."""
    train, test = (parts["part"] == "train").to_numpy(), (parts["part"] == "test").to_numpy()
    return LinearRegression().fit(x[train], y[train]).score(x[test], y[test])


@pytest.mark.parametrize("kind", ["poe", "moe", "mopoe"])
def test_either_modality_alone_tells_the_shared_cause(rng, tmp_path, kind):
    """Principal components of one modality follow its own, larger causes; what it shares is found by the joint model."""
    shared, modalities, parts = cohort(rng)
    n_epochs = 1 if kind == "poe" else 0
    config = MultimodalConfig(n_latent=6, n_shared=1, channels=(4, 8), n_epochs=n_epochs, experts=kind)
    model = train_multimodal(modalities, parts, config, tmp_path)
    train = (parts["part"] == "train").to_numpy()
    for name, other in (("gm", "wm"), ("wm", "gm")):
        x, y = (modalities[one].masked(np.arange(120)).astype(float) for one in (name, other))
        latents = encode_jointly(model, modalities, parts, use=[name])["mean"].values
        found = learned_on_training(latents, shared, parts)
        first = np.linalg.svd(x[train] - x[train].mean(axis=0), full_matrices=False)[2][:1]
        pls = PLSRegression(1, scale=False).fit(x[train], y[train]).transform(x)
        assert found > 0.85
        assert found > learned_on_training(x @ first.T, shared, parts) + 0.5
        assert found > learned_on_training(pls, shared, parts)
    # A category and one noisy score know less of it.
    assert (
        0.2
        < learned_on_training(encode_jointly(model, modalities, parts, use=["table"])["mean"].values, shared, parts)
        < 0.9
    )


def missed(model, modalities, parts, use):
    """Squared error of the grey matter of test scans, relative to their mean image in training."""
    test = list(parts.index[parts["part"] == "test"])
    drawn = np.concatenate([x for _, x in predict_modality(model, modalities, test, target="gm", use=use)])
    truth = modalities["gm"].masked(modalities["gm"].rows(test))
    mean = model.module.part("gm").get_buffer("mean").numpy()
    return float(np.square(drawn - truth).sum() / np.square(mean - truth).sum())


def test_predictions_degrade_as_modalities_go(rng, tmp_path):
    _, modalities, parts = cohort(rng)
    model = train_multimodal(modalities, parts, QUICK, tmp_path)
    of_all, of_wm, of_table = (missed(model, modalities, parts, use) for use in (["wm", "table"], ["wm"], ["table"]))
    assert of_all <= of_wm + 0.005 < of_table
    assert of_table < 1.0
    empty = {"wm": modalities["wm"], "table": modalities["table"].iloc[:0]}
    scan, drawn = next(predict_modality(model, empty, [parts.index[-1]], target="gm", use=["table"]))
    assert scan == [parts.index[-1]]
    assert np.allclose(drawn[0], model.module.part("gm").get_buffer("mean"), atol=0.05)


def test_a_table_is_predicted_in_its_own_units(rng, tmp_path):
    _, modalities, parts = cohort(rng)
    model = train_multimodal(modalities, parts, QUICK, tmp_path)
    test = list(parts.index[parts["part"] == "test"])
    pieces = [x for _, x in predict_modality(model, modalities, test, target="table", use=["gm", "wm"])]
    drawn = pd.concat(pieces)
    known = modalities["table"].loc[test]
    assert list(drawn.columns) == ["score", "mood", "worry", "group=patient", "group=control"] or (
        list(drawn.columns) == ["score", "mood", "worry", "group=control", "group=patient"]
    )
    assert np.allclose(drawn["group=control"] + drawn["group=patient"], 1.0)
    assert drawn["score"].corr(known["score"]) > 0.7
    assert drawn["score"].mean() == pytest.approx(known["score"].mean(), abs=5)
    assert abs(drawn["mood"].corr(known["mood"])) < 0.5
    patient = (known["group"] == "patient").to_numpy()
    assert drawn["group=patient"][patient].mean() > drawn["group=patient"][~patient].mean() + 0.05


def test_modalities_may_be_missing_for_any_scan(rng, tmp_path):
    shared, modalities, parts = cohort(rng)
    some = {
        "gm": subset(modalities["gm"], rng.permutation(120)[:80]),
        "wm": subset(modalities["wm"], rng.permutation(120)[:80]),
        "table": modalities["table"].sample(90, random_state=0),
    }
    config = MultimodalConfig(n_latent=6, n_shared=1, channels=(4, 8), n_epochs=2)
    model = train_multimodal(some, parts, config, tmp_path)
    latents = encode_jointly(model, some, parts)
    assert learned_on_training(latents["mean"].values, shared, parts) > 0.6
    bare = [scan for scan in parts.index if not any(scan in index(one) for one in some.values())]
    assert f"{len(bare)} scans have none" in latents.attrs["caveat"]
    assert np.allclose(latents.sel(scan=bare)["mean"], 0)
    assert np.allclose(latents.sel(scan=bare)["log_var"], 0)
    more = latents["log_var"].sel(scan=[s for s in parts.index if s in index(some["gm"]) and s in index(some["wm"])])
    only = latents["log_var"].sel(
        scan=[s for s in parts.index if s not in index(some["gm"]) and s not in index(some["wm"])]
    )
    assert float(more.mean()) < float(only.mean())


def index(modality):
    return modality.index if isinstance(modality, pd.DataFrame) else modality.scans.index


def subset(volumes, rows):
    return volumes_in_memory(volumes.data[rows], mask=volumes.mask, grid=volumes.grid, scans=volumes.scans.iloc[rows])


def test_nothing_shared_is_said(rng, tmp_path):
    _, modalities, parts = cohort(rng)
    own = {"gm": modalities["gm"], "wm": images(rng, "wm", 2.0 * rng.standard_normal((120, 2)))}
    told = train_multimodal(own, parts, QUICK, tmp_path).result
    assert told["sharing_gain"] < 0.05
    assert told["fvu_from_others"]["gm"] > 0.95
    if told["sharing_gain"] <= 0:
        assert "nothing shared is shown" in told["summary"]


def test_a_killed_training_goes_on_to_the_same_weights(rng, tmp_path):
    _, modalities, parts = cohort(rng, n_scans=60)
    config = MultimodalConfig(n_latent=4, channels=(4, 8), n_epochs=3)
    whole = train_multimodal(modalities, parts, config, tmp_path / "whole")

    def kill(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_multimodal(modalities, parts, config, tmp_path / "cut", on_epoch=kill)
    epochs = []
    again = train_multimodal(
        modalities, parts, config, tmp_path / "cut", on_epoch=lambda row: epochs.append(row["epoch"])
    )
    assert epochs == [3]
    assert again.content_hash == whole.content_hash
    assert list(again.history["train_loss"][1:]) == list(whole.history["train_loss"][1:])


def test_the_order_of_scans_and_test_scans_change_nothing(rng, tmp_path):
    _, modalities, parts = cohort(rng, n_scans=60)
    first = train_multimodal(modalities, parts, QUICK, tmp_path / "one")
    test = parts["part"] == "test"
    garbled = {name: one for name, one in modalities.items() if name != "table"}
    garbled["table"] = modalities["table"].copy()
    garbled["table"].loc[test, "score"] = 1e6
    second = train_multimodal(garbled, parts, QUICK, tmp_path / "other")
    for one, other in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        some = parts.iloc[::-1]
        there = encode_jointly(first, modalities, some).sel(scan=list(parts.index))["mean"]
        assert np.allclose(there, encode_jointly(first, modalities, parts)["mean"], atol=1e-5)


def blobs(rng, n_scans=160):
    """One cause moves a blob in both images: a curve that few components cannot follow."""
    place = rng.uniform(-0.6, 0.6, n_scans)[:, None, None, None]
    made = {name: images(rng, name, np.zeros((n_scans, 1)), noise=0.0) for name in SHAPES}
    for name, width in (("gm", 0.08), ("wm", 0.12)):
        one = made[name]
        axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPES[name]], indexing="ij")
        array = np.exp(-((axes[0] - place) ** 2 + axes[1] ** 2 + axes[2] ** 2) / width)
        array += 0.02 * rng.standard_normal(array.shape)
        made[name] = volumes_in_memory(array, mask=one.mask, grid=one.grid, scans=one.scans)
    n_train = n_scans * 5 // 8
    part = np.repeat(["train", "validation", "test"], [n_train, (n_scans - n_train) // 2, (n_scans - n_train) // 2])
    return made, pd.DataFrame(
        {"subject_id": made["gm"].scans["subject_id"], "part": part}, index=made["gm"].scans.index
    )


BENT = {"n_latent": 2, "n_shared": 2, "channels": (8, 16), "n_epochs": 8, "learning_rate": 5e-3}


@pytest.mark.slow
def test_networks_learn_what_is_bent(rng, tmp_path):
    modalities, parts = blobs(rng)
    linear, bent = (
        train_multimodal(modalities, parts, MultimodalConfig(**(BENT | more)), tmp_path / str(len(more)))
        for more in ({"n_epochs": 0}, {})
    )
    assert bent.result["best_epoch"] > 0
    assert bent.result["validation_elbo"] > linear.result["validation_elbo"] + 300
    assert missed(bent, modalities, parts, ["wm"]) < 0.9 * missed(linear, modalities, parts, ["wm"])


@pytest.mark.slow
def test_crossing_keeps_private_latents_from_what_is_shared(rng, tmp_path):
    modalities, parts = blobs(rng)
    models = [
        train_multimodal(modalities, parts, MultimodalConfig(**BENT, crossing=one), tmp_path / str(one))
        for one in (0.0, 1.0)
    ]
    # A higher bound that is paid for by prediction across modalities is not taken.
    assert [model.result["best_epoch"] > 0 for model in models] == [False, True]
    without, beside = (model.history for model in models)
    last, kept = without.iloc[-1], beside.iloc[-1]
    assert last["validation_elbo"] > without.iloc[0]["validation_elbo"] + 300
    assert last["private_kl"] > kept["private_kl"] + 5
    assert last["gm_fvu_from_others"] > 1.1 * kept["gm_fvu_from_others"]


def test_an_epoch_that_predicts_across_worse_is_not_chosen():
    names = ("gm", "table")
    first = {"gm_fvu_from_others": 0.7, "table_fvu_from_others": 0.9}
    assert _as_joint(names, {"gm_fvu_from_others": 0.6, "table_fvu_from_others": 0.95}, first)
    assert not _as_joint(names, {"gm_fvu_from_others": 0.75, "table_fvu_from_others": 0.9}, first)
    nothing = {"gm_fvu_from_others": 0.7, "table_fvu_from_others": np.nan}
    assert _as_joint(names, nothing, nothing)


def test_shared_latents_are_apart_given_all_and_the_best_known_comes_first(rng, tmp_path):
    _, modalities, parts = cohort(rng, n_scans=60)
    images_alone = {name: modalities[name] for name in SHAPES}
    config = MultimodalConfig(n_latent=4, n_shared=3, channels=(4, 8), n_epochs=0)
    model = train_multimodal(images_alone, parts, config, tmp_path)
    known = sum(model.module.part(name).get_buffer("read_precision") for name in SHAPES).numpy()
    assert np.abs(known - np.diag(np.diagonal(known))).max() < 1e-3 * known.max()
    assert (np.diff(np.diagonal(known)) < 0).all()
    loadings = np.hstack([model.module.part(name).get_buffer("shared").numpy() for name in SHAPES])
    assert (loadings[np.arange(3), np.abs(loadings).argmax(axis=1)] > 0).all()


def test_hidden_modalities(rng):
    present = np.array([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    rows = np.repeat(present, 3000, axis=0)
    shown = shown_at_random(rows, 0.5, rng)
    assert not (shown & ~rows).any()
    assert (shown.any(axis=1) == rows.any(axis=1)).all()
    whole = (shown == rows).all(axis=1).reshape(4, 3000).mean(axis=1)
    assert np.allclose(whole, [0.5, 0.5, 1.0, 1.0], atol=0.05)
    assert np.array_equal(shown_at_random(rows, 0.0, rng), rows)
    # Of the six sets of three modalities that are neither all nor none, each as often.
    hidden = shown[:3000][~shown[:3000].all(axis=1)]
    counts = np.unique(hidden, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts.max() < 1.4 * counts.min()


@pytest.mark.parametrize(
    "change",
    [
        {"experts": "moe"},
        {"n_latent": 5},
        {"n_shared": 2},
        {"n_table_private": 0},
        {"channels": (4, 4)},
        {"weights": {"table": 1000.0}},
        {"dropout": 0.0},
        {"crossing": 0.0},
        {"n_epochs": 2},
        {"batch_size": 8},
        {"learning_rate": 1e-2},
        {"warmup_epochs": 0.0},
        {"weight_decay": 5.0},
        {"input_noise": 1.0},
        {"latent_noise": 1.0},
        {"seed": 3},
    ],
)
def test_every_setting_counts(rng, tmp_path, change):
    _, modalities, parts = cohort(rng, n_scans=60)
    settings = {"n_latent": 4, "n_shared": 1, "channels": (4, 8), "n_epochs": 1}
    one, other = (
        train_multimodal(modalities, parts, MultimodalConfig(**(settings | more)), tmp_path / str(len(more)))
        for more in ({}, change)
    )
    assert not np.array_equal(one.history.iloc[-1, 1:-2], other.history.iloc[-1, 1:-2])


def test_patience_stops_a_training_that_gains_nothing(rng, tmp_path):
    _, modalities, parts = cohort(rng, n_scans=60)
    config = MultimodalConfig(n_latent=4, channels=(4, 8), n_epochs=9, patience=2, learning_rate=1e-12)
    assert len(train_multimodal(modalities, parts, config, tmp_path).history) == 3


def test_result_states_the_balance(rng, tmp_path):
    _, modalities, parts = cohort(rng, n_scans=60)
    config = MultimodalConfig(n_latent=4, channels=(4, 8), n_epochs=0, weights={"table": 20.0})
    told = train_multimodal(modalities, parts, config, tmp_path).result["balance"]
    assert told["table"]["weight"] == 20.0
    assert told["table"]["n_values"] == 4
    assert told["table"]["nats_per_percent"] == pytest.approx(0.005 * 4 * 20)
    assert told["gm"]["n_values"] == int(modalities["gm"].mask.sum())
    assert told["gm"]["noise_sd"] == pytest.approx(0.5, rel=0.1)
    assert told["gm"]["shared_nats"] > 0


def test_folder_brings_everything_back(rng, tmp_path):
    _, modalities, parts = cohort(rng, n_scans=60)
    made = train_multimodal(modalities, parts, MultimodalConfig(n_latent=4, channels=(4, 8), n_epochs=1), tmp_path)
    read = load_multimodal(tmp_path)
    assert read.config == made.config
    assert read.content_hash == made.content_hash
    assert read.columns == made.columns
    latents = encode_jointly(read, modalities, parts)
    assert np.array_equal(latents["mean"], encode_jointly(made, modalities, parts)["mean"])
    assert list(latents["subject_in_training"].values) == list(parts["part"] != "test")
    stored = "".join(path.read_text(errors="ignore") for path in tmp_path.iterdir())
    assert "sub-00" not in stored
    assert json.loads((tmp_path / "result.json").read_text())["n_scans"]["train"]["gm"] == 30


def test_known_scans_are_recognised_under_another_name(rng, tmp_path):
    _, modalities, parts = cohort(rng, n_scans=60)
    model = train_multimodal(modalities, parts, QUICK, tmp_path)
    gm = modalities["gm"]
    renamed = gm.scans.assign(subject_id="x" + gm.scans["subject_id"]).set_index("x" + gm.scans.index)
    other = volumes_in_memory(gm.data, mask=gm.mask, grid=gm.grid, scans=renamed)
    new = parts.assign(subject_id="x" + parts["subject_id"]).set_index("x" + parts.index)
    found = encode_jointly(model, {"gm": other}, new)
    assert list(found["subject_in_training"].values) == list(parts["part"] != "test")


@pytest.mark.parametrize("damage", ["config.toml", "modalities.json", "weights.safetensors"])
def test_a_damaged_folder_is_refused(rng, tmp_path, damage):
    _, modalities, parts = cohort(rng, n_scans=60)
    train_multimodal(modalities, parts, QUICK, tmp_path)
    path = tmp_path / damage
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError):
        load_multimodal(tmp_path)


def of_one(volumes):
    scans = volumes.scans.assign(subject_id="all")
    return volumes_in_memory(volumes.data, mask=volumes.mask, grid=volumes.grid, scans=scans)


REFUSALS = {
    "one modality": (lambda m, p: ({"gm": m["gm"]}, p), SettingError, "two modalities or more"),
    "no volumes": (lambda m, p: ({"a": m["table"], "b": m["table"]}, p), SettingError, "one of them volumes"),
    "missing everywhere": (
        lambda m, p: (m | {"table": m["table"].map(lambda _: np.nan)}, p),
        SettingError,
        r"has the modality 'table' \(0 scans\)",
    ),
    "no ids in common": (
        lambda m, p: (
            {"gm": subset(m["gm"], np.r_[0:15, 30:35]), "wm": subset(m["wm"], np.r_[15:30, 35:40])},
            p,
        ),
        SettingError,
        "No training scan has two",
    ),
    "not in validation": (
        lambda m, p: (m | {"wm": subset(m["wm"], np.arange(30))}, p),
        SettingError,
        "part 'validation'",
    ),
    "leak": (
        lambda m, p: ({"gm": of_one(m["gm"]), "table": m["table"]}, p.assign(subject_id="all")),
        LeakageError,
        "training and in the validation",
    ),
    "other people": (
        lambda m, p: (m, p.assign(subject_id=p["subject_id"].to_numpy()[::-1])),
        CohortError,
        "is of subject sub-000 in 'gm' and of sub-059",
    ),
    "twice": (
        lambda m, p: (m | {"table": pd.concat([m["table"], m["table"]])}, p),
        CohortError,
        "stands twice in table",
    ),
    "constant": (lambda m, p: (m | {"table": m["table"].assign(mood=1.0)}, p), SettingError, "mood is known of"),
    "few cells": (
        lambda m, p: (m | {"table": m["table"].assign(mood=[1.0, 2.0] + [np.nan] * 58)}, p),
        SettingError,
        "mood is known of 2",
    ),
    "infinite": (
        lambda m, p: (m | {"table": m["table"].assign(mood=[np.inf] + [1.0, 2.0] * 29 + [3.0])}, p),
        SettingError,
        "not finite",
    ),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_what_cannot_be_joined_is_refused(rng, tmp_path, case):
    _, modalities, parts = cohort(rng, n_scans=60)
    change, error, words = REFUSALS[case]
    with pytest.raises(error, match=words):
        train_multimodal(*change(modalities, parts), QUICK, tmp_path)


def test_settings_out_of_range_are_refused(rng, tmp_path):
    for wrong in (
        {"experts": "all"},
        {"n_latent": -1},
        {"n_shared": 30, "n_latent": 16},
        {"dropout": 1.0},
        {"weights": {"gm": 0.0}},
        {"channels": (5,)},
        {"learning_rate": 0.0},
        {"input_noise": -1.0},
        {"device": "abacus"},
    ):
        with pytest.raises(SettingError, match=f"multimodal.{next(iter(wrong))}"):
            MultimodalConfig(**wrong)
    _, modalities, parts = cohort(rng, n_scans=60)
    for wrong, words in (({"weights": {"mri": 2.0}}, "names 'mri'"), ({"n_latent": 30}, "training scans of 'gm', 30")):
        with pytest.raises(SettingError, match=words):
            train_multimodal(modalities, parts, MultimodalConfig(**wrong), tmp_path)


def test_use_of_a_model_on_what_it_does_not_know_is_refused(rng, tmp_path):
    _, modalities, parts = cohort(rng, n_scans=60)
    model = train_multimodal(modalities, parts, QUICK, tmp_path)
    wrong_mask = volumes_in_memory(
        modalities["gm"].data, mask=~modalities["gm"].mask, grid=modalities["gm"].grid, scans=modalities["gm"].scans
    )
    table = modalities["table"]
    for given, error, words in (
        ({"t1": modalities["gm"]}, SettingError, "'t1' is not among"),
        ({"gm": table}, SettingError, "as volumes"),
        ({"gm": modalities["wm"]}, GridError, "volumes of 'gm'"),
        ({"gm": wrong_mask}, GridError, "mask"),
        ({"table": table.drop(columns="mood")}, SettingError, "lacks the column 'mood'"),
        ({"table": table.assign(group="genius")}, SettingError, "is 'genius'"),
        ({"table": table.assign(mood="low")}, SettingError, "no number"),
        ({"table": table.map(lambda _: np.nan)}, LatentsError, "No scan has any"),
    ):
        with pytest.raises(error, match=words):
            encode_jointly(model, given, parts)
    with pytest.raises(SettingError, match="from others"):
        next(predict_modality(model, {"gm": modalities["gm"]}, list(parts.index), target="gm"))
    with pytest.raises(SettingError, match="no modality 't1'"):
        next(predict_modality(model, modalities, list(parts.index), target="t1"))


def test_numbers_are_numbers_whatever_the_type_of_their_column(rng):
    ids = [f"sub-{number}" for number in range(12)]
    index, values = pd.Index(ids, name="scan_id"), rng.normal(50, 10, 12).round(2)
    plain = pd.DataFrame({"0": values, "code": [f"00{number % 3}" for number in range(12)]}, index=index)
    wanted = learn_columns(plain, ids, name="t")
    assert wanted[0].levels == ()
    assert wanted[1].levels == ("000", "001", "002")
    for odd in (values.astype(object), values.astype(str), [Decimal(str(value)) for value in values]):
        table = pd.DataFrame({0: pd.Series(odd, index=index, dtype=object), "code": plain["code"]})
        found = learn_columns(table, ids, name="t")
        assert found[0].mean == pytest.approx(wanted[0].mean)
        assert np.allclose(code(table, found, ids, name="t"), code(plain, wanted, ids, name="t"))
    with pytest.raises(SettingError, match="the column '0' twice"):
        learn_columns(pd.DataFrame({0: values, "0": values}, index=index), ids, name="t")


@pytest.mark.parametrize(("asked", "counts", "n_latent"), [(0, [40, 19], 9), (0, [200], 16), (0, [3], 1), (7, [9], 7)])
def test_the_number_of_latents_follows_the_smallest_modality_unless_it_is_set(asked, counts, n_latent):
    assert sized(MultimodalConfig(n_latent=asked), counts).n_latent == n_latent
    assert sized(MultimodalConfig(n_latent=0, n_shared=12), counts).n_latent >= 12


def test_a_category_tells_as_much_in_words_as_in_numbers(rng, tmp_path):
    """One in five is F: an indicator of small variance is no noise."""
    n_scans, female = 150, np.arange(150) % 5 == 0
    causes = np.column_stack([1.5 * (female - 0.2) / 0.4, 2.0 * rng.standard_normal((n_scans, 2))])
    gm = images(rng, "gm", causes)
    part = np.repeat(["train", "validation", "test"], [90, 20, 40])
    parts = pd.DataFrame({"subject_id": gm.scans["subject_id"], "part": part}, index=gm.scans.index)
    test, truth = list(parts.index[part == "test"]), female[part == "test"]
    chance = {}
    for way, values in (("words", np.where(female, "F", "M")), ("numbers", female.astype(float))):
        told = {"gm": gm, "people": pd.DataFrame({"sex": values}, index=gm.scans.index)}
        model = train_multimodal(told, parts, QUICK, tmp_path / way)
        found = pd.concat([x for _, x in predict_modality(model, {"gm": gm}, test, target="people")])
        chance[way] = found["sex=F" if way == "words" else "sex"].to_numpy()
    assert np.corrcoef(chance["words"], chance["numbers"])[0, 1] > 0.95
    base = -(truth * np.log(0.2) + ~truth * np.log(0.8)).mean()
    assert -(truth * np.log(chance["words"]) + ~truth * np.log(1 - chance["words"])).mean() < 0.7 * base
