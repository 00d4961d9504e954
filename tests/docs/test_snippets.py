"""Every snippet of README.md and docs/ runs, and prints what the page says it prints.

    ```python     the blocks under one heading run in order, in one namespace and one directory
    ```console    lines beginning with `$ ` are run by bash, with `streamlog` on the PATH; the rest is output
    ```text       directly behind a python block: what it prints; `...` stands for anything
    <!-- not run: REASON -->     directly before a block leaves it out

A python block that defines `test_` functions is given to pytest as well.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from streamlog.client.cluster import close_all

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "console", "text", "bash", "mermaid", ""}
CONSOLE_SECONDS = 60

FENCE = re.compile(r"^```(\S*)$")
NOT_RUN = re.compile(r"^<!-- not run:(.*)-->$")


class Block(NamedTuple):
    """A fenced block and where its first line of text is."""

    language: str
    line: int
    text: str
    shown: str | None = None
    """The text block directly behind it."""


class Section(NamedTuple):
    """The blocks under one heading."""

    page: str
    heading: str
    blocks: list[Block]

    @property
    def name(self) -> str:
        return f"{self.page}:{self.heading}"


def sections(page: str, text: str) -> list[Section]:
    """The sections of a page that have something to run. Raises ValueError where a rule above is broken."""
    found = [Section(page, "", [])]
    lines = text.splitlines()
    at, skip = 0, False
    behind = -1  # the line behind the last python block, as long as only empty lines follow
    while at < len(lines):
        line = lines[at]
        marker, fence = NOT_RUN.match(line), FENCE.match(line)
        if line.startswith("```") and fence is None:
            raise ValueError(f"{page}:{at + 1}: a fence with more than a language: {line}")
        if fence is None:
            if marker:
                if not marker[1].strip():
                    raise ValueError(f"{page}:{at + 1}: say why it is not run")
                skip = True
            elif line.startswith("#"):
                found.append(Section(page, line.lstrip("# "), []))
            if line and not marker:
                behind = -1
            at += 1
            continue
        end = lines.index("```", at + 1)
        block = Block(fence[1], at + 2, "\n".join(lines[at + 1 : end]) + "\n")
        if block.language not in LANGUAGES:
            raise ValueError(f"{page}:{at + 1}: unknown language {block.language!r}")
        blocks = found[-1].blocks
        if skip:
            skip = False
        elif block.language == "text" and behind >= 0:
            blocks[-1] = blocks[-1]._replace(shown=block.text)
        elif block.language in ("python", "console"):
            blocks.append(block)
        behind = end if block.language == "python" and blocks and blocks[-1] is block else -1
        at = end + 1
    return [section for section in found if section.blocks]


def matches(shown: str, printed: str) -> bool:
    """Whether the output is what the page shows, `...` with the spaces around it standing for anything."""
    pattern = ".*?".join(re.escape(part) for part in re.split(r" *\.\.\. *", shown.rstrip("\n")))
    return re.fullmatch(pattern, printed.rstrip("\n"), re.DOTALL) is not None


def check_output(where: str, shown: str, printed: str) -> None:
    assert matches(shown, printed), f"{where} shows\n{shown}\nbut it is\n{printed}"


def run_python(section: Section, block: Block, namespace: dict[str, Any]) -> None:
    where = f"{section.page}:{block.line}"
    code = compile("\n" * (block.line - 1) + block.text, str(ROOT / section.page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    if block.shown is not None:
        check_output(where, block.shown, printed.getvalue())
    if re.search(r"^def test_", block.text, re.MULTILINE):
        Path("test_snippet.py").write_text(block.text)
        arguments = ["-q", "-p", "no:cacheprovider", "test_snippet.py"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"


def commands(block: Block) -> Iterator[tuple[int, str, str]]:
    """(line, command, what the page shows of its output)."""
    line, command, shown = 0, "", ""
    for number, text in enumerate(block.text.splitlines(), block.line):
        if text.startswith("$ "):
            if command:
                yield line, command, shown
            line, command, shown = number, text[2:], ""
        else:
            shown += text + "\n"
    if command:
        yield line, command, shown


def run_console(section: Section, block: Block, path: str) -> None:
    for line, command, shown in commands(block):
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            timeout=CONSOLE_SECONDS,
            env={**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"},
        )
        where = f"{section.page}:{line} $ {command}"
        assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
        if shown:
            check_output(where, shown, done.stdout)


def run_section(section: Section, directory: Path) -> None:
    """Run the blocks of a section, in a directory of its own."""
    tools = directory / "tools"
    tools.mkdir()
    shim = tools / "streamlog"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m streamlog "$@"\n')
    shim.chmod(0o755)
    place = directory / "place"
    place.mkdir()
    before = Path.cwd()
    os.chdir(place)
    name = f"snippet_{re.sub(r'[^a-z]+', '_', section.name.lower())}"
    module = type(sys)(name)
    sys.modules[name] = module  # dataclasses and msgspec look up annotations there
    try:
        for block in section.blocks:
            if block.language == "python":
                run_python(section, block, module.__dict__)
            else:
                run_console(section, block, str(tools))
    finally:
        close_all()
        os.chdir(before)
        del sys.modules[name]


ALL = [section for page in PAGES for section in sections(str(page.relative_to(ROOT)), page.read_text())]


@pytest.mark.parametrize("section", ALL, ids=[section.name for section in ALL])
@pytest.mark.filterwarnings("error")
def test_snippets(section: Section, tmp_path: Path) -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    try:
        run_section(section, tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_there_are_snippets() -> None:
    assert {"README.md", "docs/guide.md", "docs/durability.md", "docs/command-line.md"} <= {
        s.page for s in ALL
    }
    assert sum(len(section.blocks) for section in ALL) > 25


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nraise RuntimeError\n```\n",
        "```python\nimport streamlog\nstreamlog.open('/proc/nowhere')\n```\n",
        "```python\ndef test_it():\n    assert False\n```\n",
        "```console\n$ echo one\ntwo\n```\n",
        "```console\n$ false\n```\n",
        "```python\nx = 1\n```\n# Other\n```python\nx\n```\n",
    ],
)
def test_a_wrong_snippet_is_found(text: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, RuntimeError, NameError, OSError)):
        for number, section in enumerate(sections("page.md", text)):
            (tmp_path / str(number)).mkdir()
            run_section(section, tmp_path / str(number))


@pytest.mark.parametrize(
    "text",
    [
        "# A\n```python\nx = 1\n```\n```python\nprint(x)\n```\n\n```text\n1\n```\n",
        "```python\nprint('at', 1700000000000)\n```\n```text\nat ...\n```\n",
        "```console\n$ streamlog --version\nstreamlog ...\n```\n",
        "```python\nprint(1)\n```\nbut never\n```text\n2\n```\n",
    ],
)
def test_a_right_snippet_passes(text: str, tmp_path: Path) -> None:
    [section] = sections("page.md", text)
    run_section(section, tmp_path)


def test_what_is_not_run_says_why() -> None:
    assert sections("page.md", "<!-- not run: needs a network -->\n```python\n1/0\n```\n") == []
    with pytest.raises(ValueError, match="say why"):
        sections("page.md", "<!-- not run: -->\n```python\n1/0\n```\n")
    with pytest.raises(ValueError, match="unknown language"):
        sections("page.md", "```py\n1/0\n```\n")
