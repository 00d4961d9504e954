"""What `streamlog demo cluster` shows: who leads each partition, who is in sync, how far each replica is.

On a terminal with rich a table that moves below the story; elsewhere the story, and a line of numbers after each act.
"""

from __future__ import annotations

from typing import Any, Final

from streamlog.cli.demo_cluster_traffic import GROUP, TOPIC
from streamlog.cli.demo_view import LiveView, PlainView

STATE_STYLES: Final = {"running": "green", "paused": "yellow", "down": "red"}


def numbers(now: dict[str, Any]) -> str:
    """A moment of the cluster in one line."""
    leaders = " ".join("-" if p["leader"] is None else str(p["leader"]) for p in now["partitions"])
    in_sync = " ".join(f"{len(p['isr'])}/{len(p['replicas'])}" for p in now["partitions"])
    return (
        f"  leaders {leaders}; in sync {in_sync}; {now['acked']:,} acked ({now['acks_per_second']:,.0f}/s), "
        f"{now['delivered']:,} read"
    )


class PlainClusterView(PlainView):
    """One line after the other."""

    def show(self, event: dict[str, Any]) -> None:
        """Only the last moment of an act is worth a line."""
        if event["event"] == "act":
            self.say(numbers(event))


class LiveClusterView(LiveView):
    """The story scrolls; below it the brokers and the partitions move."""

    def _at_first(self) -> dict[str, Any]:
        return {
            "brokers": [],
            "partitions": [],
            "acked": 0,
            "acks_per_second": 0.0,
            "delivered": 0,
            "network": "",
        }

    def say(self, text: str) -> None:
        super().say(text)
        self._last = text.strip()

    def show(self, event: dict[str, Any]) -> None:
        self._now = event
        self._live.update(self._picture())

    _last = ""

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        now = self._now
        brokers = Text("brokers  ")
        for broker in now["brokers"]:
            role = " controller" if broker["is_controller"] else ""
            brokers.append(
                f"{broker['id']} {broker['state']}{role}   ", style=STATE_STYLES.get(broker["state"], "")
            )
        perfect = now["network"] in ("", "<Network perfect>")
        brokers.append("" if perfect else now["network"].strip("<>"), style="bold red")
        counts = Text(
            f"{now['acks_per_second']:8,.0f} acks/s   {now['acked']:,} acked   "
            f"{now['delivered']:,} read by {GROUP!r}"
        )
        last = Text(self._last, style="dim", overflow="ellipsis", no_wrap=True)
        return Group(Text(), brokers, self._table(), counts, last)

    def _table(self) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        now = self._now
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("partition")
        table.add_column("leader", justify="right")
        table.add_column("in sync")
        table.add_column("high watermark", justify="right")
        for broker in now["brokers"]:
            table.add_column(f"log end at {broker['id']}", justify="right")
        for number, partition in enumerate(now["partitions"]):
            leader, isr, replicas = partition["leader"], partition["isr"], partition["replicas"]
            cells = [
                Text(f"{TOPIC}-{number}"),
                Text("-" if leader is None else str(leader), style="bold"),
                Text(",".join(map(str, isr)), style="green" if len(isr) >= len(replicas) else "yellow"),
                Text(f"{partition['high_watermark']:,}"),
            ]
            for broker in now["brokers"]:
                end = partition["ends"].get(broker["id"])
                style = "bold" if broker["id"] == leader else "" if broker["id"] in isr else "red"
                cells.append(Text("" if end is None else f"{end:,}", style=style))
            table.add_row(*cells)
        return table
