"""Progress bars."""

from __future__ import annotations

import io
import sys

import pytest

from streamlog.cli.progress import PlainProgress, Progress, RichProgress, make_progress


def test_nothing_where_nobody_looks() -> None:
    stream = io.StringIO()
    with make_progress(stream, False, "working", 10, "lines") as progress:
        progress.advance(3)
    assert type(progress) is Progress and stream.getvalue() == ""


def test_rich_if_it_is_there() -> None:
    pytest.importorskip("rich")
    stream = io.StringIO()
    for unit in ("bytes", "records"):
        with make_progress(stream, True, "working", 10, unit) as progress:
            assert isinstance(progress, RichProgress)
            progress._drawn_ms -= 1000
            progress.advance(3)
            assert progress._progress.tasks[0].completed == 3


def test_plain_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "rich" or name.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    stream = io.StringIO()
    with make_progress(stream, True, "working", 10, "lines") as progress:
        assert isinstance(progress, PlainProgress)
        progress.advance(1)
        assert stream.getvalue() == "", "not at every step"
        progress._drawn_ms -= 1000
        progress.advance(4)
        assert stream.getvalue().startswith("\rworking [##############..............]  50% 5 lines (")
    assert stream.getvalue().endswith(" \r"), "the line is wiped at the end"


def test_text() -> None:
    progress = PlainProgress(io.StringIO(), "reading", None, "records")
    progress.advance(5000)
    assert progress.text(1000) == "reading 5,000 records (5,000/s)"
    beyond = PlainProgress(io.StringIO(), "reading", 10, "records")
    beyond.advance(20)
    assert "100%" in beyond.text(1)
