from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tomli_w
import xarray as xr
from tests.report.conftest import write_run

from nilatent.finding import Finding
from nilatent.provenance import read_json, write_json
from nilatent.report import drawn_words, methods, study

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


def test_a_template_of_every_person_is_told_where_visits_were_prepared_through_it(plain: study.Run) -> None:
    scans = plain.cohort.scans.assign(recipe="t1")
    run = replace(plain, cohort=replace(plain.cohort, scans=scans))
    assert "one brain mask" not in " ".join(methods.paragraphs(run))
    recipe = dict(run.settings["recipe"]) | {"within_subject": True}
    text = " ".join(methods.paragraphs(replace(run, settings=dict(run.settings) | {"recipe": recipe})))
    assert "one brain mask [reuter]. They were smoothed" in text


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


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> study.Run:
    return study.read_run(write_run(tmp_path_factory.mktemp("methods")))


def with_finding(plain: study.Run, name: str, table: pd.DataFrame, settings: dict[str, object]) -> study.Run:
    finding = Finding(name, "Q?", "A.", table, xr.Dataset(), settings, (), 30, 12)
    return replace(plain, findings={**plain.findings, name: finding})


def of_rates(**columns: object) -> pd.DataFrame:
    blank = {"what": "rate", "kind": "regions", "random": "intercept and slope", "drawn": float("nan")}
    return pd.DataFrame([blank | {"drawn_low": float("nan")} | columns])


CHANGE = {
    "time": "days",
    "unit": "days",
    "covariates": ["age"],
    "n_permutations": 4321,
    "contrasts": [],
    "n_redrawn": 37,
}


@pytest.mark.parametrize(
    ("table", "settings", "there", "absent"),
    [
        (of_rates(), {}, "of regional means was modelled", "permutations of persons"),
        (of_rates(), {}, "a random intercept and a random slope", "Decoders drew"),
        (of_rates(random="intercept"), {}, "a random intercept of every person", "random slope"),
        (of_rates(), {}, "from 'days'. Levels depended on age too.", "Rates depended"),
        (of_rates(), {"pace": ["sex"], "site": "x"}, "on age, x too. Rates depended on sex too.", "visits at most"),
        (of_rates(), {"contrasts": ["a:b"], "site": "x"}, "4,321 permutations of persons between them within x", "ICC"),
        (of_rates(drawn=0.1), {}, "of persons they had not seen", "further courses"),
        (of_rates(drawn=0.1), {"drawn_seen": True}, "of the latents of all persons", "had not seen"),
        (of_rates(drawn=0.1, drawn_low=0.0), {}, "rest on 37 further courses of every model", "foreseen"),
        (
            pd.concat([of_rates(), of_rates(what="error of forecast"), of_rates(what="repeatability, close visits")]),
            {"retest_days": 90.0},
            "ICC(2,1) of visits at most 90 days apart",
            "latents of the study's own",
        ),
    ],
)
def test_change_over_time_is_told_as_it_was_measured(
    plain: study.Run, table: pd.DataFrame, settings: dict[str, object], there: str, absent: str
) -> None:
    assert drawn_words.longitudinal(plain) == ""
    run = with_finding(plain, "longitudinal", table, CHANGE | settings)
    text = drawn_words.longitudinal(run)
    assert there in text
    assert absent not in text
    assert text in methods.paragraphs(run)
    assert methods.numbered((text,))[1][0].doi == "10.2307/2529876"


def test_fusion_is_told_with_its_kinds_and_what_they_must_not_tell(plain: study.Run) -> None:
    assert drawn_words.fusion(plain) == ""
    settings = {
        "modalities": {"latents": 49, "scores": 45},
        "n_folds": 5,
        "n_inner": 4,
        "n_draws": 999,
        "n_bootstrap": 2000,
    }
    ways = pd.DataFrame({"way": ["early fusion", "joint latents"], "value": [0.7, float("nan")]})
    run = with_finding(plain, "fusion", ways, settings | {"barred": {"scores": "group"}})
    text = drawn_words.fusion(run)
    assert "Kinds of measurement (latents, scores) were compared in one nested cross-validation over 5 folds" in text
    assert "Because it defines them, scores did not predict group." in text
    assert "joint model" not in text
    assert text in methods.paragraphs(run)
    text = drawn_words.fusion(with_finding(plain, "fusion", ways.fillna(0.6), settings))
    assert "side by side, the latents of the joint model, the average" in text
    assert "Because" not in text


@pytest.mark.parametrize(
    ("experts", "said"), [("moe", "the mixture of what the kinds"), ("poe", "the product of what")]
)
def test_a_joint_model_is_told_with_its_kinds_and_its_posterior(plain: study.Run, experts: str, said: str) -> None:
    assert drawn_words.multimodal(plain) == ""
    settings = {"kinds": {"gm": "image", "scores": "table"}, "n_folds": 3, "n_bootstrap": 1000, "n_flips": 500}
    run = with_finding(plain, "multimodal", pd.DataFrame({"way": ["ridge"]}), settings)
    run = replace(run, settings=dict(run.settings) | {"multimodal": {"experts": experts}})
    text = drawn_words.multimodal(run)
    assert "A joint variational autoencoder of gm, scores" in text
    assert said in text
    assert "By 3 cross-fitted models" in text
    assert text in methods.paragraphs(run)
