"""Runs golden scripts: a story, commands, and the trace they must leave.

    # The story: what this script shows, in a line or two.
    command argument key=value      # a remark
    command
    ---
    the full expected output

    command ...

Blocks are separated by blank lines; each runs against the state the block before left behind. The folder of
a script names its area, and the area its interpreter (`INTERPRETERS` in test_scripts.py): a fresh object
per script with one method `run`.

Rewrite the expected outputs with `pytest tests/scripts --rewrite`, and commit the diff only if you
understand it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

NO_OUTPUT = "(nothing)"


class Command(NamedTuple):
    """One line: `advance_ms 500`, `join alice topics=orders`. A bare word is an argument or a flag, as the
    command likes."""

    name: str
    arguments: tuple[str, ...]
    options: dict[str, str]

    def option(self, name: str, default: str) -> str:
        return self.options.get(name, default)

    def number(self, name: str, default: int) -> int:
        return int(self.options.get(name, default))

    def flag(self, name: str) -> bool:
        return name in self.arguments


class Interpreter(Protocol):
    def run(self, command: Command) -> Iterable[str]:
        """Do it; the lines are its output."""
        ...


class Block(NamedTuple):
    lines: tuple[str, ...]
    """As written, remarks included."""
    commands: tuple[Command, ...]
    expected: tuple[str, ...]
    line_number: int


def parse_command(line: str) -> Command | None:
    words = shlex.split(line, comments=True)
    if not words:
        return None
    options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    return Command(words[0], tuple(word for word in words[1:] if "=" not in word), options)


def parse_script(text: str) -> list[Block]:
    blocks: list[Block] = []
    lines: list[str] = []
    expected: list[str] | None = None

    def finish(line_number: int) -> None:
        nonlocal lines, expected
        if lines:
            commands = tuple(command for command in map(parse_command, lines) if command)
            start = line_number - len(lines) - (len(expected) + 1 if expected is not None else 0)
            blocks.append(Block(tuple(lines), commands, tuple(expected or ()), start))
        lines, expected = [], None

    number = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            finish(number)
        elif line.strip() == "---" and expected is None:
            expected = []
        elif expected is not None:
            expected.append(line.rstrip())
        else:
            lines.append(line.rstrip())
    finish(number + 1)
    return blocks


def run_block(interpreter: Interpreter, block: Block) -> tuple[str, ...]:
    output = tuple(line.rstrip() for command in block.commands for line in interpreter.run(command))
    return output or ((NO_OUTPUT,) if block.commands else ())


def run_script(path: Path, interpreter: Interpreter, *, rewrite: bool = False) -> list[str]:
    """Run the script; returns the differences as readable lines, none if all is as expected (or was
    rewritten)."""
    parts: list[str] = []
    differences: list[str] = []
    for block in parse_script(path.read_text()):
        output = run_block(interpreter, block)
        if output != block.expected:
            differences += [f"{path.name}:{block.line_number}", *block.lines, "--- expected", *block.expected]
            differences += ["--- got", *output, ""]
        parts.append("\n".join([*block.lines, *(("---", *output) if block.commands else ())]))
    if rewrite:
        path.write_text("\n\n".join(parts) + "\n")
        return []
    return differences
