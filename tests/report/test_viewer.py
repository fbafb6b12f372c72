import base64
import gzip

import nibabel as nib
import numpy as np
import pytest

from nilatent.atlas import load_atlas
from nilatent.report import viewer
from nilatent.viewed import Viewed
from nilatent.volumes import Grid


def made(rng: np.random.Generator, n_scans: int = 3, *, n_all: int = 9) -> Viewed:
    shape = (n_scans, 5, 7, 3)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (-8.0, 4.0, 1.0)
    codes = [rng.integers(0, 256, shape).astype(np.uint8) for _ in range(2)]
    unseen = np.arange(n_scans) < 2
    scans = tuple(f"sub-{i}" for i in range(n_scans))
    return Viewed(scans, np.arange(n_scans) < 1, unseen, *codes, affine, 0.2, 0.9, 0.1, n_all)


def test_header_and_codes_make_the_nifti_that_nibabel_would_read(rng: np.random.Generator) -> None:
    viewed = made(rng)
    shown = viewer.scan_viewer(viewed, target="gm")
    codes = gzip.decompress(base64.b64decode(shown.blobs[1]))
    half = len(codes) // 2
    for part, stored in ((codes[:half], viewed.original), (codes[half:], viewed.model)):
        image = nib.Nifti1Image.from_bytes(base64.b64decode(shown.settings["header"]) + part)
        np.testing.assert_allclose(image.get_fdata(), 0.2 + (0.9 - 0.2) * stored[1] / 255, atol=1e-6)
        np.testing.assert_allclose(image.affine, viewed.affine)
    error = viewed.model[1].astype(np.float32) - viewed.original[1]
    bytes_of = base64.b64decode(shown.settings["error_header"]) + error.tobytes(order="F")
    np.testing.assert_array_equal(nib.Nifti1Image.from_bytes(bytes_of).get_fdata(), error)


def test_words_say_how_many_which_and_where_the_others_are(rng: np.random.Generator) -> None:
    words = viewer.words(made(rng))
    assert words.startswith("Volumes of 3 of 9 scans are embedded at 3 mm, 0.0 MB: 1 named in this report")
    assert "then 1 of subjects that the model has not seen, then 1 of subjects that it has seen" in words
    assert words.endswith("For all: nilatent explore.")
    assert viewer.words(made(rng, n_all=3)).startswith("Volumes of 3 of 3 scans are embedded at 3 mm, 0.0 MB.")


def test_regions_lie_where_the_atlas_has_them() -> None:
    atlas = load_atlas("aal2")
    names = {str(name): int(label) for label, name in atlas.table["name"].items()}
    found = viewer.region_map(names, {"spec": "aal2", "table": ""})
    assert found is not None
    grid = Grid.mni(viewer.REGIONS_MM)
    flat = np.frombuffer(gzip.decompress(base64.b64decode(found.labels)), dtype="<u2")
    labels = flat.reshape(grid.shape, order="F")
    image, to_mm = np.asarray(atlas.image.dataobj), np.asarray(atlas.image.affine)
    for name in ("Hippocampus_L", "Occipital_Mid_R"):
        ours, theirs = (np.argwhere(array == names[name]).mean(axis=0) for array in (labels, image))
        np.testing.assert_allclose((grid.affine @ [*ours, 1])[:3], (to_mm @ [*theirs, 1])[:3], atol=1.0)


def test_a_report_is_complete_where_the_atlas_is_not_to_be_had() -> None:
    assert viewer.region_map({"x": 1}, {"spec": "/nowhere/atlas.nii.gz"}) is None


@pytest.mark.parametrize("name", ["gray", "berlin"])
def test_colours_are_steps_of_bytes_in_order(name: str) -> None:
    found = viewer.colours(name)
    assert found["I"][0] == 0
    assert found["I"][-1] == 255
    assert all(0 <= value <= 255 for channel in "RGBA" for value in found[channel])
    assert len({len(found[channel]) for channel in "RGBAI"}) == 1
