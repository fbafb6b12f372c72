"""Pages of subjects, built from a finding of the analysis itself on a small cohort."""

import html
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from tests.report.test_browser import CHROMIUM, opened

from nilatent.analysis.normative import NormativeConfig, normative
from nilatent.atlas import RegionWeights
from nilatent.errors import FindingError
from nilatent.finding import not_run, write_finding
from nilatent.plots import style
from nilatent.report import subjects
from nilatent.report.subjects import build_subjects
from nilatent.volumes import Grid

N, N_REGIONS = 18, 14
# The first four share a file name wherever case does not count; the fifth would be the index, and two scans are of one person.
ODD = [
    "a/b",
    "a b",
    "A_B",
    "../../x",
    "index",
    "s5",
    "s6",
    "s7",
    "s8",
    "s9",
    "s10",
    "s11",
    "s9",
    *(f"t{n}" for n in range(5)),
]


def write_run(place: Path, label: str = "AD", *, of_scans: list[str] | None = None) -> Path:
    """A run folder with the finding and a map of the scan that deviates; `label` names a group and a region."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(N, N_REGIONS))
    values[3, 4] -= 25
    names = [*(f"Region_{number}" for number in range(N_REGIONS - 1)), label]
    index = pd.Index([f"sub-{number:02d}" for number in range(N)], name="scan_id")
    scans = pd.DataFrame({"subject_id": index if of_scans is None else of_scans}, index=index)
    scans = scans.assign(group=np.where(np.arange(N) < 5, label, "CN"), age=rng.uniform(50, 80, N).round(1), sex="F")
    scans.loc["sub-02", "age"] = np.nan
    grid = Grid.mni(6.0)
    mask = np.ones(grid.shape, dtype=bool)
    voxels = np.arange(mask.size)
    matrix = sparse.coo_matrix((np.ones(mask.size), (voxels % N_REGIONS, voxels))).tocsr()
    weights = RegionWeights(matrix, np.arange(N_REGIONS) + 1, names, pd.DataFrame())
    regions = pd.DataFrame(values, index=index, columns=names)
    errors = pd.DataFrame(np.exp(rng.normal(size=values.shape)), index=index, columns=names)
    # So few reference subjects make nobody sure; at this rate one scan deviates.
    config = NormativeConfig(covariates=("age", "sex"), alpha=0.65)
    found = normative([], regions, errors, scans, np.arange(N) % 3, weights, grid, mask, config)
    write_finding(found, place / subjects.FINDING)
    (place / subjects.FINDING / "maps").mkdir()
    nib.save(
        grid.to_image(rng.normal(size=grid.shape).astype(np.float32)), place / subjects.FINDING / "maps/sub-03.nii.gz"
    )
    return place


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The pages of a run; tests only look at them."""
    return build_subjects(write_run(tmp_path_factory.mktemp("run")))


def text_of(path: Path) -> str:
    body = path.read_text(encoding="utf-8").split("</style>")[1]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_every_subject_has_a_page_and_a_place_in_the_index(built: list[Path]) -> None:
    index, *pages = built
    assert (index.parent.name, index.name) == ("subjects", "index.html")
    assert {page.name for page in pages} == {f"sub-{number:02d}.html" for number in range(N)}
    targets = re.findall(r'<th scope="row"[^>]*><a href="([^"]+)"', index.read_text(encoding="utf-8"))
    assert targets == [page.name for page in pages]
    assert targets[0] == "sub-03.html"
    assert 'href="index.html"' in pages[0].read_text(encoding="utf-8")


def test_the_page_says_what_deviates(built: list[Path]) -> None:
    _, page, *others = built
    words = text_of(page)
    assert "sub-03 deviates from what the 13 reference subjects (CN) let expect at this age, sex (p = " in words
    assert "Region_4 deviates most, with less grey matter than expected (z = −" in words
    assert "The 12 regions that deviate most." in words
    # The figures are the place among the reference and the map; only this scan has one.
    assert page.read_text(encoding="utf-8").count("<img") == 2
    assert "There is no map of this scan" in text_of(others[0])
    assert "lies within the range of what" in text_of(others[-2])


def test_a_scan_that_was_not_judged_says_why(built: list[Path]) -> None:
    assert built[-1].name == "sub-02.html"
    assert "sub-02 was not judged: a covariate or the site is missing." in text_of(built[-1])


def test_text_from_data_is_escaped_names_keep_apart_and_scans_of_one_share_a_page(
    tmp_path: Path, hostile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The strips show no text from data, and drawing them is most of the work.
    strips = style.message("strips")
    monkeypatch.setattr(subjects.normative, "draw_place", lambda *_: strips)
    pages = build_subjects(write_run(tmp_path, hostile, of_scans=ODD))
    assert len({page.name.lower() for page in pages}) == len(pages) == len(set(ODD)) + 1
    assert {page.parent for page in pages} == {tmp_path / "subjects"}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.count("<script") == len(subjects.SCRIPTS)
        assert "<img src=x" not in text
        assert "default-src 'none'" in html.unescape(text)
        assert not re.search(r'(?:src|href)="(?!data:|#|[A-Za-z0-9_-]+\.html)', text)
    both = next(page for page in pages if page.name == "s9.html").read_text(encoding="utf-8")
    assert both.count("<h2>sub-09</h2>") == both.count("<h2>sub-12</h2>") == 1


@pytest.mark.slow
def test_the_same_folder_gives_the_same_bytes_and_old_pages_go(built: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built[0].parent.parent, folder)
    (folder / "subjects" / "gone.html").write_text("old", encoding="utf-8")
    again = build_subjects(folder)
    assert [page.read_bytes() for page in again] == [page.read_bytes() for page in built]
    assert not (folder / "subjects" / "gone.html").exists()
    write_finding(not_run("normative", "Why?", "too few"), folder / subjects.FINDING)
    assert build_subjects(folder) == []
    assert list((folder / "subjects").glob("*.html")) == []


def test_a_damaged_map_is_said_and_another_finding_refused(tmp_path: Path) -> None:
    (tmp_path / "sub-03.nii.gz").write_bytes(b"no image")
    assert "maps/sub-03.nii.gz cannot be read" in subjects._map("sub-03", tmp_path)[1]
    write_finding(not_run("lrcp", "Why?", "too few"), tmp_path / subjects.FINDING)
    with pytest.raises(FindingError, match="holds the finding 'lrcp'"):
        build_subjects(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_pages_open_without_a_word(built: list[Path], tmp_path: Path) -> None:
    for page in built[:2]:
        document, said = opened(page, tmp_path / "profile")
        assert said == []
        assert "<h2" in document
