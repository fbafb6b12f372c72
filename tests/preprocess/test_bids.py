import json

import pandas as pd
import pytest

from nilatent.preprocess import bids
from nilatent.provenance import read_json, write_json

ENGINES = {"deepbet": "1.0", "nilatent": "0.1"}


def links(root, **sources):
    bids.write_description(root, sources=sources, engines=ENGINES)
    return read_json(root / "dataset_description.json")["DatasetLinks"]


@pytest.mark.parametrize("doi", ["10.18112/openneuro.ds002748.v1.0.5", "doi:10.18112/openneuro.ds002748.v1.0.5"])
def test_a_source_is_linked_by_the_doi_it_states(tmp_path, doi):
    write_json(tmp_path / "source" / "dataset_description.json", {"Name": "one", "DatasetDOI": doi})
    found = links(tmp_path / "out", one=tmp_path / "source")
    assert found == {"one": "https://doi.org/10.18112/openneuro.ds002748.v1.0.5"}
    described = read_json(tmp_path / "out" / "dataset_description.json")
    assert described["SourceDatasets"][0]["DOI"] == "10.18112/openneuro.ds002748.v1.0.5"


def test_a_derivative_inside_its_source_points_up(tmp_path):
    assert links(tmp_path / "source" / "derivatives" / "ours", one=tmp_path / "source") == {"one": "../.."}


@pytest.mark.parametrize("text", ["", "[1]", '{"DatasetDOI": 5}', "{broken"])
def test_no_place_of_this_machine_is_written(tmp_path, text):
    source = tmp_path / "source"
    source.mkdir()
    (source / "dataset_description.json").write_text(text)
    assert links(tmp_path / "out", one=source) == {"one": "urn:nilatent:source:one"}
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path) not in path.read_text()


def test_links_of_an_earlier_run_stay(tmp_path):
    links(tmp_path / "out", one=tmp_path / "one")
    assert set(links(tmp_path / "out", two=tmp_path / "two")) == {"one", "two"}


def test_who_made_it_is_said_first(tmp_path):
    links(tmp_path, one=tmp_path)
    made = read_json(tmp_path / "dataset_description.json")["GeneratedBy"]
    assert made == [{"Name": "nilatent", "Version": "0.1"}, {"Name": "deepbet", "Version": "1.0"}]


def test_a_readme_of_the_user_stays_the_only_one(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    links(tmp_path, one=tmp_path)
    assert [path.name for path in tmp_path.glob("README*")] == ["README.md"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/ds/sub-01/ses-02/anat/sub-01_T1w.nii.gz", "sub-01/ses-02/anat/sub-01_T1w.nii.gz"),
        ("/data/flat/sub-01_T1w.nii.gz", "sub-01_T1w.nii.gz"),
        ("/data/cat/mri/mwp1x.nii", "mwp1x.nii"),
    ],
)
def test_source_paths_start_at_the_subject(tmp_path, path, expected):
    place = tmp_path / path.lstrip("/")
    assert place.relative_to(bids.bids_root(place)).as_posix() == expected


def people(**columns):
    rows = {"participant_id": ["sub-01", "sub-01", "sub-02"], "session_id": ["ses-1", "ses-2", "ses-1"]}
    return pd.DataFrame(rows | columns, index=["a", "b", "c"])


def read(path):
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def test_what_changes_between_sessions_is_in_the_table_of_sessions(tmp_path):
    table = people(sex=["F", "F", "M"], age=[70.0, 71.5, 68.0], empty=[None] * 3)
    bids.write_participants(tmp_path, table, {"age": {"Units": "years"}})
    assert read(tmp_path / "participants.tsv").to_dict("list") == {
        "participant_id": ["sub-01", "sub-02"],
        "sex": ["F", "M"],
    }
    sessions = read(tmp_path / "sub-01" / "sub-01_sessions.tsv")
    assert sessions.to_dict("list") == {"session_id": ["ses-1", "ses-2"], "age": ["70", "71.5"]}
    assert read_json(tmp_path / "sub-02" / "sub-02_sessions.json")["age"]["Units"] == "years"


def test_a_value_that_one_session_lacks_changes_between_sessions(tmp_path):
    bids.write_participants(tmp_path, people(score=[3.0, None, 4.0]), {})
    assert list(read(tmp_path / "participants.tsv")) == ["participant_id"]
    assert read(tmp_path / "sub-01" / "sub-01_sessions.tsv")["score"].tolist() == ["3", "n/a"]


def test_subjects_of_another_run_stay_listed(tmp_path):
    table = people(code=[1.0, 1.0, None], site=["a", "a", "b"])
    bids.write_participants(tmp_path / "parts", table.iloc[2:], {})
    bids.write_participants(tmp_path / "parts", table.iloc[:2], {})
    bids.write_participants(tmp_path / "whole", table, {})
    parts, whole = (read(tmp_path / name / "participants.tsv") for name in ("parts", "whole"))
    pd.testing.assert_frame_equal(parts[whole.columns], whole)


def test_descriptions_are_made_true_of_the_values(tmp_path):
    described = {
        "sex": {"Levels": {"M": "male", "F": "female"}, "Format": "integer", "Maximum": 3},
        "site": {"Description": "Site", "Levels": ["a", "b"]},
        "free": "no object",
    }
    bids.write_participants(tmp_path, people(sex=["m", "m", "F"], site=["a", "a", "c"], free=[1, 1, 2]), described)
    assert json.loads((tmp_path / "participants.json").read_text()) == {
        "sex": {"Description": "As given by the source", "Levels": {"M": "male", "F": "female", "m": "male"}},
        "site": {"Description": "Site"},
        "free": {"Description": "As given by the source"},
    }
