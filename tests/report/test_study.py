from collections.abc import Callable
from pathlib import Path

import pytest

from nilatent.provenance import write_json
from nilatent.report import study


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("File /home/a b.nii", "File …/a b.nii"),
        ("/data/x/sub-01_T1w.nii.gz: bad", "…/sub-01_T1w.nii.gz: bad"),
        ("C:\\Users\\me\\scan.nii is 4D", "…/scan.nii is 4D"),
        ("ratio 3/4 and https://doi.org/10.1/x", "ratio 3/4 and https://doi.org/10.1/x"),
        ("sub-01/anat/x.nii", "sub-01/anat/x.nii"),
        ('exclude = "C:\\\\Users\\\\someone\\\\list.txt"', 'exclude = "…/list.txt"'),
        ("start_from = '/home/Jane Doe/runs/model'", "start_from = '…/model'"),
        ("at \\\\server\\share\\scan.nii is damaged", "at …/scan.nii is damaged"),
        ("/home/Jane Doe/my study/sub-01_T1w.nii.gz is empty", "…/sub-01_T1w.nii.gz is empty"),
        ("C:\\Users\\Jane Doe\\my study\\scan.nii: bad", "…/scan.nii: bad"),
        ("/data/a.nii.gz moves 3 mm/s, or /data/b does", "…/a.nii.gz moves 3 mm/s, or …/b does"),
    ],
)
def test_folders_are_cut_off_paths_and_nothing_else(text: str, shown: str) -> None:
    assert study.without_paths(text) == shown


@pytest.mark.parametrize(("n", "words"), [(0, "no scans"), (1, "1 scan"), (5, "5 scans")])
def test_count_has_its_plural(n: int, words: str) -> None:
    assert study.count(n, "scan") == words


def test_every_attempt_of_a_remedied_training_is_told(make_run: Callable[..., Path]) -> None:
    run_folder = make_run()
    assert len(study.training_section(study.read_run(run_folder)).sheets) == 1
    tried = [
        {"number": 0, "change": "", "failures": ["posterior collapse"], "validation_fvu": 0.99},
        {"number": 1, "change": "posterior collapse: beta is 1", "failures": [], "validation_fvu": 0.7},
    ]
    write_json(run_folder / "model" / "attempts.json", {"chosen": 1, "attempts": tried})
    sheet = study.training_section(study.read_run(run_folder)).sheets[1]
    assert [row[1].text for row in sheet.rows] == ["as asked for", "posterior collapse: beta is 1"]
    assert [row[2].text for row in sheet.rows] == ["posterior collapse", "none"]
    assert [row[4].text for row in sheet.rows] == ["", "kept"]
