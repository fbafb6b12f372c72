import weakref

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import sparse

from nilatent.analysis import stats
from nilatent.analysis.downsampling import downsampling
from nilatent.analysis.reconstruction import measures as reconstruction_measures
from nilatent.analysis.reconstruction import reconstruction
from nilatent.analysis.reconstruction import words as reconstruction_words
from nilatent.analysis.similarity import ssim_3d
from nilatent.atlas import RegionWeights
from nilatent.errors import AtlasError, CohortError, SettingError
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


def test_whole_volume_metrics_count_what_lies_outside_the_mask(volumes, parts):
    found = run(volumes, parts, lambda x: x)
    whole = np.asarray(volumes.data[28:40], dtype=float)
    drawn = np.where(volumes.mask, whole, 0.0)
    row = line(found, "model")
    assert row["mse"] == pytest.approx(0, abs=1e-9)
    assert row["mse_whole"] == pytest.approx(((whole - drawn) ** 2).mean(), rel=1e-4)
    assert row["mae_whole"] == pytest.approx(np.abs(whole - drawn).mean(), rel=1e-4)
    decibel = -10 * np.log10(((whole - drawn) ** 2).mean(axis=(1, 2, 3)))
    assert row["psnr_whole"] == pytest.approx(decibel.mean(), rel=1e-4)
    everywhere = np.ones(volumes.mask.shape, dtype=bool)
    ssim = [ssim_3d(x, [y], everywhere, data_range=1.0) for x, y in zip(whole, drawn, strict=True)]
    assert row["ssim_whole"] == pytest.approx(np.mean([one for one, _ in ssim]), rel=1e-4)
    assert row["ms_ssim_whole"] == pytest.approx(np.mean([several for _, several in ssim]), rel=1e-4)
    assert row["ms_ssim"] == pytest.approx(1)


def test_cosine_is_that_of_the_deviations_from_the_mean_image(volumes, parts):
    x, mean = volumes.masked(np.arange(28, 40)).astype(float), volumes.masked(np.arange(24)).astype(float).mean(axis=0)
    y = x * 0.9 + 0.01
    expected = ((x - mean) * (y - mean)).sum(1) / np.linalg.norm(x - mean, axis=1) / np.linalg.norm(y - mean, axis=1)
    found = run(volumes, parts, lambda x: x * 0.9 + 0.01)
    assert line(found, "model")["cosine"] == pytest.approx(expected.mean(), rel=1e-4)
    assert np.isnan(line(found, "mean image")["cosine"])


def test_agreement_of_total_grey_matter(volumes, parts):
    row = line(run(volumes, parts, lambda x: x * 0.9 + 0.01), "model")
    x = volumes.masked(np.arange(28, 40)).astype(float)
    total, made = x.sum(axis=1) * 0.064, (x * 0.9 + 0.01).sum(axis=1) * 0.064
    off = made - total
    assert row["gm_bias_ml"] == pytest.approx(off.mean(), rel=1e-3)
    assert row["gm_mae_ml"] == pytest.approx(np.abs(off).mean(), rel=1e-3)
    limits = off.mean() - 1.96 * off.std(ddof=1), off.mean() + 1.96 * off.std(ddof=1)
    assert (row["gm_limit_low_ml"], row["gm_limit_high_ml"]) == pytest.approx(limits, rel=1e-3)
    concordance = 2 * np.cov(total, made, ddof=0)[0, 1] / (total.var() + made.var() + off.mean() ** 2)
    assert row["gm_ccc"] == pytest.approx(concordance, rel=1e-3)
    assert row["gm_ccc_low"] < row["gm_ccc"] < row["gm_ccc_high"] < 1


def test_every_measure_has_its_spread_and_its_interval_over_subjects(volumes, parts):
    found = run(volumes, parts, lambda x: x * 0.9, seed=2)
    row, held = line(found, "model"), found.data.isel(scan=slice(28, None)).sel(approach="model")
    for name in ("mse", "mae", "psnr", "ssim", "ms_ssim", "ssim_whole", "cosine"):
        values = held[name].values
        limits = stats.bootstrap_ratio(values, np.ones(12), held["subject"].values, seed=2)
        assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(limits)
        assert row[f"{name}_sd"] == pytest.approx(values.std(ddof=1))
    off = held["gm_ml"].values - held["gm_ml_original"].values
    limits = stats.bootstrap_ratio(off, np.ones(12), held["subject"].values, seed=2)
    assert (row["gm_bias_ml_low"], row["gm_bias_ml_high"]) == pytest.approx(limits[1:])


def test_down_sampling_stands_beside_with_as_many_values(volumes, parts):
    coarse = downsampling(volumes.mask, 27)
    found = run(volumes, parts, coarse.reconstruct, n_latent=27)
    assert line(found, "down-sampling")["mse"] == pytest.approx(line(found, "model")["mse"], rel=1e-4)
    assert found.settings["n_values_downsampling"] == coarse.n_values
    assert "It is the same as down-sampling to as many values (27 values" in found.answer
    assert any("keeps 27 averages of a scan, on 3 x 3 x 3 cells" in caveat for caveat in found.caveats)


def linear_features(volumes):
    mixing = np.random.default_rng(5).normal(size=(int(volumes.mask.sum()), 9))
    return lambda scans: scans @ mixing, mixing


def test_deep_features_are_measured_from_the_training_scans(volumes, parts):
    features, mixing = linear_features(volumes)
    found = run(volumes, parts, lambda x: x * 0.9 + 0.01, features=features, features_note="a matrix")
    train, held = (volumes.masked(rows).astype(float) for rows in (np.arange(24), np.arange(28, 40)))
    centre = (train @ mixing).mean(axis=0)
    unit = np.linalg.norm(train @ mixing - centre, axis=1).mean()
    f, g = held @ mixing, (held * 0.9 + 0.01) @ mixing
    row = line(found, "model")
    assert row["feature_distance"] == pytest.approx((np.linalg.norm(f - g, axis=1) / unit).mean(), rel=1e-3)
    a, b = f - centre, g - centre
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert row["feature_cosine"] == pytest.approx(cosine.mean(), rel=1e-3)
    at_mean = np.linalg.norm(f - centre, axis=1) / unit
    assert line(found, "mean image")["feature_distance"] == pytest.approx(at_mean.mean(), rel=1e-3)
    assert found.settings["features"] == "a matrix"
    assert any(caveat.startswith("Deep features come from a matrix.") for caveat in found.caveats)
    assert "distance of deep features" in found.answer
    plain = run(volumes, parts, lambda x: x, features_note="a matrix")
    assert not [name for name in plain.table if name.startswith("feature_")]
    assert plain.settings["features"] == ""


def test_features_that_cannot_be_used_are_refused(volumes, parts):
    features, _ = linear_features(volumes)
    with pytest.raises(SettingError, match="features_note"):
        run(volumes, parts, lambda x: x, features=features)
    for broken, said in (
        (lambda x: features(x)[:1], r"\(4, 9\) finite values are expected"),
        (lambda x: features(x) * np.nan, "finite values are expected"),
        (lambda x: np.ones((len(x), 3)), "tell scans apart"),
    ):
        with pytest.raises(SettingError, match=said):
            run(volumes, parts, lambda x: x, features=broken, features_note="a matrix")


@pytest.fixture
def regions(volumes, rng):
    shares = rng.uniform(size=(4, int(volumes.mask.sum()))) * (rng.random((4, int(volumes.mask.sum()))) > 0.6)
    return RegionWeights(sparse.csr_matrix(shares), np.arange(4) + 11, ["A_L", "A_R", "B", "C"], pd.DataFrame())


def test_regions_equal_their_definitions(volumes, parts, regions):
    found = run(volumes, parts, lambda x: x * 0.9 + 0.01 + 0.3 * (x - 0.5) ** 2, regions=regions)
    x, mean = volumes.masked(np.arange(28, 40)).astype(float), volumes.masked(np.arange(24)).astype(float).mean(axis=0)
    y = x * 0.9 + 0.01 + 0.3 * (x - 0.5) ** 2
    share = regions.matrix.toarray() / regions.matrix.toarray().sum(axis=1, keepdims=True)
    at = found.data.sel(approach="model")
    mse, deviation = ((x - y) ** 2) @ share.T, ((x - mean) ** 2) @ share.T
    np.testing.assert_allclose(at["region_mse"], mse.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(at["region_fvu"], mse.sum(axis=0) / deviation.sum(axis=0), rtol=1e-3)
    np.testing.assert_allclose(at["region_bias"], (y - x).mean(axis=0) @ share.T, rtol=1e-3, atol=1e-6)
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip((x @ share.T).T, (y @ share.T).T, strict=True)]
    np.testing.assert_allclose(at["region_correlation"], correlation, rtol=1e-3)
    limits = stats.bootstrap_ratio(mse[:, 2], deviation[:, 2], volumes.scans["subject_id"].iloc[28:], seed=0)
    found_limits = [float(at[f"region_fvu_{end}"][2]) for end in ("low", "high")]
    assert found_limits == pytest.approx(limits[1:], rel=1e-3)
    assert list(found.data["region_label"].values) == [11, 12, 13, 14]
    assert np.isnan(found.data["region_correlation"].sel(approach="mean image")).all()
    best = str(at["region"].values[int(at["region_fvu"].values.argmin())])
    assert f"Of 4 regions {best} is kept best (FVU" in found.answer


def test_regions_of_another_mask_are_refused(volumes, parts, regions):
    narrow = RegionWeights(regions.matrix[:, 1:], regions.labels, regions.names, regions.dropped)
    with pytest.raises(AtlasError, match="on the grid and mask of these volumes"):
        run(volumes, parts, lambda x: x, regions=narrow)


def test_a_site_that_is_clearly_worse_is_named(volumes, parts, monkeypatch):
    scans = volumes.scans.assign(site=np.where(np.arange(N) < 34, "north", "south"), group="AD")
    south = np.arange(N) >= 34

    def decode(volumes, *, worse):
        for row in range(N):
            x = volumes.masked([row])
            yield np.array([row]), x + (0.1 if worse and south[row] else 0.01) * np.sign(x - x.mean())

    def judged(worse):
        stream = decode(volumes, worse=worse)
        return reconstruction(volumes, stream, parts, scans, n_latent=2, seed=0, site="site", group="group")

    found = judged(worse=True)
    assert line(found, "model", "site south")["n_scans"] == line(found, "model", "site north")["n_scans"] == 6
    assert "Of site south (6 scans) the model keeps clearly less than of the others: FVU 0." in found.answer
    assert "site north" not in found.answer
    assert "clearly less" not in judged(worse=False).answer
    assert "There is no column 'site', so no rows by site." in run(volumes, parts, lambda x: x, site="site").caveats
    monkeypatch.setattr(reconstruction_words, "MIN_SUBJECTS_JUDGED", 7)
    assert "clearly less" not in judged(worse=True).answer


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


def test_each_cohort_stands_in_the_first_sentence_and_the_table(volumes, parts):
    found = run(volumes, parts, lambda x: x)
    first_sentence = found.answer.split(". It is")[0]
    assert "; in a (6 scans, FVU 0.000) better than the mean image and better than PCA" in first_sentence
    assert line(found, "model", "dataset b")["n_scans"] == 6


def test_a_cohort_of_few_held_out_scans_gets_no_verdict(volumes, parts, monkeypatch):
    monkeypatch.setattr(reconstruction_words, "MIN_SUBJECTS_JUDGED", 7)
    said = run(volumes, parts, lambda x: x).answer
    assert "; too few held-out scans to say in a (6), b (6). It is" in said
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
    x, _, z = reconstruction_measures.planes(volumes.mask)
    row = volumes.rows([str(found.data["case_scan"].values[0])])[0]
    volume = np.where(volumes.mask, volumes.data[row].astype(np.float32), 0)
    np.testing.assert_allclose(found.data["original_sagittal"].values[0], volume[x])
    np.testing.assert_allclose(found.data["model_axial"].values[0], volume[:, :, z] * 0.9, rtol=1e-5)
    np.testing.assert_allclose(found.data["error_axial"].values[0], volume[:, :, z] * -0.1, atol=1e-6)
    np.testing.assert_allclose(found.data["case_mse"], mse)
    cases = found.data.sel(scan=found.data["case_scan"].values)
    np.testing.assert_allclose(cases["case_ssim"], cases["ssim"].sel(approach="model"))
    at_mean = cases["mse"].sel(approach="mean image").values
    np.testing.assert_allclose(cases["case_fvu"], mse / at_mean)


def test_beyond_two_hundred_held_out_scans_the_cases_are_drawn(volumes, parts, monkeypatch):
    for module in (reconstruction_measures, reconstruction_words):
        monkeypatch.setattr(module, "MAX_CANDIDATES", 5)
    found = run(volumes, parts, lambda x: x * 0.9)
    assert "Best, median and worst are chosen among 5 of the 12 held-out scans, drawn by the seed." in found.caveats
    assert set(found.data["case_scan"].values) <= set(volumes.scans.index[28:])


def test_no_chunk_is_kept(volumes, parts):
    alive = []

    def stream():
        for rows, drawn in chunks(volumes, lambda x: x * 0.9, size=4):
            assert sum(reference() is not None for reference in alive) <= 2
            alive.append(weakref.ref(drawn))
            yield rows, drawn

    reconstruction(volumes, stream(), parts, volumes.scans, n_latent=2, seed=0)
    assert len(alive) == 10


def test_settings_and_notes_reach_the_reader(volumes, parts):
    found = run(volumes, parts, lambda x: x, n_latent=64, model_note="PCA; the network added nothing.", data_range=2.0)
    assert found.settings["n_components_pca"] == 23
    assert "PCA; the network added nothing." in found.caveats
    assert any("PCA has 23 components, not 64" in line for line in found.caveats)
    assert "the largest PCA that the training scans allow (23 components" in found.answer
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
    assert not [name for name in [*found.table, *found.data] if name.startswith("gm_")]
    assert "grey matter" not in found.answer
    assert "total grey matter is off by 10.0 %" in run(volumes, parts, lambda x: x * 0.9).answer
