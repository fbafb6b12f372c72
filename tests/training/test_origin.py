import numpy as np
import pandas as pd
import pytest

from nilatent.training.origin import Origin, Seen, recognise, seen_by, summary
from nilatent.volumes import Grid, Volumes, volumes_in_memory

SHAPE = (5, 4, 3)


def cohort(array: np.ndarray, names: list[str], dataset: str = "one", parts: str = "") -> tuple[Volumes, pd.DataFrame]:
    ids = pd.Index([f"{name}_ses-{index}" for index, name in enumerate(names)], name="scan_id")
    scans = pd.DataFrame({"subject_id": names, "dataset": dataset}, index=ids)
    grid = Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]))
    volumes = volumes_in_memory(array, mask=np.ones(SHAPE, bool), grid=grid, scans=scans)
    part = {"t": "train", "v": "validation", "h": "test"}
    return volumes, pd.DataFrame(
        {"subject_id": names, "part": [part[key] for key in parts or "t" * len(names)]}, index=ids
    )


def seen(volumes: Volumes, parts: pd.DataFrame, salt: str = "s", before: Seen | None = None) -> Seen:
    return seen_by(salt, parts[parts["part"] != "test"], Origin(volumes, parts, before=before))


@pytest.fixture
def array(rng: np.random.Generator) -> np.ndarray:
    return rng.random((4, *SHAPE))


def test_who_was_held_out_is_not_known(array: np.ndarray) -> None:
    volumes, parts = cohort(array, ["a", "a", "b", "c"], parts="ttvh")
    known = seen(volumes, parts)
    marks, words = recognise(known, volumes, parts["subject_id"])
    assert marks.tolist() == [True, True, True, False]
    assert words == "3 of 4 scans are of subjects the model has seen."
    assert [known.only("train").knows_subject(name) for name in "abc"] == [True, False, False]
    assert [known.only("train").knows_scan(one) for one in volumes.data] == [True, True, False, False]


def test_a_scan_under_another_name_marks_all_scans_of_its_subject(array: np.ndarray) -> None:
    known = seen(*cohort(array, ["a", "b", "c", "d"], parts="tvhh"))
    later, parts = cohort(array[[1, 2, 3]], ["x", "x", "y"])
    marks, words = recognise(known, later, parts["subject_id"])
    assert marks.tolist() == [True, True, False]
    assert "A scan of x was seen under another name." in words


def test_a_name_alone_marks_too_and_is_told_apart(array: np.ndarray) -> None:
    known = seen(*cohort(array[:2], ["a", "b"]))
    later, parts = cohort(array[2:], ["a", "c"])
    marks, words = recognise(known, later, parts["subject_id"])
    assert marks.tolist() == [True, False]
    assert "Of a only the name is known and none of these scans" in words


@pytest.mark.parametrize(("before", "after"), [("adni_01", "01"), ("01", "adni_01"), ("01", "01")])
def test_a_subject_is_known_with_and_without_its_data_set_in_front(array: np.ndarray, before: str, after: str) -> None:
    known = seen(*cohort(array[:1], [before], dataset="adni"))
    assert known.knows_subject(after, "adni")
    assert not known.knows_subject("oasis_01", "oasis")
    assert not known.knows_subject("02", "adni")


def test_hashes_differ_between_models_and_show_no_name(array: np.ndarray) -> None:
    volumes, parts = cohort(array, ["anna", "bert", "carl", "dora"])
    one, two = (seen(volumes, parts, salt) for salt in ("one", "two"))
    assert not set(one.subjects) & set(two.subjects)
    assert not set(one.scans) & set(two.scans)
    assert not any(name in one.to_table().to_csv() for name in ("anna", "bert", "carl", "dora"))
    assert (one.to_table()["hash"].str.len() == 16).all()


def test_what_a_model_has_seen_goes_on_to_the_next(array: np.ndarray) -> None:
    first = seen(*cohort(array[:2], ["a", "b"]), salt="first")
    second = seen(*cohort(array[2:], ["c", "d"]), salt="second", before=first)
    again = Seen.from_table(second.to_table())
    assert again.to_table().equals(second.to_table())
    assert again.salt == "second"
    assert all(again.knows_subject(name) for name in "abcd")
    volumes, _ = cohort(array, list("wxyz"))
    assert all(again.knows_scan(one) for one in volumes.data)


def test_without_the_scans_only_names_are_compared_and_that_is_said(array: np.ndarray) -> None:
    volumes, parts = cohort(array, list("abcd"))
    known = seen_by("s", parts)
    renamed = parts.assign(subject_id=list("wxyz"))
    marks, words = recognise(known, volumes, renamed["subject_id"])
    assert not marks.any()
    assert "compared by name only" in words


def test_the_summary_counts_each_part_and_keeps_few_people_to_itself(rng: np.random.Generator) -> None:
    names = [f"p{index // 2:02d}" for index in range(24)]
    volumes, parts = cohort(rng.random((24, *SHAPE)), names, parts="t" * 18 + "v" * 4 + "h" * 2)
    age = np.arange(24.0) + 50
    people = pd.DataFrame({"age": age, "sex": ["F", "M", "M"] * 8}, index=parts.index)
    told = summary(Origin(volumes, parts, people))
    assert told["validation"] == {"n_scans": 4, "n_subjects": 2, "n_datasets": 1}
    assert told["train"] == {
        "n_scans": 18,
        "n_subjects": 9,
        "n_datasets": 1,
        "age_mean": 58.5,
        "age_sd": round(float(np.std(age[:18], ddof=1)), 1),
        "sex": {"F": 6, "M": 12},
    }


def test_a_list_of_more_models_than_can_follow_one_another_is_refused(array: np.ndarray) -> None:
    table = seen(*cohort(array, ["a", "b", "c", "d"])).to_table()
    chain = [table.assign(salt=f"salt-{number}") for number in range(65)]
    assert Seen.from_table(pd.concat(chain[:64])).salt == "salt-0"
    with pytest.raises(ValueError, match="speaks of 65 models"):
        Seen.from_table(pd.concat(chain))
