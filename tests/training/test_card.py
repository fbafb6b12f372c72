import re
from dataclasses import replace

import numpy as np
import pytest

from nilatent.models import ModelConfig
from nilatent.training.card import Facts, escaped, model_card
from nilatent.training.conditions import Column, Conditions
from nilatent.volumes import Grid

RESULT = {
    "best_epoch": 3,
    "summary": "Best epoch 3 of 9.",
    "validation_fvu": 0.41234,
    "pca_fvu": 0.51234,
    "verdicts": [{"failure": "posterior collapse", "state": "found", "sentence": "2 of 8 <b>active</b>."}],
    "trained_on": {
        "train": {
            "n_scans": 40,
            "n_subjects": 31,
            "n_datasets": 2,
            "age_mean": 61.5,
            "age_sd": 7.2,
            "sex": {"F": 22, "M": 18},
        },
        "validation": {"n_scans": 1, "n_subjects": 1, "n_datasets": 1},
    },
}


@pytest.fixture
def facts() -> Facts:
    return Facts(
        model=ModelConfig(name="vae", n_latent=8, condition=("age_at|scan",), align="score"),
        training={"seed": 17},
        conditions=Conditions((Column("age_at|scan", (), (0.0,), (1.0,)),)),
        grid=Grid((15, 17, 13), np.diag([4.0, 4.0, 4.0, 1.0])),
        n_voxels=1209,
        n_learned=12345,
        n_fixed=678,
        preparation={"recipe": {"fwhm_mm": 8.0, "target": "gm"}, "made": ["gm", "t1"]},
        result=RESULT,
    )


def lines(facts: Facts) -> list[str]:
    return [line.replace("\\", "") for line in model_card(facts).splitlines()]


@pytest.mark.parametrize(
    "line",
    [
        "# Model card: vae",
        "- Latent: 8 values per scan",
        "- Learned weights: 12,345; numbers taken from the training scans: 678",
        "- Scans: 15 x 17 x 13 voxels of 4 mm, 1,209 of them inside the mask",
        "- Told of every scan: age_at|scan",
        "- Pulled to a score: score",
        "- Seed: 17",
        "- 40 scans of 31 subjects from 2 data sets; age 61.5 years (SD 7.2); sex F 22, M 18: moved the weights",
        "- 1 scan of 1 subject from 1 data set: chose the epoch",
        "| recipe fwhm_mm | 8.0 |",
        "| made | gm, t1 |",
        "| This model | 0.4123 |",
        "| PCA of equal size, or the largest that the training scans allow | 0.5123 |",
        "| Mean image | 1.0000 |",
        "- posterior collapse: found. 2 of 8 <b>active</b>.",
        "Best epoch 3 of 9.",
    ],
)
def test_every_fact_stands_in_the_card(facts: Facts, line: str) -> None:
    assert line in lines(facts)


def test_what_it_is_for_and_what_not_and_whose_licence_stand_in_it(facts: Facts) -> None:
    titles = [line for line in lines(facts) if line.startswith("## ")]
    for title in ("Intended use", "What must not be concluded", "Privacy", "Licence", "Software"):
        assert f"## {title}" in titles
    text = " ".join(lines(facts))
    assert "licence of these weights is not specified" in text
    assert re.search(r"- torch \d", text)
    assert "short names such as sub-01 are quickly tried" in text
    assert "trained with the labels of that score" in text


def test_what_is_not_known_is_said(facts: Facts) -> None:
    bare = {key: value for key, value in RESULT.items() if key != "trained_on"}
    text = model_card(replace(facts, preparation=None, result=bare, conditions=Conditions()))
    assert text.count("Not stated by whoever trained it") == 2
    assert "Told of every scan: nothing" in text


def test_a_grid_is_told_as_one(facts: Facts) -> None:
    grid = replace(facts, model=ModelConfig(name="spatial_vae", latent_grid=3, latent_channels=2))
    assert "- Latent: 2 maps of 3 x 3 x 3 cells, 54 values per scan" in lines(grid)


def test_words_from_outside_make_no_marks_of_their_own(facts: Facts) -> None:
    evil = "# x\n| y | <script>alert(1)</script> [a](http://b) `c` *d*"
    assert "\n" not in escaped(evil)
    bare = re.sub(r"\\.", "", escaped(evil))
    assert not set("#|<>[]`*_") & set(bare)
    told = model_card(replace(facts, preparation={evil: evil}))
    assert "<script>" not in told
    row = next(line for line in told.splitlines() if "script" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
