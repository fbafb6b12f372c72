from types import SimpleNamespace

import pytest

from nilatent import progress
from nilatent.progress import follow, track


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
    # The module's own view of the clock: threads of other tests go on reading the real one.
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert list(track("abcd", total=4, label="pack")) == list("abcd")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["pack: 2 of 4, about 1 min 10 s left", "pack: 4 of 4, about 0 s left"]


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


def test_what_there_is_to_say_of_an_item_is_said_when_it_comes(monkeypatch, capsys):
    seen = []
    for item in track("abc", total=3, label="x", note=lambda item: "b is\nbroken" if item == "b" else ""):
        seen.append((item, capsys.readouterr().err))
    assert seen == [("a", ""), ("b", "b is broken\n"), ("c", "")]
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(track("abc", total=3, label="x", note=lambda item: "[b] broken" if item == "b" else "")) == [
        "a",
        "b",
        "c",
    ]
    assert terminal.text.count("[b] broken") == 1


def test_the_estimate_counts_what_is_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 1.0)
    clock = iter([0.0, 3600.0, 7200.0])
    # The module's own view of the clock: threads of other tests go on reading the real one.
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    list(track("ab", total=5, label="prepare"))
    assert capsys.readouterr().err.splitlines() == [
        "prepare: 1 of 5, about 4 h 0 min left",
        "prepare: 2 of 5, about 3 h 0 min left",
    ]


def test_the_end_says_how_many_were_done_kept_and_failed(capsys):
    broken = ValueError("no brain")
    outcomes = [("sub-1", None, 10.0), ("sub-2", broken, 0.0), ("sub-3", None, 20.0)]
    failed = follow(outcomes, total=3, kept=7, label="prepare", reason=lambda job, error: f"{job}: {error}")
    assert failed == [("sub-2", broken)]
    assert capsys.readouterr().err.splitlines() == [
        "failed: sub-2: no brain",
        "prepare: 2 done, 7 were done already, 1 failed; 0 s, 15.0 processor seconds each",
    ]
    assert follow([], total=0, kept=7, label="prepare", reason="{}{}".format) == []
    assert capsys.readouterr().err == "prepare: 0 done, 7 were done already, 0 failed; 0 s\n"
