"""A real process that owns a cluster and does what it is told, line by line.

owner = OwnerProcess(path)
owner("cluster.create_topic('t')")         # returns what the expression's repr evaluates to
owner.start("write_forever('t')")          # goes on in the background of that process
owner.kill()                               # SIGKILL
"""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


class OwnerProcess:
    """The parent's side."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(path), repr(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=ROOT,
        )
        self.pid = self.process.pid
        assert self._answer() == "open"

    def __call__(self, expression: str) -> Any:
        """Evaluate in the owner; its value must have a literal repr."""
        self._say(expression)
        return self._answer()

    def start(self, expression: str) -> None:
        """Evaluate in a thread of the owner."""
        self._say("start " + expression)
        assert self._answer() == "started"

    def kill(self) -> None:
        """SIGKILL: no goodbye, no flush."""
        self.process.send_signal(signal.SIGKILL)
        self._reap()

    def close(self) -> None:
        """Close the cluster and leave."""
        if self.process.poll() is None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.stdin = None
        self._reap()

    def _reap(self) -> None:
        self.process.wait(30)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> OwnerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the owner is gone: {self.process.poll()}"
        kind, _, text = line.rstrip("\n").partition(" ")
        assert kind == "ok", text
        return ast.literal_eval(text)


def main() -> None:
    """The child's side."""
    import threading

    sys.path.insert(0, str(ROOT))
    import streamlog
    from streamlog.record import TopicPartition

    cluster = streamlog.open(sys.argv[1], **ast.literal_eval(sys.argv[2]))
    stopping = threading.Event()

    def write(topic: str, start: int, count: int, partition: int = 0, size: int = 0) -> int:
        with cluster.producer() as producer:
            for number in range(start, start + count):
                producer.send(
                    topic, b"%d" % number + b" " * size, key=b"%d" % (number % 10), partition=partition
                )
        return cluster.topic(topic)[partition].high_watermark

    def write_forever(topic: str, size: int = 0) -> None:
        number = 0
        while not stopping.is_set():
            write(topic, number, 10, size=size)
            number += 10

    def churn(topic: str) -> None:
        """Delete and make a topic anew, again and again: the values say which one it is."""
        generation = 0
        while not stopping.is_set():
            cluster.create_topic(topic)
            with cluster.producer() as producer:
                for number in range(50):
                    producer.send(topic, b"%d %d" % (generation, number))
            cluster.delete_topic(topic)
            generation += 1

    def clean_forever() -> None:
        while not stopping.is_set():
            cluster.clean()

    def join(group: str, topic: str) -> list[str]:
        member = cluster.consumer_group(group, [topic]).consumer()
        while not member.assignment:
            member.poll(0.05)
        members.append(member)
        return [f"{tp.topic}-{tp.partition}" for tp in sorted(member.assignment)]

    def commit(group: str, topic: str, offset: int) -> None:
        consumer = cluster.consumer(group_id=group)
        consumer.assign([(topic, 0)])
        consumer.commit({TopicPartition(topic, 0): offset})
        consumer.close()

    members: list[Any] = []
    names = {
        "cluster": cluster, "write": write, "write_forever": write_forever, "churn": churn,
        "clean_forever": clean_forever, "join": join, "commit": commit, "members": members,
    }  # fmt: skip
    print("ok 'open'", flush=True)
    for line in sys.stdin:
        background = line.startswith("start ")
        code = compile(line.removeprefix("start ").strip(), "<told>", "eval")
        try:
            if background:
                threading.Thread(target=eval, args=(code, names), daemon=True).start()
                value: Any = "started"
            else:
                value = eval(code, names)
            print(
                "ok",
                repr(value) if isinstance(value, int | str | bytes | list | tuple | None) else None,
                flush=True,
            )
        except Exception as error:
            print("failed", repr(error), flush=True)
    stopping.set()
    cluster.close()


if __name__ == "__main__":
    main()
