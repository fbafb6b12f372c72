"""Every figure that a test of a plot makes must keep its text legible in the widest column of a journal."""

from collections.abc import Iterator

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from nilatent.plots import style


@pytest.fixture(autouse=True)
def legible_in_print(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: list[Figure] = []
    figure = style.figure

    def kept(width: float, height: float) -> Figure:
        made.append(figure(width, height))
        return made[-1]

    monkeypatch.setattr(style, "figure", kept)
    yield
    for drawn in made:
        reduced = min(1.0, style.COLUMN_INCHES / drawn.get_figwidth())
        texts = [text for text in drawn.findobj(Text) if isinstance(text, Text) and text.get_text().strip()]
        small = {
            f"{text.get_text()!r}: {text.get_fontsize() * reduced:.1f} pt"
            for text in texts
            if text.get_fontsize() * reduced < style.SMALLEST_POINTS
        }
        assert not small, f"too small at 180 mm: {sorted(small)}"
