from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge

from nilatent import joint
from nilatent.analysis.multimodal import JOINT, RIVAL, SHARED, simple, simply_told
from nilatent.analysis.multimodal.asked import Fold
from nilatent.config import read_config
from nilatent.errors import LeakageError
from nilatent.multimodal import predict_modality
from nilatent.training.multimodal import MultimodalConfig, load_multimodal, train_multimodal
from nilatent.volumes import Grid, volumes_in_memory

SHAPES = {"gm": (15, 17, 13), "wm": (12, 14, 10)}
N = 44
IDS = pd.Index([f"sub-{number:02d}" for number in range(N)], name="scan_id")


def images(rng, name, causes, rows):
    shape = SHAPES[name]
    patterns = rng.standard_normal((causes.shape[1], *shape))
    array = np.tensordot(causes, patterns, 1) + 0.5 * rng.standard_normal((N, *shape))
    scans = pd.DataFrame({"subject_id": IDS, "dataset": "one"}, index=IDS)
    mask = np.zeros(shape, dtype=bool)
    mask[1:-1, 2:-1, 1:-2] = True
    grid = Grid(shape, np.diag([4.0, 4.0, 4.0, 1.0]))
    return volumes_in_memory(array[rows], mask=mask, grid=grid, scans=scans.iloc[rows])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two folds of a joint model, of which nothing but the linear start is kept; the scans of one kind come in another order."""
    rng, place = np.random.default_rng(0), tmp_path_factory.mktemp("joint")
    shared = rng.standard_normal((N, 1))
    causes = {name: np.hstack([shared, rng.standard_normal((N, 1))]) for name in SHAPES}
    rows = {"gm": np.arange(N), "wm": rng.permutation(N)[: N - 3]}
    modalities = {name: images(rng, name, causes[name], rows[name]) for name in SHAPES}
    table = pd.DataFrame({1: [f"{one:.3f}" for one in 20 + 4 * shared[:, 0]]}, index=IDS)
    modalities["scores"] = table.where(rng.random(table.shape) > 0.05)
    models = []
    for number in range(2):
        part = np.where(np.arange(N) % 2 == number, "test", np.where(np.arange(N) % 11 > 8, "validation", "train"))
        parts = pd.DataFrame({"subject_id": IDS, "part": part}, index=IDS)
        config = MultimodalConfig(n_latent=3, n_shared=1, channels=(4, 8), n_epochs=0)
        train_multimodal(modalities, parts, config, place / str(number))
        models.append(joint.Model(place / str(number), parts))
    return modalities, models, joint.ask(modalities, models, IDS, seed=0)


def line(found, target, sources, way, scans="all of these"):
    table = found.table
    chosen = (
        (table["target"] == target) & (table["sources"] == sources) & (table["way"] == way) & (table["scans"] == scans)
    )
    assert chosen.sum() == 1
    return table[chosen].iloc[0]


def test_every_unseen_scan_is_told_by_the_model_that_has_not_seen_it(study):
    modalities, models, found = study
    gm, missed, total = modalities["gm"], np.zeros(N), np.zeros(N)
    for one in models:
        test = np.flatnonzero(one.parts["part"] == "test")
        model = load_multimodal(one.folder)
        drawn = [x for _, x in predict_modality(model, modalities, list(IDS[test]), target="gm", use=["wm", "scores"])]
        missed[test] = np.square(np.concatenate(drawn) - gm.masked(test)).sum(axis=1)
        usual = gm.masked(np.flatnonzero(one.parts["part"] == "train")).mean(axis=0)
        total[test] = np.square(usual - gm.masked(test)).sum(axis=1)
    row = line(found, "gm", "wm + scores", JOINT, "any of these")
    assert row["n_scans"] == N
    assert np.isclose(row["unexplained"], missed.sum() / total.sum(), rtol=1e-4)
    whole = np.isin(IDS, modalities["wm"].scans.index) & modalities["scores"].notna().any(axis=1).to_numpy()
    row = line(found, "gm", "wm + scores", JOINT)
    assert row["n_scans"] == whole.sum() < N
    assert np.isclose(row["unexplained"], missed[whole].sum() / total[whole].sum(), rtol=1e-4)
    assert "and so shared: gm" in found.answer


def test_drawn_from_itself_with_and_without_private_latents(study):
    modalities, models, found = study
    model, wm = load_multimodal(models[0].folder), modalities["wm"]
    scans = [scan for scan in IDS[models[0].parts["part"] == "test"] if scan in wm.scans.index]
    told = list(joint._from_itself(model, "wm", wm, scans))
    assert [one for ids, _, _ in told for one in ids] == scans
    whole, shared = (np.concatenate([one[place] for one in told]) for place in (1, 2))
    x = wm.masked(wm.rows(scans))
    images = torch.from_numpy(np.asarray(wm.data[wm.rows(scans)], dtype=np.float32))[:, None]
    part = model.module.part("wm")
    # A linear model draws what the posterior means of its latents, private ones in turn given shared ones, stand for.
    with torch.no_grad():
        read = part.read(images)
        z = torch.linalg.solve(torch.eye(1) + read.precision, read.pull[:, :, None])[:, :, 0]
        w = read.own(z).mean
        for latents, drawn in ((w, whole), (torch.zeros_like(w), shared)):
            linear = z @ part.get_buffer("shared") + latents @ part.get_buffer("private") + part.get_buffer("mean")
            np.testing.assert_allclose(drawn, linear.numpy(), atol=1e-3)
    errors = [np.square(one - x).sum() for one in (whole, shared)]
    assert errors[0] < errors[1]
    itself = [line(found, "wm", "itself", way)["unexplained"] for way in (JOINT, SHARED, "PCA of equal size")]
    assert itself[0] < itself[1] < 1
    assert itself[2] < itself[1]


def test_regressions_on_coordinates_are_those_on_voxels(study):
    modalities, models, _ = study
    parts = models[0].parts
    made = {name: joint.coordinates(modalities[name], IDS) for name in SHAPES}
    assert np.isnan(made["wm"][~np.isin(IDS, modalities["wm"].scans.index)]).all()
    there = np.isfinite(made["wm"]).all(axis=1)
    known, new = (parts["part"] != "test").to_numpy() & there, (parts["part"] == "test").to_numpy() & there
    x, y = (modalities[name].masked(modalities[name].rows(list(IDS[there]))).astype(float) for name in ("wm", "gm"))
    inside = known[there]
    for penalty, drawn in simple.ridge_path(made["wm"][known], made["gm"][known], made["wm"][new]).items():
        direct = Ridge(alpha=penalty * known.sum()).fit(x[inside], y[inside]).predict(x[~inside])
        painted = joint.drawn_of(drawn, made["gm"], modalities["gm"], IDS)
        np.testing.assert_allclose(painted, direct, atol=1e-3)


def test_examples_are_scans_and_what_was_told_of_them(study):
    modalities, models, found = study
    data = found.data
    assert list(data["case"].values) == ["told well", "middling", "told badly"]
    shares = data["case_joint"].values
    assert shares[0] < shares[1] < shares[2]
    scan = str(data["case_scan"].sel(case="middling").values)
    gm = modalities["gm"]
    _, coronal, axial = joint.planes(gm.mask)
    truth = np.where(gm.mask, np.asarray(gm.data[gm.rows([scan])[0]], dtype=float), 0.0)
    one = data.sel(case="middling")
    np.testing.assert_allclose(one["truth_axial"], truth[:, :, axial])
    np.testing.assert_allclose(one["truth_coronal"], truth[:, coronal])
    assert np.isnan(one["joint_error_axial"].values[~gm.mask[:, :, axial]]).all()
    inside = gm.mask[:, :, axial]
    for name in ("joint", "simple"):
        gap = one[f"{name}_axial"].values - one["truth_axial"].values
        np.testing.assert_allclose(one[f"{name}_error_axial"].values[inside], gap[inside], atol=1e-5)
    # The same regression as in the table.
    number = next(place for place, model in enumerate(models) if model.parts.at[scan, "part"] == "test")
    kinds = {name: joint.coordinates(modalities[name], IDS) for name in SHAPES}
    kinds["scores"] = joint._typed(load_multimodal(models[number].folder), "scores", modalities["scores"])
    fold = Fold(models[number].parts, {}, {})
    own = np.asarray(IDS.isin([scan]))
    points = simply_told(kinds, "gm", ("wm", "scores"), fold, own, seed=0)
    share = np.square(points - kinds["gm"][own]).sum()
    row = np.flatnonzero(
        (found.table["target"] == "gm") & (found.table["way"] == RIVAL) & (found.table["sources"] == "wm + scores")
    )
    assert np.isclose(share, data["error"].values[row[0], IDS.get_loc(scan)], rtol=1e-6)


def test_columns_are_what_the_models_take_them_for(study):
    found = study[2]
    assert list(found.table.drop_duplicates("target")["target"]) == ["gm", "wm", "scores: 1"]
    assert set(found.table["kind"]) == {"volumes", "number"}
    levels = SimpleNamespace(columns={"site": (SimpleNamespace(name="code", levels=("1", "2")),)})
    codes = joint._typed(levels, "site", pd.DataFrame({"code": [1, None, 2]}, dtype=object))["code"]
    assert codes.tolist()[::2] == ["1", "2"]
    assert codes.isna().tolist() == [False, True, False]


def test_a_model_that_knows_its_test_part_is_refused(study):
    modalities, models, _ = study
    swapped = [joint.Model(models[1].folder, models[0].parts)]
    with pytest.raises(LeakageError, match="has seen the subject of sub-00"):
        joint.ask(modalities, swapped, IDS, seed=0)


def test_without_further_kinds_or_models_it_is_not_run(tmp_path, study, monkeypatch):
    pools = SimpleNamespace(out=tmp_path, config=read_config(), prepared=None)
    assert "names one kind of image" in joint.joint_found(pools).not_run
    monkeypatch.setattr(joint, "open_modalities", lambda *_: study[0])
    assert joint.joint_found(pools).not_run == "multimodal holds no joint model; run the study again"
