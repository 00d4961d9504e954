"""Tables, sizes and streams."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from streamlog.cli.terminal import Terminal, duration, is_number, show, size, when


class Screen(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Terminal, Screen, Screen]]:
    def make(**options: bool) -> tuple[Terminal, Screen, Screen]:
        out, err = Screen(), Screen()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return Terminal(**options), out, err

    return make


def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "rich" or name.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)


def test_a_plain_table(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    terminal = Terminal()
    terminal.table(("name", "count", "stored"), [("a", 12345, "1.0 kB"), ("long name", None, "-")], "title")
    terminal.flush()
    assert capsysbinary.readouterr().out == (
        b"title\nname        count  stored\na          12,345  1.0 kB\nlong name       -       -\n"
    )


def test_a_table_on_a_terminal_uses_rich(screen: Callable[..., tuple[Terminal, Screen, Screen]]) -> None:
    pytest.importorskip("rich")
    terminal, out, _ = screen()
    terminal.line("before")
    terminal.table(("name", "count"), [("[b]not markup[/b]", 7)], "title")
    assert out.text.startswith("before\n")
    assert "[b]not markup[/b]" in out.text and "─" in out.text


def test_and_without_rich_plain_text(
    screen: Callable[..., tuple[Terminal, Screen, Screen]], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_rich(monkeypatch)
    terminal, out, _ = screen()
    terminal.table(("name", "count"), [("a", 7)])
    terminal.flush()
    assert out.text == "name  count\na         7\n"


def test_documents(
    screen: Callable[..., tuple[Terminal, Screen, Screen]], capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    terminal, out, _ = screen()
    terminal.document({"a": [1]})
    terminal.flush()
    assert out.text == '{\n  "a": [\n    1\n  ]\n}\n', "indented for people"


def test_notes_and_warnings(screen: Callable[..., tuple[Terminal, Screen, Screen]]) -> None:
    terminal, out, err = screen(quiet=True)
    terminal.note("unimportant")
    terminal.warn("important \udcff")
    assert (out.text, err.text) == ("", "important \\udcff\n")
    assert not terminal.shows_progress
    assert screen()[0].shows_progress and not screen(json=True)[0].shows_progress


def test_cells() -> None:
    assert [show(cell) for cell in (None, True, 1234567, 1.5, [], [1, 2], "x")] == [
        "-",
        "yes",
        "1,234,567",
        "1.50",
        "-",
        "1,2",
        "x",
    ]
    assert [is_number(cell) for cell in ("-", "12", "-3", "1.2 kB", "a1", "2024-05-01 10:00", "")] == [
        *(True, True, True, True),
        *(False, False, False),
    ]


def test_words() -> None:
    assert [size(count) for count in (0, 999, 1000, 171239, 5e6, 7e9, 3e12)] == [
        *("0 B", "999 B", "1.0 kB", "171.2 kB", "5.0 MB", "7.0 GB", "3.0 TB")
    ]
    assert [duration(ms) for ms in (0.4, 12, 1250, 185_000)] == ["0 ms", "12 ms", "1.25 s", "3:05 min"]
    assert when(-1) == "-"
    assert when(1_700_000_000_123).endswith(".123") and len(when(0)) == 23
