import nibabel as nib
import numpy as np
import pytest

from nilatent.preprocess import derivative
from nilatent.preprocess.derivative import Place, is_done, read_record, write_scan
from nilatent.provenance import read_json


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path, "sub-01", "ses-02", 1.5, "gm", "modulatedSmooth8")


@pytest.fixture
def image(rng):
    return nib.Nifti1Image(rng.normal(size=(5, 7, 6)).astype(np.float32), np.diag([1.5, 1.5, 1.5, 1.0]))


def write(place, image, *, key="k"):
    text = place.transform(f"from-T1w_to-{derivative.SPACE}_mode-image_xfm.txt")
    images = {place.modelled: (image, {"Resolution": "fine"}), place.map("t1w"): (image, {"SkullStripped": True})}
    write_scan(
        place, images, {text: "transform\n", place.tissue_table: derivative.TISSUE_TABLE}, key=key, record={"a": 1}
    )
    return text


def test_entities_stand_in_the_order_of_bids(place, tmp_path):
    folder = tmp_path / "sub-01" / "ses-02" / "anat"
    stem = "sub-01_ses-02_space-MNI152NLin2009aSym_res-1p5"
    assert place.modelled == folder / f"{stem}_label-GM_desc-modulatedSmooth8_probseg.nii.gz"
    assert place.map("t1w") == folder / f"{stem}_desc-preproc_T1w.nii.gz"
    assert place.side_car.name == f"{stem}_label-GM_desc-modulatedSmooth8_probseg.json"
    assert place.tissues.name == "sub-01_ses-02_space-orig_dseg.nii.gz"
    assert place.tissue_table.name == "sub-01_ses-02_space-orig_dseg.tsv"


def test_tissue_names_are_those_of_the_labels(place, image):
    write(place, image)
    rows = [row.split("\t") for row in place.tissue_table.read_text().splitlines()]
    assert rows[0] == ["index", "name", "abbreviation"]
    assert [(row[0], row[2]) for row in rows[1:]] == [("0", "BG"), ("1", "GM"), ("2", "WM"), ("3", "CSF")]


def test_every_image_has_a_side_car_and_millimetres(place, image):
    write(place, image)
    assert read_json(place.side_car)["Resolution"] == "fine"
    assert read_record(place)["a"] == 1
    other = read_json(place.map("t1w").with_name(place.map("t1w").name.replace(".nii.gz", ".json")))
    assert other == {"SkullStripped": True}
    for name in ("gm", "t1w"):
        assert nib.load(place.map(name)).header.get_xyzt_units()[0] == "mm"


def test_done_means_all_files_unchanged_under_this_key(place, image):
    assert not is_done(place, "k")
    text = write(place, image)
    assert is_done(place, "k")
    assert not is_done(place, "other")
    assert not is_done(place, "")
    for path, damage in ((text, "changed"), (place.tissue_table, "")):
        before = path.read_text()
        path.write_text(damage)
        assert not is_done(place, "k")
        path.write_text(before)
        assert is_done(place, "k")
    place.map("t1w").unlink()
    assert not is_done(place, "k")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nilatent": {}}', '{"nilatent": {"Key": "k"}}', '{"nilatent": 3}'])
def test_a_damaged_side_car_is_not_done(place, image, text):
    write(place, image)
    place.side_car.write_text(text)
    assert not is_done(place, "k")


def test_a_scan_under_way_is_not_done(place, image, monkeypatch):
    """The side-car of an older run is gone before the first file is touched."""
    write(place, image)

    def die(*_):
        raise OSError("disk full")

    monkeypatch.setattr(derivative.nib, "save", die)
    with pytest.raises(OSError, match="disk full"):
        write(place, image)
    assert not place.side_car.exists()
