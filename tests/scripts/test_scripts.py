"""Every script in a folder beside this file leaves exactly the trace it says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))  # pytest imports by path here, so siblings are not importable by themselves

from group_script import GroupScript  # noqa: E402
from replica_script import ReplicaScript  # noqa: E402
from runner import Command, Interpreter, parse_command, parse_script, run_script  # noqa: E402
from transaction_script import TransactionScript  # noqa: E402

INTERPRETERS: dict[str, Callable[[], Interpreter]] = {
    "group": GroupScript,
    "replica": ReplicaScript,
    "transaction": TransactionScript,
}
"""Area (folder) -> its interpreter. A new area is a folder of scripts and a line here."""

SCRIPTS = sorted(FOLDER.glob("*/*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=[f"{path.parent.name}/{path.stem}" for path in SCRIPTS])
def test_script(path: Path, request: pytest.FixtureRequest) -> None:
    rewrite = bool(request.config.getoption("--rewrite", default=False))
    interpreter = INTERPRETERS[path.parent.name]()
    try:
        differences = run_script(path, interpreter, rewrite=rewrite)
    finally:
        getattr(interpreter, "close", lambda: None)()
    assert not differences, "\n".join(["", *differences])


def test_every_area_has_scripts() -> None:
    assert {path.parent.name for path in SCRIPTS} >= set(INTERPRETERS)


def test_every_script_begins_with_its_story() -> None:
    for path in SCRIPTS:
        assert path.read_text().startswith("# "), f"{path} does not say what it shows"


def test_parse() -> None:
    blocks = parse_script("# A story.\nfirst a b=1 # why\nsecond\n---\nx\n  y\n\n\nthird\n---\n")
    assert [block.commands for block in blocks] == [
        (Command("first", ("a",), {"b": "1"}), Command("second", (), {})),
        (Command("third", (), {}),),
    ]
    assert [block.expected for block in blocks] == [("x", "  y"), ()]
    assert [block.line_number for block in blocks] == [1, 9]
    assert parse_command("  # only a remark") is None


class Echo:
    def run(self, command: Command) -> list[str]:
        return list(command.arguments)


def test_difference_is_told_and_rewrite_repairs_it(tmp_path: Path) -> None:
    path = tmp_path / "echo.txt"
    path.write_text("# Says it back.\necho a b\n---\na\nc\n\necho\n---\nz\n")
    differences = run_script(path, Echo())
    assert "echo.txt:1" in differences
    assert "echo.txt:7" in differences
    assert run_script(path, Echo(), rewrite=True) == []
    assert path.read_text() == "# Says it back.\necho a b\n---\na\nb\n\necho\n---\n(nothing)\n"
    assert run_script(path, Echo()) == []
