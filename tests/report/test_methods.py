from collections.abc import Callable
from pathlib import Path

import tomli_w

from nilatent.provenance import read_json, write_json
from nilatent.report import methods, study

Make = Callable[..., Path]


def text_of(folder: Path) -> str:
    return " ".join(methods.paragraphs(study.read_run(folder)))


def test_references_are_numbered_by_first_mention_and_only_those_cited() -> None:
    texts, references = methods.numbered(("first [vae], then [n4] and [vae]", "a name [draft] and [adamw]"))
    assert texts == ("first [1], then [2] and [1]", "a name [draft] and [3]")
    assert [reference.doi for reference in references] == [
        methods.REFERENCES[key].doi for key in ("vae", "n4", "adamw")
    ]


def test_every_reference_has_a_doi() -> None:
    assert all(reference.doi.startswith("10.") for reference in methods.REFERENCES.values())


def test_text_follows_the_settings(make_run: Make) -> None:
    folder = make_run()
    before = text_of(folder)
    assert "smoothed by 8 mm FWHM" in before
    assert "8 latent dimensions" in before
    (folder / "study.toml").write_text(tomli_w.dumps({"recipe": {"fwhm_mm": 0.0, "spacing_mm": 2.0}}))
    after = text_of(folder)
    assert "not smoothed" in after
    assert "2 mm voxels" in after


def test_everything_that_was_removed_is_named(make_run: Make) -> None:
    folder = make_run()
    assert "after removing" not in text_of(folder)
    head = read_json(folder / "findings/lrcp/finding.json")
    head["settings"] |= {"confounds": ["age", "total_gm"], "site": "scanner"}
    write_json(folder / "findings/lrcp/finding.json", head)
    assert "after removing age, total_gm, scanner, permuted within the levels of scanner" in text_of(folder)


def test_a_run_without_a_model_tells_of_none(make_run: Make) -> None:
    text = text_of(make_run(n_scans=12, with_model=False))
    assert "autoencoder" not in text
    assert "Reconstruction" not in text
    assert "Regional grey matter" in text
