"""The parser."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from streamlog.cli.arguments import (
    COMMANDS,
    DIRECTORY_DEFAULT,
    build_parser,
    closest,
    key_value,
    seconds,
    whole,
)
from streamlog.cli.failures import UsageError


def test_shared_options_stand_before_or_behind() -> None:
    parser = build_parser()
    for given in (["--dir", "x", "--json", "topics", "list"], ["topics", "list", "--json", "-d", "x"]):
        parsed = parser.parse_args(given)
        assert (parsed.dir, parsed.json, parsed.debug, parsed.quiet) == ("x", True, False, False)
    assert parser.parse_args(["verify"]).dir is DIRECTORY_DEFAULT


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["topic", "list"], ["no command 'topic'", "did you mean 'topics'?", "streamlog --help"]),
        (["topics", "lst"], ["no command 'lst'", "did you mean 'list'?", "streamlog topics --help"]),
        (["zzz"], ["no command 'zzz'", "there are demo, topics"]),
        (["topics", "create"], ["TOPIC", "streamlog topics create --help"]),
        (["produce", "t", "--compresion", "zstd"], ["--compresion"]),
        (["produce", "t", "--part", "1"], ["--part"]),
    ],
)
def test_errors_help(given: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        build_parser().parse_args(given)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args([command, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: streamlog {command} ")


def test_values() -> None:
    assert key_value("a.b = c=d") == ("a.b", "c=d")
    assert whole(1)("1_000") == whole(1)("1,000") == 1000
    assert seconds("0.5") == 0.5
    for parse, text in (
        (key_value, "a"),
        (key_value, "=a"),
        (whole(1), "0"),
        (whole(1), "1.5"),
        (seconds, "-1"),
        (seconds, "nan"),
        (seconds, "x"),
    ):
        with pytest.raises(ArgumentTypeError):
            parse(text)
    assert closest("ordres", ["orders", "bills"]) == "orders" and closest("zz", ["orders"]) is None
