import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.analysis import reconstruction as module
from nilatent.analysis.reconstruction import reconstruction
from nilatent.errors import CohortError, SettingError
from nilatent.volumes import voxel_pca

N = 40


@pytest.fixture
def parts(volumes):
    return pd.DataFrame({"part": ["train"] * 24 + ["validation"] * 4 + ["test"] * 12}, index=volumes.scans.index)


def chunks(volumes, decode, *, rows=range(N), size=7):
    rows = np.array(rows)
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        yield some, decode(volumes.masked(some)).astype(np.float32)


def run(volumes, parts, decode, *, n_latent=3, seed=0, size=7, **options):
    streamed = chunks(volumes, decode, size=size)
    return reconstruction(volumes, streamed, parts, volumes.scans, n_latent=n_latent, seed=seed, **options)


def line(found, method, stratum="all", part="test"):
    table = found.table.set_index(["stratum", "part", "method"])
    return table.loc[(stratum, part, method)]


def test_metrics_equal_their_definitions(volumes, parts):
    found = run(volumes, parts, lambda x: x * 0.9 + 0.01)
    held = np.arange(28, 40)
    x = volumes.masked(held).astype(float)
    y, mean = x * 0.9 + 0.01, volumes.masked(np.arange(24)).astype(float).mean(axis=0)
    row = line(found, "model")
    assert row["mse"] == pytest.approx(((x - y) ** 2).mean(), rel=1e-4)
    assert row["mae"] == pytest.approx(np.abs(x - y).mean(), rel=1e-4)
    assert row["fvu"] == pytest.approx(((x - y) ** 2).sum() / ((x - mean) ** 2).sum(), rel=1e-4)
    assert row["psnr"] == pytest.approx((-10 * np.log10(((x - y) ** 2).mean(axis=1))).mean(), rel=1e-4)
    assert row["gm_error_percent"] == pytest.approx((np.abs(x.sum(1) - y.sum(1)) / x.sum(1)).mean() * 100, rel=1e-3)
    assert found.data["gm_ml_original"].values[held] == pytest.approx(x.sum(axis=1) * 0.064, rel=1e-4)
    np.testing.assert_allclose(found.maps["mae"].get_fdata()[volumes.mask], np.abs(x - y).mean(0), rtol=1e-3)
    fvu_map = ((x - y) ** 2).sum(axis=0) / ((x - mean) ** 2).sum(axis=0)
    np.testing.assert_allclose(found.maps["fvu"].get_fdata()[volumes.mask], fvu_map, rtol=1e-2)


def test_the_mean_image_has_fvu_one_and_pca_beats_it_here(volumes, parts):
    found = run(volumes, parts, lambda x: x)
    assert line(found, "mean image")["fvu"] == pytest.approx(1)
    assert line(found, "pca")["fvu"] < 0.5
    assert line(found, "model")["ssim"] == pytest.approx(1)
    assert line(found, "model", part="train")["fvu"] == pytest.approx(0)


def test_the_first_sentence_says_how_the_model_stands_to_both_baselines(volumes, parts):
    pca = voxel_pca(volumes, np.arange(24), 3, seed=0)
    perfect, equal = run(volumes, parts, lambda x: x).answer, run(volumes, parts, pca.reconstruct).answer
    poor = run(volumes, parts, lambda x: x * 0 + 3).answer
    first = "On 12 held-out scans of 12 subjects the model is better than the mean image (FVU 0.000"
    assert perfect.startswith(first)
    assert "and better than PCA of equal size (3 components, FVU" in perfect
    assert equal.count("and the same as PCA") == 3
    assert poor.count("worse than the mean image") == 3


def test_a_verdict_needs_an_interval_that_excludes_zero():
    assert module.verdict((-0.2, -0.3, -0.1)) == "better than"
    assert module.verdict((0.2, 0.1, 0.3)) == "worse than"
    assert module.verdict((-0.1, -0.3, 0.1)) == "not distinguishable from"
    assert module.verdict((1e-7, -1e-6, 1e-6)) == "the same as"


def test_each_cohort_stands_in_the_first_sentence_and_the_table(volumes, parts):
    found = run(volumes, parts, lambda x: x)
    first_sentence = found.answer.split(". Structural")[0]
    assert "; in a (6 scans, FVU 0.000) better than the mean image and better than PCA" in first_sentence
    assert line(found, "model", "dataset b")["n_scans"] == 6


def test_a_cohort_of_few_held_out_scans_gets_no_verdict(volumes, parts, monkeypatch):
    monkeypatch.setattr(module, "MIN_SUBJECTS_JUDGED", 7)
    said = run(volumes, parts, lambda x: x).answer
    assert "; too few held-out scans to say in a (6), b (6). Structural" in said
    assert "; in a" not in said


def test_groups_have_rows_when_named(volumes, parts):
    scans = volumes.scans.assign(group=np.where(np.arange(N) < 34, "AD", "CN"))
    found = reconstruction(volumes, chunks(volumes, lambda x: x), parts, scans, n_latent=2, seed=0, group="group")
    assert line(found, "pca", "group AD")["n_scans"] == 6
    assert "There is no column 'group', so no rows by group." in run(volumes, parts, lambda x: x, group="group").caveats


def test_streaming_in_any_batch_gives_the_same(volumes, parts):
    one, all_at_once = (run(volumes, parts, lambda x: x * 0.9, size=size) for size in (1, N))
    pd.testing.assert_frame_equal(one.table, all_at_once.table, rtol=1e-4)
    xr.testing.assert_allclose(one.data, all_at_once.data, rtol=1e-4, atol=1e-6)


def test_best_median_and_worst_are_held_out_scans_in_that_order(volumes, parts):
    found = run(volumes, parts, lambda x: x * 0.9)
    mse = found.data["mse"].sel(approach="model", scan=found.data["case_scan"].values).values
    held = found.data["mse"].sel(approach="model").values[28:]
    assert mse[0] == held.min()
    assert mse[2] == held.max()
    assert mse[1] == np.sort(held)[6]
    x, _, z = module._planes(volumes.mask)
    row = volumes.rows([str(found.data["case_scan"].values[0])])[0]
    volume = np.where(volumes.mask, volumes.data[row].astype(np.float32), 0)
    np.testing.assert_allclose(found.data["original_sagittal"].values[0], volume[x])
    np.testing.assert_allclose(found.data["model_axial"].values[0], volume[:, :, z] * 0.9, rtol=1e-5)
    np.testing.assert_allclose(found.data["error_axial"].values[0], volume[:, :, z] * -0.1, atol=1e-6)


def test_settings_and_notes_reach_the_reader(volumes, parts):
    found = run(volumes, parts, lambda x: x, n_latent=64, model_note="PCA; the network added nothing.", data_range=2.0)
    assert found.settings["n_components_pca"] == 23
    assert "PCA; the network added nothing." in found.caveats
    assert any("PCA has 23 components, not 64" in line for line in found.caveats)
    assert line(found, "pca")["psnr"] > line(run(volumes, parts, lambda x: x, n_latent=64), "pca")["psnr"]
    other = run(volumes, parts, lambda x: x, n_latent=64, seed=1)
    assert line(other, "pca")["mse_low"] != line(found, "pca")["mse_low"]


def test_a_stream_that_is_not_whole_is_refused(volumes, parts):
    def judge(stream):
        return reconstruction(volumes, stream, parts, volumes.scans, n_latent=2, seed=0)

    with pytest.raises(SettingError, match=r"scan-39 \(1 in all\) has no reconstruction"):
        judge(chunks(volumes, lambda x: x, rows=range(39)))
    with pytest.raises(SettingError, match="scan-03 came twice"):
        judge(chunks(volumes, lambda x: x, rows=[3, *range(N)]))
    with pytest.raises(SettingError, match="finite values are expected"):
        judge(chunks(volumes, lambda x: x[:, 1:]))
    with pytest.raises(SettingError, match="finite values are expected"):
        judge(chunks(volumes, lambda x: x * np.nan))
    with pytest.raises(CohortError, match="scan-00"):
        reconstruction(volumes, [], parts.iloc[1:], volumes.scans, n_latent=2, seed=0)


def test_without_held_out_scans_it_is_not_run(volumes, parts):
    found = run(volumes, parts.assign(part="train"), lambda x: x)
    assert found.not_run == "too few: 40 training and 0 held-out scans"


def test_t1_intensities_have_no_grey_matter_volume(volumes, parts):
    found = run(volumes, parts, lambda x: x * 0.9, target="t1w")
    assert "gm_error_percent" not in found.table
    assert "gm_ml" not in found.data
    assert "grey matter" not in found.answer
    assert "total grey matter is off by 10.0 %" in run(volumes, parts, lambda x: x * 0.9).answer
