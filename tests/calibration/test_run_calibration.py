"""A run goes on where it was killed, shards do not overlap, and tables say what the rows say."""

from dataclasses import replace

import pandas as pd
import pytest
from tests.calibration import run as runner
from tests.calibration import studies, table
from tests.calibration.cohorts import Condition


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, int]]:
    """Cohorts that were computed; the study `grades` finds the region in every second cohort."""
    done: list[tuple[str, int]] = []

    def measure(name: str, seed: int) -> dict[str, float]:
        done.append((name, seed))
        return {"n_planted": 2, "lrcp_planted": 2 * (seed % 2), "lrcp_other": 0, "strong": seed % 2}

    monkeypatch.setitem(studies.STUDIES, "grades", replace(studies.STUDIES["grades"], measure=measure, n_cohorts=5))
    return done


def test_a_killed_run_goes_on_and_its_half_line_does_not_count(tmp_path, calls):
    runner.run(tmp_path, ["grades"], n_cohorts=2)
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    path.write_text(whole[: whole.rstrip("\n").rfind("\n") + 30])
    assert len(runner.read_rows(tmp_path, "grades")) == 3
    calls.clear()
    runner.run(tmp_path, ["grades"], n_cohorts=2)
    assert calls == [("class-mediated", 1)]
    finished = [line.split("\t") for line in path.read_text().splitlines()]
    expected = [line.split("\t") for line in whole.splitlines()]
    seconds = expected[0].index("seconds")
    assert [row[:seconds] + row[seconds + 1 :] for row in finished] == [
        row[:seconds] + row[seconds + 1 :] for row in expected
    ]


def test_shards_share_the_cohorts_of_a_study_without_overlap(tmp_path, calls):
    for number in (1, 2, 3):
        runner.run(tmp_path, ["grades"], shard=(number, 3))
    assert sorted(calls) == sorted((name, seed) for name in studies.GRADES for seed in range(5))
    assert len(runner.read_rows(tmp_path, "grades")) == 10


def test_other_settings_under_the_same_name_are_run_again(tmp_path, calls, monkeypatch):
    runner.run(tmp_path, ["grades"], n_cohorts=1)
    calls.clear()
    changed = replace(studies.STUDIES["grades"], conditions={"class-mediated": Condition(n=33)})
    monkeypatch.setitem(studies.STUDIES, "grades", changed)
    runner.run(tmp_path, ["grades"], n_cohorts=1)
    assert calls == [("class-mediated", 0)]
    assert "| class-mediated | 1 |" in table.tables_of(tmp_path, ["grades"], any_code=False)["grades"]


def test_only_the_conditions_asked_for_are_run(tmp_path, calls):
    runner.run(tmp_path, ["grades"], n_cohorts=2, conditions=["class-mediated"])
    assert calls == [("class-mediated", 0), ("class-mediated", 1)]


@pytest.mark.parametrize("text", ["0/2", "3/2", "2"])
def test_a_shard_that_does_not_exist_is_refused(text):
    with pytest.raises(Exception, match="i/n"):
        runner.shard_of(text)


def test_the_hash_of_code_knows_what_it_does_and_not_how_it_looks(tmp_path):
    def hashed(text: str) -> str:
        (tmp_path / "code.py").write_text(text)
        return runner.code_hash([tmp_path / "code.py"])

    plain = hashed("def f(x):\n    return x + 1\n")
    assert hashed('"""Words."""\ndef f(x):\n    """More."""\n    return (x   + 1)  # why\n') == plain
    assert hashed("def f(x):\n    return x - 1\n") != plain


def test_rows_of_other_code_do_not_count_unless_asked(tmp_path, calls, monkeypatch):
    runner.run(tmp_path, ["grades"], n_cohorts=2)
    monkeypatch.setattr(table, "code_hash", lambda _: "other")
    with pytest.raises(SystemExit, match="None of the 4 rows"):
        table.current_rows(tmp_path, "grades", any_code=False)
    assert len(table.current_rows(tmp_path, "grades", any_code=True)) == 4


def test_the_interval_is_the_exact_one():
    assert table.exact_interval(0, 100) == pytest.approx((0.0, 1 - 0.025 ** (1 / 100)))
    assert table.exact_interval(10, 200) == pytest.approx((0.0242, 0.0900), abs=1e-4)


def test_a_rate_that_is_surely_above_its_level_is_marked():
    assert table.rate(pd.Series([True] * 10 + [False] * 190)) == "5.0 (2.4–9.0)"
    assert table.rate(pd.Series([True] * 20 + [False] * 180)).endswith("!")
    assert not table.rate(pd.Series([True] * 12 + [False] * 188)).endswith("!")


def test_a_false_positive_is_any_region_and_power_a_share_of_the_planted():
    rows = pd.DataFrame({"n_planted": 4, "roi_planted": [1, 3, 0, 0], "roi_other": [0, 2, 1, 0]})
    assert table.false_positives(rows)["ROI t-test"].startswith("75.0 (")
    assert table.power(rows) == {"ROI t-test": "0.25 ± 0.35; 0.75"}


def test_cohorts_with_nothing_planted_are_counted_as_false_positives_and_others_as_power():
    rows = pd.DataFrame({"n_planted": 0, "lrcp_planted": 0, "lrcp_other": [1, 0], "strong": 0})
    assert table.planted_or_not(rows)["LRCP"].startswith("50.0 (")
    found = table.planted_or_not(rows.assign(n_planted=2, lrcp_planted=2, strong=[1, 0]))
    assert found == {"LRCP": "1.00 ± 0.00; 0.50", "LRCP, graded strong": "25 %"}


def test_a_table_counts_what_the_rows_hold(tmp_path, calls):
    runner.run(tmp_path, ["grades"], n_cohorts=4)
    lines = table.tables_of(tmp_path, ["grades"], any_code=False)["grades"].splitlines()
    assert lines[0] == "| condition | cohorts | planted regions called | of these graded strong |"
    assert lines[2] == "| the model sees the regions | 4 | 4 of 8 | 50 % |"


def test_every_badge_has_a_column_of_its_own():
    rows = pd.DataFrame({name: [0] * 9 + [position % 2] for position, name in enumerate(table.BADGES)})
    cells = table.badge_rates(rows)
    assert len(cells) == len(table.BADGES)
    assert [cell[:4] for cell in cells.values()] == ["0.0 ", "10.0"] * 3 + ["0.0 "]


def test_tables_take_their_place_in_the_document_and_only_there():
    text = "a\n<!-- table: grades -->\nold\n<!-- end -->\nb\n<!-- table: power -->\nkept\n<!-- end -->\n"
    made = table.inserted(text, {"grades": "new\n"})
    assert made == text.replace("old", "\nnew\n")
    assert table.inserted(made, {"grades": "new\n"}) == made
    with pytest.raises(SystemExit, match="0 places"):
        table.inserted(text, {"images": "new"})
