import base64
import hashlib
import html
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nilatent import report
from nilatent.errors import FindingError
from nilatent.provenance import write_json
from nilatent.report import study

Make = Callable[..., Path]


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.held: list[str] = []
        self.islands: list[str] = []
        self.styles = ""
        self._inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            kind = self.tags[-1][1].get("type")
            kept = self.scripts if kind is None else self.islands if kind == "application/json" else []
            (self.held if "data-held" in self.tags[-1][1] else kept).append(data)
        elif self._inside == "style":
            self.styles += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def built(folder: Path) -> Page:
    return Page(report.build(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(built_run: Path) -> Page:
    return Page((built_run / "report.html").read_text(encoding="utf-8"))


def svgs(page: Page) -> list[str]:
    sources = [str(image["src"]) for image in page.named("img")]
    return [base64.b64decode(source.removeprefix("data:image/svg+xml;base64,")).decode() for source in sources]


def test_first_sentence_is_the_verdict(page: Page) -> None:
    body = page.text[page.text.index("Skip to the results") + len("Skip to the results") :]
    assert body.strip().startswith("Answer of reconstruction is yes (FVU 0.93). Study report")


def test_every_finding_is_answered_with_its_caveats(page: Page) -> None:
    for name in ("reconstruction", "projections", "lrcp"):
        assert f"What of {name}?" in page.text
        assert f"Caveat of {name}." in page.text
    # All that this run did not include.
    assert page.text.count("not run") == len(report.SECTIONS) - 3


def test_a_missing_finding_is_a_line_and_not_a_gap(make_run: Make) -> None:
    folder = make_run()
    for path in (folder / "findings" / "lrcp").iterdir():
        path.unlink()
    page = built(folder)
    assert "Regions (LRCP)" in page.text
    assert f"not run {report.NOT_ASKED}" in page.text
    assert not (folder / "figures" / "lrcp.svg").exists()


def test_too_few_scans_leave_preparation_and_regions(make_run: Make) -> None:
    page = built(make_run(n_scans=12, with_model=False))
    assert "No model was judged on held-out scans: too few subjects (12; at least 20 are needed)." in page.text
    assert page.text.count("not run") == len(report.SECTIONS) + 4
    assert "Quality of every prepared scan." in page.text
    assert "Region_1_L" in page.text
    assert not any("plotly.js" in script for script in page.scripts)


def test_hostile_names_are_text(make_run: Make, hostile: str) -> None:
    page = built(make_run(hostile, column="g <b>$x$"))
    shown = " ".join(hostile.split())
    assert shown in page.text
    assert "g <b>$x$" in page.text
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert {str(image["src"])[:26] for image in page.named("img")} == {"data:image/svg+xml;base64,"}
    assert {script.get("type") for script in page.named("script")} == {None, "application/json", "text/plain"}
    data = json.loads(page.islands[0])
    assert any(hostile in column["values"] for column in data["columns"])
    drawn = svgs(page)
    assert not any("<script" in svg or "<img" in svg for svg in drawn)
    start = html.escape(hostile[:12], quote=False)
    assert sum(start in svg for svg in drawn) >= 3


def test_nothing_is_fetched(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name) or ""
            if "//" in value and not value.startswith("data:"):
                assert tag == "a"
                assert value.startswith("https://doi.org/10.")
    assert not page.named("link")
    assert "url(" not in page.styles
    assert "@import" not in page.styles


def test_policy_allows_our_own_scripts_only(page: Page) -> None:
    policy = next(meta["content"] for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    # Those that run at once, and the one that waits as text until a brain is asked for.
    allowed = [*page.scripts, *page.held]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in allowed]
    assert (len(page.scripts), len(page.held)) == (5, 1)
    rule = " ".join(f"'sha256-{one}'" for one in hashes)
    assert f"script-src {rule};" in str(policy)
    assert str(policy).startswith("default-src 'none';")
    assert "connect-src" not in str(policy)
    assert "unsafe-eval" not in str(policy)


def test_no_machine_path_is_told(page: Page, built_run: Path) -> None:
    # In the text, and in what scripts read.
    raw = (built_run / "report.html").read_text(encoding="utf-8")
    assert "/home/someone" not in page.text + raw
    assert "image_flair" not in raw
    assert "…/y.nii.gz" in page.text
    assert str(built_run) not in page.text


def test_same_folder_same_bytes(built_run: Path) -> None:
    folder = built_run
    first = (folder / "report.html").read_bytes()
    figures = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert report.build(folder).read_bytes() == first
    assert {path.name: path.read_bytes() for path in (folder / "figures").iterdir()} == figures


def test_slices_and_maps_say_left_and_right(built_run: Path) -> None:
    for name in ("reconstruction-slices", "reconstruction-fvu", "lrcp-minus_log10_p"):
        svg = (built_run / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert svg.count(">L</text>") == svg.count(">R</text>") >= 16


def test_pictures_have_words_and_tables_have_heads(page: Page) -> None:
    assert all(len(str(image["alt"])) > 40 for image in page.named("img"))
    heads = page.named("th")
    assert {head.get("scope") for head in heads} == {"col", "row"}
    assert len(page.named("caption")) == len(page.named("table"))

    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_never_offers_to_send_the_chart(page: Page) -> None:
    own = next(script for script in page.scripts if "Plotly.react" in script and len(script) < 50_000)
    assert "showSendToCloud: false" in own
    assert 'plotlyServerURL: ""' in own
    assert "modeBarButtons: buttons" in own


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FindingError, match="nilatent run"):
        report.build(tmp_path)


def test_what_was_made_from_an_earlier_model_is_not_shown(make_run: Make) -> None:
    folder = make_run()
    split, model = {"content_hash": "s"}, {"content_hash": "new", "inputs": {"split": "s"}}
    write_json(folder / "split.provenance.json", split | {"stage": "split"})
    write_json(folder / "model" / "provenance.json", model | {"stage": "model"})
    lrcp = {"stage": "lrcp", "inputs": {"model": "old"}, "content_hash": "l"}
    write_json(folder / "findings" / "lrcp" / "provenance.json", lrcp)
    run = study.read_run(folder)
    assert "changed since" in run.findings["lrcp"].not_run
    assert run.done("projections")
    assert run.n_latent == 8
    write_json(folder / "split.provenance.json", split | {"stage": "split", "content_hash": "later"})
    run = study.read_run(folder)
    assert run.n_latent is None
    assert run.history.empty
