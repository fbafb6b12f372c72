import base64
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.errors import SettingError
from nilatent.finding import Finding, not_run
from nilatent.plots import strip
from nilatent.report import page
from nilatent.report.slider import Slider, direction_sliders, slider_script, write_slider

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ("--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run")


def slider(label: str = "+1 SD", **changed: object) -> Slider:
    frames = []
    for inches in (1.0, 1.0, 1.0):
        frames.append(strip.to_png(matplotlib.figure.Figure(figsize=(2.2, inches))))
    given = {"name": "one", "what": "Step", "labels": ("-1 SD", "mean", label), "frames": tuple(frames), "start": 1}
    return Slider(**(given | {"caption": "What is seen."} | changed))


def written(shown: Slider, folder: Path, *, words: str = "It changes.") -> str:
    effects = page.sheet(pd.DataFrame({"region": [words], "change": [-1.5]}), "Regions", names={})
    path = write_slider(shown, folder / "slider.html", title=words, verdict=words, notes=[words], effects=effects)
    return path.read_text(encoding="utf-8")


def test_every_frame_is_inside_with_its_label(tmp_path: Path) -> None:
    shown = slider()
    html = written(shown, tmp_path)
    for frame, label in zip(shown.frames, shown.labels, strict=True):
        assert base64.b64encode(frame).decode() in html
        assert f'alt="Step: {label}"' in html
    assert 'min="0" max="2" step="1" value="1"' in html
    assert '<label for="slider-one-step">Step</label>' in html
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)
    assert (shown.width, shown.height) == (211, 96)


def test_its_own_scripts_may_run_and_nothing_else(tmp_path: Path) -> None:
    html = written(slider(), tmp_path)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert slider_script() in scripts
    assert "default-src &#39;none&#39;" in policy
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy.replace("&#43;", "+")
    assert policy.count("sha256-") == len(scripts) == 2
    assert not re.search(r"<[^>]* on[a-z]+=", html.split("<script>")[0])


def test_text_from_data_is_text(tmp_path: Path, hostile: str) -> None:
    html = written(slider(hostile, what=hostile, caption=hostile), tmp_path, words=hostile)
    assert "<img src=x" not in html
    assert html.count("</script>") == 2


@pytest.mark.parametrize(
    "changed",
    [{"labels": ("a", "b")}, {"start": 3}, {"start": -1}, {"labels": (), "frames": (), "start": 0}],
)
def test_what_shows_nothing_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(SettingError, match="a label for every frame"):
        slider(**changed)


@pytest.mark.parametrize("name", ["", 'a" onload="x', "ä", "a b"])
def test_a_name_is_one_that_a_page_can_hold(name: str) -> None:
    with pytest.raises(SettingError, match="letters, digits"):
        slider(name=name)


@pytest.fixture
def sensitivity(rng: np.random.Generator) -> Finding:
    n, steps = 3, [-1.0, 0.0, 1.0]
    data = xr.Dataset(
        {
            "axial": (("shown", "step", "x", "y"), rng.random((n, 3, 5, 6))),
            "coronal": (("shown", "step", "x", "z"), rng.random((n, 3, 5, 4))),
            "axial_change": (("shown", "step", "x", "y"), rng.normal(size=(n, 3, 5, 6))),
            "coronal_change": (("shown", "step", "x", "z"), rng.normal(size=(n, 3, 5, 4))),
            "axial_mm": ("shown", [1.0, 5.0, 9.0]),
            "coronal_mm": ("shown", [-3.0, 1.0, 5.0]),
            "shown_unit": ("shown", ["10 years", "a minus b", "1 SD"]),
            "kind": ("direction", ["latent", "covariate", "group", "component"]),
        },
        coords={
            "shown": ["age", "group:a:b", "pc1"],
            "direction": ["z000", "age", "group:a:b", "pc1"],
            "step": steps,
            "x": np.arange(5) * 4.0 - 8,
            "y": np.arange(6) * 4.0 - 8,
            "z": np.arange(4) * 4.0 - 8,
        },
    )
    return Finding("sensitivity", "Q?", "A.", pd.DataFrame(), data, {}, (), 9, 9)


def test_groups_and_covariates_of_a_finding_have_sliders(sensitivity: Finding) -> None:
    found = direction_sliders(sensitivity)
    assert [one.what for one in found] == ["age", "group:a:b"]
    assert found[0].labels == ("−1 × (10 years)", "middle", "+1 × (10 years)")
    assert len({frame for one in found for frame in one.frames}) == 6
    assert direction_sliders(not_run("sensitivity", "Q?", "too few")) == ()


def test_a_step_of_a_direction_is_drawn_with_the_scales_of_all(sensitivity: Finding) -> None:
    drawn = [strip.draw_direction(sensitivity, "age", step) for step in (-1.0, 1.0)]
    panels = [[axes for axes in one.axes if axes.images and axes.get_label() != "<colorbar>"] for one in drawn]
    for row, step in zip(panels, (-1.0, 1.0), strict=True):
        one = sensitivity.data.sel(shown="age", step=step)
        for axes, name in zip(row, ("axial", "coronal", "axial_change", "coronal_change"), strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), one[name].values.T)
        assert row[0].images[0].get_extent() == [-10, 10, -10, 14]
    for first, last in zip(*panels, strict=True):
        assert first.images[0].norm.vmax == last.images[0].norm.vmax


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_shows_the_first_step_alone_and_keys_move_it(tmp_path: Path, hostile: str) -> None:
    html = written(slider(hostile), tmp_path)
    # What a key does to the input, by a script of the test's own, which the page would not allow.
    moved = html.replace(slider_script(), slider_script() + MOVE).replace("script-src", "script-src 'unsafe-inline'")
    moved = re.sub(r"'?(?:&#39;)?sha256-[^ ;]*", "", moved)
    for name, text, hidden in (("still", html, [True, False, True]), ("moved", moved, [True, True, False])):
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
        command = [str(CHROMIUM), *OPTIONS, "--virtual-time-budget=3000", "--enable-logging=stderr", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / f"{name}.html").as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True, env=os.environ)
        if name == "still":
            assert "CONSOLE" not in done.stderr.decode(errors="replace")
        frames = re.findall(r'<div class="frame"[^>]*?( hidden="")?>', done.stdout.decode())
        assert [bool(frame) for frame in frames] == hidden


MOVE = """
const range = document.querySelector("input[type=range]");
range.stepUp();
range.dispatchEvent(new Event("input"));
"""
