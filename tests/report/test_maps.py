import base64
import gzip

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.finding import Finding
from nilatent.plots import style
from nilatent.report import maps
from nilatent.volumes import Grid

SHAPE, SPACING = (15, 17, 13), 1.5


@pytest.fixture
def image(rng: np.random.Generator) -> nib.Nifti1Image:
    """Both signs, with a part where there is nothing, on a grid of half the spacing that a page holds."""
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = (-10.0, 4.0, 7.0)
    values = rng.normal(size=SHAPE).astype(np.float32)
    values[:4] = 0.0
    values[4] = np.nan
    return Grid(SHAPE, affine).to_image(values)


def finding(name: str, shown: dict[str, nib.Nifti1Image]) -> Finding:
    texts = {"question": "What?", "answer": "This.", "settings": {}, "caveats": ()}
    table = pd.DataFrame({"name": ["a"]})
    return Finding(name=name, table=table, data=xr.Dataset(), maps=shown, n_scans=3, n_subjects=3, **texts)


def test_header_and_codes_are_the_values_at_every_second_voxel(image: nib.Nifti1Image) -> None:
    shelf = maps.shelf(maps.maps_of(finding("f", {"x": image}), {"x": ("metres", None)}))
    assert shelf is not None
    one = shelf.settings["maps"]["f/x"]
    codes = gzip.decompress(base64.b64decode(shelf.blobs["f/x"]))
    saved = nib.Nifti1Image.from_bytes(base64.b64decode(one["header"]) + codes)
    expected = np.nan_to_num(np.asarray(image.dataobj))[::2, ::2, ::2]
    np.testing.assert_allclose(saved.get_fdata(), expected, atol=np.abs(expected).max() / 60_000)
    assert np.array_equal(saved.get_fdata() == 0, expected == 0)
    corner = (image.affine @ [2, 4, 6, 1])[:3]
    np.testing.assert_allclose((saved.affine @ [1, 2, 3, 1])[:3], corner, atol=1e-4)
    np.testing.assert_allclose(np.reshape(one["to_mm"], (3, 4)) @ [1, 2, 3, 1], corner)
    np.testing.assert_allclose(np.reshape(one["to_voxel"], (3, 4)) @ [*corner, 1], [1, 2, 3], atol=1e-9)
    largest = np.nanmax(np.abs(np.asarray(image.dataobj)))
    assert (one["low"], one["high"], one["colours"]) == (-largest, largest, style.SIGNED_MAP)


def test_maps_with_a_figure_come_first_and_those_that_do_not_fit_are_listed(image: nib.Nifti1Image) -> None:
    both = maps.maps_of(finding("lrcp", {"score": image, "a": image, "riddle": image}), {"a": ("|a|", (0.0, 1.0))})
    assert [(one.name, one.drawn) for one in both] == [("lrcp/a", True), ("lrcp/score", False), ("lrcp/riddle", False)]
    further = maps.maps_of(finding("sensitivity", {"effect": image, "effect_age": image}), {"effect": (title, None)})
    every = maps.shelf((*both, *further))
    assert every is not None
    # What nobody could read the colours of is a file, whatever room there is.
    assert list(every.blobs) == ["lrcp/a", "sensitivity/effect", "lrcp/score", "sensitivity/effect_age"]
    assert every.absent == ("findings/lrcp/riddle.nii.gz",)
    assert every.settings["maps"]["sensitivity/effect"]["label"] == "effect of sensitivity"
    assert every.settings["maps"]["sensitivity/effect_age"]["label"].startswith("effect of age per unit")
    assert (every.settings["maps"]["lrcp/a"]["low"], every.settings["maps"]["lrcp/a"]["high"]) == (0.0, 1.0)
    some = maps.shelf((*both, *further), budget_bytes=2 * len(every.blobs["lrcp/a"]))
    assert some is not None
    assert list(some.blobs) == ["lrcp/a", "sensitivity/effect"]
    assert len(some.absent) == 3
    assert some.sentence.startswith("Maps: 2 of 5 are embedded, 0.0 of at most 3 MB")


def title(found: Finding) -> str:
    return f"effect of {found.name}"


def test_an_empty_map_is_a_file(image: nib.Nifti1Image) -> None:
    empty = nib.Nifti1Image(np.zeros(SHAPE, np.float32), image.affine)
    assert maps.shelf(maps.maps_of(finding("f", {"x": empty}), {"x": ("metres", None)})) is None


def test_a_threshold_keeps_what_lies_on_it(image: nib.Nifti1Image) -> None:
    values = np.zeros(SHAPE, np.float32)
    values[0, 0, 0], values[2, 0, 0] = -np.log10(0.05), 3.7
    shown = nib.Nifti1Image(values, image.affine)
    shelf = maps.shelf(maps.maps_of(finding("lrcp", {"minus_log10_p": shown}), {"minus_log10_p": ("p", (0.0, 3.0))}))
    assert shelf is not None
    one = shelf.settings["maps"]["lrcp/minus_log10_p"]
    codes = np.frombuffer(gzip.decompress(base64.b64decode(shelf.blobs["lrcp/minus_log10_p"])), "<i2")
    assert one["meaning"] == "p = 0.05, family-wise"
    assert codes[0] * one["slope"] >= one["threshold"] > -np.log10(0.051)
