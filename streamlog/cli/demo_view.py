"""What the demo shows while it runs: a live table on a terminal with rich, plain lines otherwise, nothing
for programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from streamlog.cli.demo_process import GROUP, PARTITIONS, TOPIC
from streamlog.cli.terminal import Terminal
from streamlog.wording import plural

if TYPE_CHECKING:
    from streamlog.cli.demo_proof import Verdict

LOUD: Final = ("KILLED", "CRASH", "CUT", "PAUSE")
"""Sentences that begin so stand out."""
STEP: Final = 0.1
"""Without a live view, progress is told when so much more is read."""


class View:
    """Follows the story and shows nothing of it."""

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close()

    def begin(self, total: int) -> None:
        """So many lines there are."""

    def say(self, text: str) -> None:
        """The next sentence of the story."""

    def show(self, event: dict[str, Any]) -> None:
        """Something happened in the application."""
        told = sentence(event)
        if told:
            self.say(told)

    def killed(self) -> None:
        """Nobody reads any more."""

    def close(self) -> None:
        """The story is over."""


def sentence(event: dict[str, Any]) -> str:
    """What an event means, in words; nothing for those that only move numbers."""
    match event["event"]:
        case "joins":
            return f"{event['reader']} joins the group."
        case "leaves":
            return f"{event['reader']} commits and leaves the group."
        case "assigned" if event["partitions"]:
            some = event["partitions"]
            return (
                f"  {event['reader']} reads {'partition' if len(some) == 1 else 'partitions'} "
                f"{', '.join(map(str, some))}"
            )
        case "done":
            return "Everything is written, read and committed; the process ends by itself."
        case _:
            return ""


class PlainView(View):
    """One line after the other."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._total = 1
        self._shown = 0.0

    def begin(self, total: int) -> None:
        self._total = total

    def say(self, text: str) -> None:
        self._terminal.line(text)
        self._terminal.flush()

    def show(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            share = event["delivered"] / self._total
            if share >= self._shown + STEP:
                self._shown = share - share % STEP
                self.say(
                    f"  {share:4.0%}  {event['written']:,} written, {event['delivered']:,} read, "
                    f"{sum(event['committed']):,} committed"
                )
        super().show(event)


class LiveView(View):
    """The story scrolls; below it bars and a table of the partitions move."""

    def __init__(self, terminal: Terminal) -> None:
        from rich.console import Console
        from rich.live import Live

        terminal.flush()
        self._console = Console(highlight=False)
        self._total = 1
        self._now = self._at_first()
        self._live = Live(self._picture(), console=self._console, refresh_per_second=12, transient=True)
        self._live.start()

    def _at_first(self) -> dict[str, Any]:
        """What is shown before anything has happened."""
        return {
            "written": 0,
            "delivered": 0,
            "ends": [0] * PARTITIONS,
            "committed": [0] * PARTITIONS,
            "owners": [""] * PARTITIONS,
        }

    def begin(self, total: int) -> None:
        self._total = total

    def say(self, text: str) -> None:
        from rich.text import Text

        style = "bold red" if text.startswith(LOUD) else "dim" if text.startswith(" ") else ""
        self._live.console.print(Text(text, style=style))

    def show(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            self._now = event
        self._live.update(self._picture())
        super().show(event)

    def killed(self) -> None:
        self._now = {**self._now, "owners": [""] * PARTITIONS}
        self._live.update(self._picture())

    def close(self) -> None:
        self._live.stop()

    def _picture(self) -> Any:
        from rich import box
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = self._now
        bars = Table.grid(padding=(0, 1))
        for name, done in (
            ("written", now["written"]),
            ("read", now["delivered"]),
            ("committed", sum(now["committed"])),
        ):
            bars.add_row(
                Text(name),
                ProgressBar(self._total, done, width=44),
                Text(f"{done:,} of {plural(self._total, 'line')}"),
            )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column, justify in (
            ("partition", "left"),
            ("in the log", "right"),
            ("committed", "right"),
            ("lag", "right"),
            ("read by", "left"),
        ):
            table.add_column(column, justify=justify, min_width=9)  # type: ignore[arg-type]
        for number, (end, committed, owner) in enumerate(
            zip(now["ends"], now["committed"], now["owners"], strict=True)
        ):
            lag = end - committed
            table.add_row(
                f"{TOPIC}-{number}",
                f"{end:,}",
                f"{committed:,}",
                Text(f"{lag:,}", style="yellow" if lag else "green"),
                owner or Text("-", style="dim"),
            )
        return Group(
            Text(),
            bars,
            table,
            Text(f"group {GROUP!r}: each partition is read by one of its members", style="dim"),
        )


def make_view(
    terminal: Terminal,
    plain: Callable[[Terminal], View] = PlainView,
    live: Callable[[Terminal], View] = LiveView,
) -> View:
    """The view that fits where the output goes."""
    if terminal.json or terminal.quiet:
        return View()
    if terminal.is_terminal:
        try:
            return live(terminal)
        except ImportError:
            pass
    return plain(terminal)


def tell_verdict(
    terminal: Terminal,
    rows: list[tuple[str, int, str]],
    proof: Verdict,
    proved: str,
    between: Iterable[str] = (),
) -> None:
    """The counts, and what they prove; where they contradict each other, nothing is said of what they mean.

    between: lines below the counts.
    """
    terminal.line()
    terminal.table(("proof", "count", ""), rows if proof.holds else [(*row[:2], "") for row in rows])
    for line in between:
        terminal.line(line)
    terminal.line()
    terminal.line(proved if proof.holds else "NOT PROVED: " + "; ".join(proof.contradictions))
