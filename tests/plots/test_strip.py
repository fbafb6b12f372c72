import io

import numpy as np
import pytest
from PIL import Image

from nilatent.errors import GridError
from nilatent.plots import strip, style

AFFINE = np.array([[4.0, 0, 0, -28], [0, 4, 0, -50], [0, 0, 4, -20], [0, 0, 0, 1]])


def made(rng: np.random.Generator, *, n: int = 3, **changed: object) -> strip.Strip:
    values = rng.random((n, 9, 10, 8))
    mask = np.ones((9, 10, 8), dtype=bool)
    mask[0] = False
    given = {
        "title": "along $x$",
        "labels": tuple(f"step {number}" for number in range(n)),
        "values": values,
        "differences": np.where(mask, values - values[0], np.nan),
        "affine": AFFINE,
        "positions_mm": (-12.0, -30.0, -8.0),
        "unit": "grey matter",
        "reference": "step 0",
    }
    return strip.Strip(**(given | changed))


def panels(drawn) -> list:
    return [axes for axes in drawn.axes if axes.images and axes.get_label() != "<colorbar>"]


def test_every_step_stands_above_its_difference(rng: np.random.Generator) -> None:
    one = made(rng)
    grid = np.array(panels(strip.draw(one))).reshape(4, 3)
    index = round((-8.0 - AFFINE[2, 3]) / 4)
    for step in range(3):
        np.testing.assert_array_equal(grid[0, step].images[0].get_array(), one.values[step, :, :, index].T)
        shown = np.ma.filled(grid[1, step].images[0].get_array().astype(float), np.nan)
        np.testing.assert_array_equal(shown, one.differences[step, :, :, index].T)
        assert grid[0, step].get_title(loc="left") == f"step {step}"


def test_scales_are_the_same_in_all_frames_and_about_zero(rng: np.random.Generator) -> None:
    one = made(rng)
    norms = [panels(strip.draw_frame(one, step))[place].images[0].norm for step in (0, 2) for place in (0, 3)]
    assert (norms[0].vmin, norms[0].vmax) == (norms[2].vmin, norms[2].vmax) == (0, one.values.max())
    assert (norms[1].vmin, norms[1].vmax) == (norms[3].vmin, norms[3].vmax)
    assert norms[1].vmin == -norms[1].vmax < 0


def test_many_steps_are_thinned_out_and_keep_their_ends(rng: np.random.Generator) -> None:
    titles = [axes.get_title(loc="left") for axes in panels(strip.draw(made(rng, n=23)))[: strip.MAX_COLUMNS]]
    assert (titles[0], titles[-1], len(set(titles))) == ("step 0", "step 22", strip.MAX_COLUMNS)


def test_a_step_without_change_is_drawn(rng: np.random.Generator) -> None:
    still = made(rng, differences=np.zeros((3, 9, 10, 8)))
    assert still.change.vmax == 1
    assert len(panels(strip.draw_frame(still, 1))) == 6


def test_text_is_shown_as_it_is(rng: np.random.Generator) -> None:
    assert "along $x$" in style.to_svg(strip.draw(made(rng)))


def test_png_is_the_same_again(rng: np.random.Generator) -> None:
    one = made(rng)
    first, same = (strip.to_png(strip.draw_frame(one, 0), dpi=50) for _ in range(2))
    assert first == same
    assert first != strip.to_png(strip.draw_frame(one, 1), dpi=50)


def test_gif_goes_there_and_back_without_end() -> None:
    frames = []
    for level in (0, 80, 160, 240):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 6), (level, level, 0)).save(buffer, format="PNG")
        frames.append(buffer.getvalue())
    gif = Image.open(io.BytesIO(strip.to_gif(frames)))
    levels = []
    for number in range(gif.n_frames):
        gif.seek(number)
        levels.append(gif.convert("RGB").getpixel((3, 3))[0])
    np.testing.assert_allclose(levels, [0, 80, 160, 240, 160, 80], atol=4)
    assert gif.info["loop"] == 0


def test_parts_that_do_not_belong_together_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(GridError, match="one label, image and difference per step"):
        made(rng, labels=("a", "b"))
