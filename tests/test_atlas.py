import itertools
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent.atlas import Atlas, load_atlas, region_map, region_weights
from nilatent.errors import AtlasError
from nilatent.volumes import Grid, gm_mask

# An odd grid whose voxel edges fall on no edge of the atlas.
ODD = Grid((15, 17, 13), np.array([[3.0, 0, 0, -20.3], [0, 3, 0, -24.7], [0, 0, 3, -17.9], [0, 0, 0, 1]]))
AAL_LINES = "1 Precentral_L 2001\n2 Precentral_R 2002\n3 Frontal_Mid_Orb_L 2211\n5 Frontal_Mid_Orb_L 2212\n9 V 9001\n"


def blocks_image(path, labels=(1, 2, 3, 5), spacing=2.0, dtype=np.int16):
    """Cuboids of labels, mirrored in x = 0 when there are four."""
    data = np.zeros((22, 26, 20), dtype=dtype)
    places = [(slice(2, 11), slice(2, 12)), (slice(11, 20), slice(2, 12)), (slice(2, 11), slice(13, 24))]
    places += [(slice(11, 20), slice(13, 24))]
    for label, place in zip(labels, places, strict=False):
        data[(*place, slice(3, 17))] = label
    affine = np.diag([spacing, spacing, spacing, 1])
    affine[:3, 3] = -spacing * (np.array(data.shape) - 1) / 2
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def blocks(tmp_path):
    path = blocks_image(tmp_path / "blocks.nii.gz")
    (tmp_path / "blocks.txt").write_text(AAL_LINES)
    return load_atlas(path)


def centroid(weights, name, grid, mask):
    row = weights.matrix[weights.names.index(name)]
    return nib.affines.apply_affine(grid.affine, (row @ np.argwhere(mask) / row.sum()).ravel())


# Loading


def test_aal2_has_120_labels_with_one_name_each():
    atlas = load_atlas("AAL2")
    assert atlas.table.shape == (120, 1)
    assert atlas.table["name"].is_unique
    assert atlas.table.at[2001, "name"] == "Precentral_L"
    assert set(np.unique(np.asarray(atlas.image.dataobj))) == {0, *atlas.table.index}


def test_names_beside_the_image_are_used_and_repeated_ones_get_their_label(blocks):
    assert blocks.table["name"].to_dict() == {
        1: "Precentral_L",
        2: "Precentral_R",
        3: "Frontal_Mid_Orb_L_3",
        5: "Frontal_Mid_Orb_L_5",
    }
    assert blocks.name == "blocks"


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (".tsv", "index\tname\tcode\n1\tA b\t7\n2\tC\t8\n3\tD\t9\n"),
        (".csv", '\ufeffname,label\n"A b",1.0\nC,2\nD,3\n'),
        (".nii.txt", "# labels\n0 Unknown 0 0 0 0\n1 Ab 9 9 9 0\n2 C 1 1 1 0\n3 D 2 2 2 0\n"),
        (".txt", "1 Area 44\n2 Area 45\n3 Area hOc1 (V1)\n"),
        (".txt", "1 Area 44\n2 Area 45\n3 Area 6\n"),
    ],
)
def test_tables_of_several_forms_name_the_labels_whole(tmp_path, ending, text):
    path = blocks_image(tmp_path / "x.nii")
    (tmp_path / f"x{ending}").write_text(text, encoding="utf-8")
    names = load_atlas(path).table["name"].tolist()
    assert names[3] == "label_5"
    expected = {".txt": ["Area 44", "Area 45"], ".nii.txt": ["Ab", "C"]}.get(ending, ["A b", "C"])
    assert names[:2] == expected


def test_a_table_given_wins_over_the_one_beside(tmp_path, blocks):
    (tmp_path / "other.tsv").write_text("label\tname\n1\tX\n")
    other = load_atlas(tmp_path / "blocks.nii.gz", table=tmp_path / "other.tsv")
    assert other.table["name"].tolist() == ["X", "label_2", "label_3", "label_5"]
    assert other.sha256 != blocks.sha256


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label\tname\n1\tA\n1\tB\n", "two names"),
        ("label\tname\nA\t1\n", "label 'A'"),
        ("label\tname\n1.5\tA\n", "label '1.5'"),
        ("label\tname\n1\tA\tB\n", "cells"),
        ("value2\tname\n1\tA\n", "one called label"),
        ("label\tname\n2001\tA\n", "none in common"),
        ("1 A\n2 A\n3 A_1\n", "'A_1'"),
        ("", "no line"),
    ],
)
def test_a_table_that_would_name_regions_wrongly_is_refused(tmp_path, text, words):
    path = blocks_image(tmp_path / "x.nii")
    (tmp_path / "x.txt").write_text(text)
    with pytest.raises(AtlasError, match=words):
        load_atlas(path)


def test_an_image_that_is_no_atlas_is_refused(tmp_path):
    table = tmp_path / "t.txt"
    table.write_text("1 A\n")
    for name, data in [
        ("half", np.full((3, 3, 3), 0.5)),
        ("four", np.ones((3, 3, 3, 2))),
        ("nan", np.full((3,) * 3, np.nan)),
    ]:
        nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), tmp_path / f"{name}.nii")
        with pytest.raises(AtlasError, match=r"3D image of integer labels"):
            load_atlas(tmp_path / f"{name}.nii", table=table)
    (tmp_path / "broken.nii.gz").write_bytes((tmp_path / "four.nii").read_bytes()[:100])
    with pytest.raises(AtlasError, match="cannot be read"):
        load_atlas(tmp_path / "broken.nii.gz", table=table)
    for spec, chosen, words in [
        ("aal9", None, "no atlas 'aal9'"),
        (tmp_path / "half.nii", None, "no table"),
        (tmp_path / "half.nii", tmp_path / "gone.tsv", "no table"),
    ]:
        with pytest.raises(AtlasError, match=words):
            load_atlas(spec, table=chosen)


def test_the_hash_of_an_atlas_sees_image_and_names(tmp_path, blocks):
    (tmp_path / "blocks.txt").write_text(AAL_LINES.replace("Precentral_L", "Other"))
    renamed = load_atlas(tmp_path / "blocks.nii.gz")
    blocks_image(tmp_path / "blocks.nii.gz", labels=(2, 1, 3, 5))
    assert len({blocks.sha256, renamed.sha256, load_atlas(tmp_path / "blocks.nii.gz").sha256}) == 3


# Weights


def overlap(edges, low, high):
    return max(0.0, min(edges[1], high) - max(edges[0], low))


def test_weights_are_the_overlap_of_every_voxel_with_every_region(blocks, rng):
    mask = rng.random(ODD.shape) < 0.7
    weights = region_weights(blocks, ODD, mask)
    naive = np.zeros((4, *ODD.shape))
    left, right, back, front, height = (-18, 0), (0, 18), (-22, -2), (0, 22), (-14, 14)
    regions = [(left, back, height), (right, back, height), (left, front, height), (right, front, height)]
    for voxel in np.ndindex(ODD.shape):
        centre = nib.affines.apply_affine(ODD.affine, voxel)
        edges = [(c - 1.5, c + 1.5) for c in centre]
        for region, sides in enumerate(regions):
            naive[region][voxel] = np.prod([overlap(edge, *side) for edge, side in zip(edges, sides, strict=True)]) / 27
    found = weights.matrix.toarray()
    exact = naive[:, mask]
    assert np.abs(found - exact).max() <= 0.3
    np.testing.assert_allclose(found.sum(axis=1), exact.sum(axis=1), rtol=0.02)
    assert weights.labels.tolist() == [1, 2, 3, 5]
    np.testing.assert_allclose(weights.n_voxels, found.sum(axis=1))


def test_weights_are_a_naive_count_of_sampled_points(blocks, rng):
    mask = rng.random(ODD.shape) < 0.2
    data, to_atlas = np.asarray(blocks.image.dataobj), np.linalg.inv(blocks.image.affine)
    found = region_weights(blocks, ODD, mask).matrix.toarray()
    offsets = [(np.array(step) + 0.5) / 4 - 0.5 for step in itertools.product(range(4), repeat=3)]
    for column, voxel in enumerate(np.argwhere(mask)):
        points = nib.affines.apply_affine(to_atlas @ ODD.affine, voxel + np.array(offsets))
        index = np.round(points).astype(int)
        inside = ((index >= 0) & (index < data.shape)).all(axis=1)
        labels = data[tuple(index[inside].T)]
        np.testing.assert_allclose(found[:, column], [(labels == label).sum() / 64 for label in (1, 2, 3, 5)])


def test_fractions_never_exceed_one_and_add_up_to_the_regions(blocks):
    mask = np.ones(ODD.shape, dtype=bool)
    weights = region_weights(blocks, ODD, mask)
    assert weights.matrix.min() >= 0
    assert np.asarray(weights.matrix.sum(axis=0)).max() <= 1 + 1e-12
    volumes = [18 * 20 * 28, 18 * 20 * 28, 18 * 22 * 28, 18 * 22 * 28]
    np.testing.assert_allclose(weights.n_voxels * 27, volumes, rtol=0.03)


@pytest.mark.parametrize("spacing", [2.0, 4.0])
@pytest.mark.parametrize("atlas_spacing", [1.0, 2.0])
def test_a_symmetric_atlas_stays_symmetric_on_a_symmetric_grid(tmp_path, spacing, atlas_spacing):
    """Rounding points that fall between two voxels of the atlas would move every region to one side."""
    data = np.zeros((23, 23, 23), dtype=np.int16)
    data[2:11], data[12:21] = 1, 2
    affine = np.diag([atlas_spacing, atlas_spacing, atlas_spacing, 1])
    affine[:3, 3] = -11 * atlas_spacing
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "x.nii")
    (tmp_path / "x.txt").write_text("1 L\n2 R\n")
    sides = (16, 12, 12)
    matrix = np.diag([spacing, spacing, spacing, 1])
    matrix[:3, 3] = -spacing * (np.array(sides) - 1) / 2
    grid = Grid(sides, matrix)
    mask = np.ones(sides, dtype=bool)
    left, right = region_weights(load_atlas(tmp_path / "x.nii"), grid, mask).matrix.toarray().reshape(2, *sides)
    np.testing.assert_array_equal(left, right[::-1])
    assert left.sum() > 0


def test_small_regions_are_dropped_and_listed(blocks):
    mask = np.zeros(ODD.shape, dtype=bool)
    mask[:6] = True
    weights = region_weights(blocks, ODD, mask)
    assert weights.names == ["Precentral_L", "Frontal_Mid_Orb_L_3"]
    assert weights.dropped[["label", "name"]].to_numpy().tolist() == [[2, "Precentral_R"], [5, "Frontal_Mid_Orb_L_5"]]
    assert (weights.dropped["n_voxels"] < 8).all()
    everything = region_weights(blocks, ODD, mask, min_voxels=0)
    assert len(everything.names) == 4
    with pytest.raises(AtlasError, match="covers 9999 voxels"):
        region_weights(blocks, ODD, mask, min_voxels=9999)


def test_weights_refuse_a_mask_of_another_grid_and_a_label_without_a_name(blocks):
    with pytest.raises(AtlasError, match="mask has shape"):
        region_weights(blocks, ODD, np.ones((17, 15, 13), dtype=bool))
    short = Atlas(blocks.image, blocks.table.drop(index=2), "short", "")
    with pytest.raises(AtlasError, match=r"lacks label \[2\]"):
        region_weights(short, ODD, np.ones(ODD.shape, dtype=bool))


def test_a_map_of_regions_gives_their_values_back(blocks, rng):
    mask = rng.random(ODD.shape) < 0.8
    weights = region_weights(blocks, ODD, mask)
    values = np.array([1.5, -2, 3, 4])
    image = region_map(weights, values, ODD, mask)
    painted = image.get_fdata()
    assert (painted[~mask] == 0).all()
    dense = weights.matrix.toarray()
    for column, voxel in enumerate(np.argwhere(mask)):
        share = dense[:, column]
        assert painted[tuple(voxel)] == (values[share.argmax()] if share.max() > 0 else 0)
    for region, value in enumerate(values):
        whole = dense[region] > 0.999
        assert whole.any()
        assert set(painted[mask][whole]) == {value}


@pytest.mark.parametrize("values", [np.ones(3), np.ones(5), np.ones((4, 1))])
def test_a_map_refuses_values_that_are_not_one_per_region(blocks, values):
    mask = np.ones(ODD.shape, dtype=bool)
    weights = region_weights(blocks, ODD, mask)
    with pytest.raises(AtlasError, match="one value per region"):
        region_map(weights, values, ODD, mask)
    with pytest.raises(AtlasError, match="grid and mask"):
        region_map(weights, np.ones(4), ODD, ~mask)


def test_aal2_lies_on_the_brain_with_left_at_negative_x():
    grid = Grid.mni(4)
    mask = gm_mask(grid)
    atlas = load_atlas()
    weights = region_weights(atlas, grid, mask)
    x, y, z = centroid(weights, "Hippocampus_L", grid, mask)
    assert (x, y, z) == pytest.approx((-26, -21, -10), abs=2)
    assert centroid(weights, "Hippocampus_R", grid, mask)[0] > 20
    assert all(centroid(weights, name, grid, mask)[0] < 0 for name in weights.names if name.endswith("_L"))
    assert all(centroid(weights, name, grid, mask)[0] > 0 for name in weights.names if name.endswith("_R"))
    assert {"Amygdala_L", "Amygdala_R"} <= set(weights.names)
    assert len(weights.names) + len(weights.dropped) == 120
    assert np.asarray(weights.matrix.sum(axis=0)).max() <= 1 + 1e-9
    labelled = (np.asarray(atlas.image.dataobj) > 0).sum() * 8
    assert 0.75 < weights.n_voxels.sum() * 64 / labelled < 1


@pytest.mark.real
def test_aal1_from_its_folder_has_the_published_centroids():
    if "NILATENT_REAL_DATA" not in os.environ:
        pytest.skip("NILATENT_REAL_DATA names no folder")
    atlas = load_atlas(Path(os.environ["NILATENT_REAL_DATA"]) / "atlas_aal116" / "aal.nii.gz")
    assert atlas.table.index.tolist() == list(range(1, 117))
    assert pd.Series(atlas.table["name"]).is_unique
    grid = Grid.mni(2)
    everywhere = np.ones(grid.shape, dtype=bool)
    weights = region_weights(atlas, grid, everywhere)
    for name, place in [
        ("Precentral_L", (-40, -6, 51)),
        ("Hippocampus_L", (-26, -21, -10)),
        ("Thalamus_R", (12, -18, 8)),
    ]:
        assert centroid(weights, name, grid, everywhere) == pytest.approx(place, abs=1)
    voxels = np.asarray(atlas.image.dataobj) > 0
    assert weights.n_voxels.sum() * 8 == pytest.approx(voxels.sum(), rel=1e-3)
