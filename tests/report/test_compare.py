from collections.abc import Callable
from pathlib import Path

import pytest

from nilatent.errors import SettingError
from nilatent.finding import read_finding, write_finding
from nilatent.plots.reconstruction import COLUMN_NAMES
from nilatent.report import study
from nilatent.report.compare import common_rows, compare, settings_that_differ

Make = Callable[..., Path]


@pytest.mark.slow
def test_two_studies_stand_side_by_side(make_run: Make, tmp_path: Path, hostile: str) -> None:
    first = make_run(n_scans=24).rename(tmp_path / "first")
    second = make_run(hostile, n_scans=30).rename(tmp_path / "second")
    settings = (second / "study.toml").read_text(encoding="utf-8")
    (second / "study.toml").write_text(settings.replace("seed = 7", "seed = 8"), encoding="utf-8")
    found = read_finding(second / "findings" / "reconstruction")
    changed = found.table.assign(fvu=lambda table: table["fvu"] + 0.5)
    write_finding(type(found)(**{**found.__dict__, "table": changed}), second / "findings" / "reconstruction")
    path = compare(first, second)
    assert path == tmp_path / "compare.html"
    html = path.read_text(encoding="utf-8")
    runs = study.read_run(first), study.read_run(second)
    differ = settings_that_differ(*runs)
    assert differ is not None
    assert [cell.text for row in differ.rows for cell in row] == ["seed", "7", "8"]
    rows = common_rows(*(run.findings["reconstruction"] for run in runs), COLUMN_NAMES)
    assert rows is not None
    assert [column.name for column in rows.columns[3:5]] == ["FVU, A", "FVU, B"]
    # Data sets that only one of them has are not in both tables.
    assert {row[0].text for row in rows.rows} == {"all", "dataset one"}
    assert {round(float(row[4].key or 0) - float(row[3].key or 0), 9) for row in rows.rows} == {0.5}
    assert "No difference between the two studies is tested here" in html
    assert "<img src=x" not in html
    assert '<th scope="col"></th>' not in html
    assert compare(first, second, tmp_path / "place").read_bytes() == path.read_bytes()
    assert (tmp_path / "place" / "report.html").is_file()


def test_a_study_is_not_compared_with_itself(make_run: Make) -> None:
    folder = make_run()
    with pytest.raises(SettingError, match="twice"):
        compare(folder, folder / ".." / folder.name)
