"""The quality page, built from a finding and a few mosaics made by hand."""

import base64
import io
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.report.test_browser import CHROMIUM, OPTIONS

from nilatent.cohort import Cohort
from nilatent.config import read_config
from nilatent.finding import read_finding, write_finding
from nilatent.preprocess import mosaic
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.quality import outlier_flags, quality
from nilatent.preprocess.recipe import prepare
from nilatent.provenance import hash_file
from nilatent.report import quality as quality_page
from nilatent.river import River
from nilatent.volumes import Grid, template

Make = Callable[..., Path]


def _prepared(folder: Path, rng: np.random.Generator, label: str = "one", *, n_scans: int = 10) -> Path:
    """A prepared folder of ten scans with mosaics, but for the sixth; `label` names a data set and a dropped scan."""
    ids = [f"sub-{number:02d}" for number in range(n_scans)]
    scans = pd.DataFrame({"subject_id": ids, "dataset": label, "recipe": "t1"}, index=ids)
    scans["path"] = [str(folder / name / "anat" / f"{name}_space-MNI_label-GM_probseg.nii.gz") for name in ids]
    scans["homogeneity"] = np.round(0.7 + 0.002 * rng.permutation(n_scans), 4)
    scans["mask_dice"] = [0.95, 0.81, *np.linspace(0.951, 0.96, n_scans - 2)]
    scans["bias_range"] = np.linspace(1.2, 1.3, n_scans)
    scans["noise_ratio"] = [np.nan, *np.linspace(0.02, 0.03, n_scans - 1)]
    flags = outlier_flags(scans[["homogeneity", "mask_dice", "noise_ratio"]], scans["dataset"])
    scans["quality_flags"] = flags.mask(flags == "", np.nan)
    for number, path in enumerate(scans["path"]):
        if number != 5:
            mosaic.write_mosaic(_slices(), mosaic.place(Path(path)))
    row = (f"sub-{label}", "/home/someone/x.nii.gz", "prepare", "extent", f"/home/someone/x.nii.gz: {label}")
    dropped = pd.DataFrame([row], columns=["scan_id", "path", "stage", "rule", "reason"])
    write_finding(quality(Cohort(scans, dropped), folder=folder), folder / "quality")
    return folder


@pytest.fixture
def make_prepared(tmp_path: Path, rng: np.random.Generator) -> Make:
    """A prepared folder that a test may change."""
    return partial(_prepared, tmp_path, rng)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of an unchanged folder, written once: its pictures take seconds."""
    folder = _prepared(tmp_path_factory.mktemp("quality"), np.random.default_rng(0))
    return quality_page.build(folder).read_text(encoding="utf-8")


def _slices():
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = (-88, -124, -76)
    data = np.zeros((23, 28, 23), dtype=np.float32)
    data[8:15, 8:20, 6:16] = 100
    return mosaic.scan_mosaic(data, affine, (data > 50).astype(np.uint8), to_scan=lambda points: points)


def opened(path: Path, profile: Path, *, address: str) -> tuple[str, list[str]]:
    """The document after its script, and what that said on the console."""
    command = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", path.as_uri() + address]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return done.stdout.decode(), said


def shown_scans(html: str) -> list[str]:
    return re.findall(r'<li class="row [^>]*data-scan="([^"]+)"', html)


def test_every_scan_has_a_row_and_those_to_look_at_come_first(html: str) -> None:
    scans = shown_scans(html)
    assert sorted(scans) == [f"sub-{number:02d}" for number in range(10)]
    assert scans[0] == "sub-01"
    assert '<li class="row d0 flagged" tabindex="-1" data-scan="sub-01"' in html
    assert html.count('<span class="badge bad">mask Dice</span>') == 1
    assert "9 of 10" not in html
    assert "10 of 11 scans were prepared" in html


def test_rows_go_from_the_worst_to_the_best_and_what_cannot_be_judged_is_last(make_prepared: Make) -> None:
    folder = make_prepared()
    found = read_finding(folder / "quality")
    table = found.table.set_index("scan_id")
    table.loc["sub-04", "farthest_z"] = np.nan
    table.loc["sub-07", "flags"] = "bias_range"
    write_finding(replace(found, table=table.reset_index()), folder / "quality")
    flagged = sorted(("sub-01", "sub-07"), key=lambda scan: -table.at[scan, "farthest_z"])
    calm = sorted(set(table.index) - {*flagged, "sub-04"}, key=lambda scan: -table.at[scan, "farthest_z"])
    html = quality_page.build(folder).read_text(encoding="utf-8")
    assert shown_scans(html) == [*flagged, *calm, "sub-04"]


def test_a_measure_is_sorted_from_its_bad_end(html: str) -> None:
    order = dict(re.findall(r'<option value="(\w+)" data-number="\d+" data-order="(up|down)">', html))
    assert order == {"homogeneity": "up", "mask_dice": "up", "noise_ratio": "up", "bias_range": "down"}


def test_a_scan_without_slices_says_so(html: str) -> None:
    assert html.count('<span class="badge">no slices</span>') == 1
    assert "…/sub-05_mosaic.nc: rule &#39;has a mosaic&#39; is broken" in html
    assert html.count('<img class="lines"') == 9


def test_values_carry_their_exact_number_and_place(html: str) -> None:
    row = html[html.index('data-scan="sub-01"') :].split("</dl>")[0]
    assert 'data-key="0.81"><dt>mask Dice</dt><dd>0.810<span class="strip"><i style="left:0.0%">' in row
    first = html[html.index('data-scan="sub-00"') :].split("</dl>")[0]
    assert "noise ratio" not in first


def test_nothing_from_the_data_becomes_markup_or_tells_a_folder(make_prepared: Make, hostile: str) -> None:
    html = quality_page.build(make_prepared(hostile)).read_text(encoding="utf-8")
    assert "<img src=x" not in html
    assert html.count("</script>") == 1
    assert "/home/someone" not in html
    assert "&lt;img src=x" in html


def test_the_page_fetches_nothing_and_repeats(make_prepared: Make) -> None:
    folder = make_prepared()
    html = quality_page.build(folder).read_bytes()
    assert quality_page.build(folder).read_bytes() == html
    text = html.decode()
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:|#)[\w/]", text.split("<script>")[0])
    assert "img-src data:;" in text
    assert not list((folder / "quality").glob("slices/*"))


def test_many_scans_keep_their_pictures_beside_the_page(make_prepared: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_prepared()
    inside = quality_page.build(folder).read_text(encoding="utf-8")
    monkeypatch.setattr(quality_page, "MAX_INSIDE", 4)
    stale = folder / "quality" / "slices" / "sub-gone.webp"
    stale.parent.mkdir()
    stale.write_bytes(b"")
    html = quality_page.build(folder).read_text(encoding="utf-8")
    names = re.findall(r'src="(quality/slices/[^"]+)"', html)
    assert len(names) == 18
    assert not stale.exists()
    picture = (folder / "quality" / "slices" / "sub-03.webp").read_bytes()
    assert base64.b64encode(picture).decode() in inside
    assert len(html) < len(inside)


def test_the_picture_is_the_scan(html: str) -> None:
    row = html[html.index('data-scan="sub-03"') :]
    encoded = re.search(r'src="data:image/webp;base64,([^"]+)"', row)
    assert encoded is not None
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded.group(1)))).convert("L"))
    # The third slice, z = 20: the block is bright between x = -24 and 24 mm, the corner is dark.
    assert picture[104, 2 * 177 + 86] > 150
    assert picture[5, 2 * 177 + 5] < 30


@pytest.mark.parametrize(("value", "text"), [(1534.2, "1534"), (23.46, "23.5"), (0.95, "0.950"), (-2.5, "−2.500")])
def test_values_are_short(value: float, text: str) -> None:
    assert quality_page.value_text(value) == text


def test_histograms_are_as_tall_as_the_roots_of_their_counts() -> None:
    url = quality_page._histogram([0, 4, 16])
    svg = base64.b64decode(url.split("base64,")[1].split('"')[0]).decode()
    assert "M1 20V10.0h1V20" in svg
    assert "M2 20V0.0h1V20" in svg
    assert "M0 " not in svg


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize(
    ("address", "first"),
    [
        ("", "sub-01"),
        ("#sort=scan", "sub-00"),
        ("#sort=mask_dice&order=down", "sub-09"),
        ("#sort=noise_ratio&order=up", "sub-01"),
    ],
)
def test_the_address_sorts_and_the_console_is_silent(
    make_prepared: Make, tmp_path: Path, address: str, first: str
) -> None:
    page = quality_page.build(make_prepared('" onclick="x'))
    document, said = opened(page, tmp_path / "profile", address=address)
    assert said == []
    scans = shown_scans(document)
    assert scans[0] == first
    assert len(scans) == 10
    if "noise_ratio" in address:
        assert scans[-1] == "sub-00"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_address_chooses(make_prepared: Make, tmp_path: Path) -> None:
    page = quality_page.build(make_prepared())
    document, _ = opened(page, tmp_path / "profile", address="#flagged=1&scan=0")
    rows = re.findall(r'<li class="row d0[^>]*>', document)
    assert [bool("hidden" in row) for row in rows].count(False) == 1
    assert ">1 of 10 scans</span>" in document
    assert '<body class="quality no-scan-lines">' in document


def test_every_prepared_scan_leaves_its_slices(tmp_path: Path, rng: np.random.Generator) -> None:
    grid, grey = Grid.mni(6.0), template("gm", Grid.mni(6.0)).get_fdata(dtype=np.float32)
    rows = {}
    for number in range(3):
        path = tmp_path / "maps" / f"sub-{number}_label-GM_probseg.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(grid.to_image(grey * (1 + 0.2 * rng.random(grid.shape))), path)
        row = {"subject_id": f"sub-{number}", "session_id": "", "dataset": "one", "path": str(path)}
        rows[f"sub-{number}"] = row | {"sha256": hash_file(path)}
    cohort = Cohort(pd.DataFrame.from_dict(rows, orient="index").rename_axis("scan_id"))
    out = tmp_path / "out"
    done = prepare(cohort, out, RecipeConfig(name="gm", spacing_mm=6.0, fwhm_mm=0.0))
    assert done.scans["homogeneity"].between(0.9, 1).all()
    shown = mosaic.read_mosaic(mosaic.place(Path(done.scans["path"].iloc[1])))
    expected = mosaic.scan_mosaic(
        nib.load(path.with_name("sub-1_label-GM_probseg.nii.gz")).get_fdata(dtype=np.float32),
        grid.affine,
        None,
        to_scan=lambda points: points,
    )
    assert shown.identical(expected)
    write_finding(quality(done, folder=out), out / "quality")
    assert "no slices" not in quality_page.build(out).read_text(encoding="utf-8")


def test_a_run_writes_the_page_again_when_it_is_gone_or_other_scans_were_dropped(tmp_path: Path) -> None:
    river = River(tmp_path, read_config())
    river.hashes["prepared"] = "ab"
    scans = pd.DataFrame(
        {"subject_id": ["sub-1"], "dataset": "one", "recipe": "gm", "gm_ml": 600.0, "quality_flags": ""}
    )
    scans["path"] = str(tmp_path / "prepared" / "sub-1" / "anat" / "sub-1_space-MNI_probseg.nii.gz")
    scans.index = pd.Index(["sub-1"], name="scan_id")
    page, record = tmp_path / "prepared" / "quality.html", tmp_path / "prepared" / "quality" / "provenance.json"
    river.quality(Cohort(scans))
    first = record.stat().st_mtime_ns
    river.quality(Cohort(scans))
    assert record.stat().st_mtime_ns == first
    page.unlink()
    river.quality(Cohort(scans))
    assert page.is_file()
    row = ("sub-2", "x.nii.gz", "read", "file exists", "x.nii.gz is gone.")
    river.quality(Cohort(scans, pd.DataFrame([row], columns=["scan_id", "path", "stage", "rule", "reason"])))
    assert "1 of 2 scans were prepared" in page.read_text(encoding="utf-8")
