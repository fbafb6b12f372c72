import json
from typing import Any

import pytest

from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.recipe import fingerprint
from nilatent.provenance import plain
from nilatent.training.preparation import check_preparation, differences, how_made
from nilatent.training.stored import ModelError


def made(how: tuple[str, ...] = ("t1",), **changes: Any) -> dict[str, Any]:
    """What a run says of its preparation, as it comes back from the disk."""
    said = plain(fingerprint(RecipeConfig(**changes)) | {"made": list(how)})
    back: dict[str, Any] = json.loads(json.dumps(said))
    return back


def test_the_same_preparation_passes_without_a_word() -> None:
    assert check_preparation(made(), fingerprint(RecipeConfig()) | {"made": ["t1"]}) == ""


@pytest.mark.parametrize(
    "change",
    [{"fwhm_mm": 4.0}, {"spacing_mm": 2.0}, {"modulation": False}, {"normalisation": "syn"}, {"target": "t1w"}],
)
def test_what_changes_values_is_refused_or_travels_as_a_caveat(change: dict[str, Any]) -> None:
    name, value = next(iter(change.items()))
    with pytest.raises(ModelError, match=rf"recipe\.{name} .* in training, {value} here.*allow_other_preparation"):
        check_preparation(made(), made(**change))
    assert f"{value} here" in check_preparation(made(), made(**change), allow_other=True)


def test_another_version_of_the_recipe_or_other_maps_are_refused() -> None:
    with pytest.raises(ModelError, match="version"):
        check_preparation(made() | {"version": 3}, made())
    with pytest.raises(ModelError, match="made t1 in training, gm here"):
        check_preparation(made(("t1",)), made(("gm",)))
    with pytest.raises(ModelError, match="maps CAT12 in training, CAT12, SPM here"):
        check_preparation(made(("gm",)) | {"maps": ["CAT12"]}, made(("gm",)) | {"maps": ["CAT12", "SPM"]})


def test_another_version_of_an_engine_is_a_caveat() -> None:
    other = made()
    other["engines"]["t1"]["numpy"] = "1.0"
    assert "engines.t1.numpy" in check_preparation(made(), other)
    assert differences(made(), other)[0] == []


def test_what_no_scan_depended_on_is_no_difference() -> None:
    given = made(("gm",), modulation=False, normalisation="syn", name="gm")
    given["engines"]["t1"]["antspyx"] = "0"
    assert check_preparation(made(("gm",)), given) == ""
    assert differences(made(("t1",)), made(("t1",), name="t1")) == ([], [])
    assert differences(made(("t1",)), made(("t1",), modulation=False))[0] != []


def test_what_is_not_known_is_said() -> None:
    assert "The model does not say" in check_preparation(None, made())
    assert "not known how these scans" in check_preparation(made(), None)
    short = made()
    del short["made"]
    assert "made not known in training" in check_preparation(short, made())


def test_a_cohort_says_how_it_was_made_and_names_nobody() -> None:
    config = RecipeConfig(fwhm_mm=4.0)
    sources = ["/data/anna_T1w.nii.gz", "/data/s6mwp1anna_T1w.nii", "/data/mwp1bert_T1w.nii", "/data/mwp1carl_T1w.nii"]
    found = how_made(fingerprint(config), ["t1", "gm", "gm", "gm"], sources)
    assert found["made"] == ["gm", "t1"]
    assert found["maps"] == [
        "GM of CAT12, modulation all, smoothed 0 mm",
        "GM of CAT12, modulation all, smoothed 6 mm",
    ]
    assert found["recipe"]["fwhm_mm"] == 4.0
    assert not any(word in json.dumps(found) for word in ("anna", "bert", "/data"))
    assert "maps" not in how_made(fingerprint(config), ["t1"], sources[:1])
