import numpy as np
import pandas as pd
import pytest

from nilatent.preprocess import quality


def test_correlation_is_pearson_inside_the_mask(rng):
    a, b = rng.random((2, 15, 17, 13)).astype(np.float32)
    inside = rng.random((15, 17, 13)) > 0.5
    assert quality.correlation(a, b, inside) == pytest.approx(np.corrcoef(a[inside], b[inside])[0, 1], abs=1e-5)
    assert quality.correlation(a, np.ones_like(b), inside) == 0


def test_dice_by_counting():
    one, two = np.zeros((2, 15, 17, 13), dtype=bool)
    one[:4], two[2:8] = True, True
    assert quality.dice(one, two) == pytest.approx(2 * 2 / (4 + 6))
    assert quality.dice(one & False, two & False) == 1


def test_outside_fraction_by_counting(rng):
    inside = np.zeros((15, 17, 13), dtype=bool)
    inside[:5] = True
    values = np.ones(inside.shape, dtype=np.float32)
    assert quality.outside_fraction(values, inside) == pytest.approx(10 / 15)


def test_tissue_contrast_recovers_the_planted_means(rng):
    gm = (rng.random((15, 17, 13)) > 0.5).astype(np.float32)
    brain = (60 * gm + 80 * (1 - gm)).astype(np.float32)
    contrast, white = quality.tissue_contrast(brain, gm, 1 - gm)
    assert (contrast, white) == pytest.approx((0.25, 80))


def test_robust_z_is_standard_on_normal_values_and_unmoved_by_outliers(rng):
    values = rng.normal(5, 2, 4001)
    z = quality.robust_z(np.append(values, [1e6] * 20))[:4001]
    np.testing.assert_allclose(z, (values - 5) / 2, atol=0.25)


def cohort(rng, n=20):
    table = pd.DataFrame({"gm_ml": rng.normal(700, 30, n), "noise_ratio": rng.normal(0.02, 0.002, n)})
    table.index = [f"sub-{i:02d}" for i in range(n)]
    return table, pd.Series("one", index=table.index)


def test_outliers_are_named_on_the_bad_side_only(rng):
    table, groups = cohort(rng)
    table.loc["sub-03", "gm_ml"] = 100
    table.loc["sub-04", "noise_ratio"] = 0.5
    table.loc["sub-05", "noise_ratio"] = -0.5
    flags = quality.outlier_flags(table, groups)
    assert flags["sub-03"] == "gm_ml"
    assert flags["sub-04"] == "noise_ratio"
    assert "noise_ratio" not in flags["sub-05"]


def test_a_data_set_is_judged_by_itself(rng):
    table, groups = cohort(rng, 40)
    groups.iloc[30:] = "two"
    table.loc[groups == "two", "gm_ml"] += 5000
    assert not quality.outlier_flags(table, groups).str.contains("gm_ml").any()
    table.loc[:, "gm_ml"] = table["gm_ml"].where(groups == "one", 700.0)
    groups.iloc[35:] = "few"
    assert (quality.outlier_flags(table, groups)[groups == "few"] == "").all()
