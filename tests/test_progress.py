import pytest

from nilatent import progress
from nilatent.progress import track


class Terminal:
    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass


@pytest.mark.parametrize("items", [[], [3, 1, 2], range(5)])
def test_items_pass_unchanged_and_in_order(items):
    assert list(track((item for item in items), total=len(items), label="count")) == list(items)


def test_items_pass_unchanged_on_a_terminal_under_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(track("abc", total=3, label="prepare")) == ["a", "b", "c"]
    assert "prepare" in terminal.text
    assert "3/3" in terminal.text


def test_items_are_drawn_one_at_a_time():
    drawn = []
    stream = track((drawn.append(item) or item for item in range(3)), total=3, label="x")
    assert next(stream) == 0
    assert drawn == [0]


def test_elsewhere_it_prints_lines_with_what_is_left(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 70.0, 80.0, 140.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(track("abcd", total=4, label="pack")) == list("abcd")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["pack: 2 of 4, about 1 min left", "pack: 4 of 4, about 0 min left"]


def test_the_interval_sets_how_often(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    list(track("abc", total=3, label="pack"))
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_an_error_in_the_work_is_not_swallowed():
    def broken():
        yield 1
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        list(track(broken(), total=2, label="x"))
