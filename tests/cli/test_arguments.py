"""The parser."""

from __future__ import annotations

from argparse import ArgumentTypeError, _SubParsersAction
from collections.abc import Iterator

import pytest

from streamlog.cli.arguments import (
    COMMANDS,
    DIRECTORY_DEFAULT,
    Parser,
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
        (["zzz"], ["no command 'zzz'", "there are demo, demo cluster, topics"]),
        (["topics", "create"], ["TOPIC", "streamlog topics create --help"]),
        (["produce", "t", "--compresion", "zstd"], ["--compresion", "did you mean '--compression'?"]),
        (["produce", "t", "--part", "1"], ["--part", "streamlog produce --help"]),
        (["topics", "create", "t", "--partitons", "3"], ["'--partitons'", "did you mean '--partitions'?"]),
        (["topics", "create", "t", "--partitons=3"], ["'--partitons'; did", "did you mean '--partitions'?"]),
        (["topics", "--jsn", "list"], ["'--jsn'", "streamlog topics --help"]),
        (["--qiet", "verify"], ["'--qiet'", "did you mean '--quiet'?"]),
        (["topics", "list", "--zzz"], ["no option '--zzz'. `streamlog topics list --help`"]),
        (["verify", "more", "--quiet"], ["'more' is more than this command takes"]),
    ],
)
def test_errors_help(given: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        build_parser().parse_args(given)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


def leaves(parser: Parser, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Parser]]:
    """Every command that runs, with the words that name it."""
    families = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    if not families:
        yield words, parser
    for name, child in [pair for family in families for pair in family.choices.items()]:
        yield from leaves(child, (*words, name))


def test_a_misspelt_option_of_any_command_is_named_with_the_right_one() -> None:
    count = 0
    for words, parser in leaves(build_parser()):
        positionals = ["x" for action in parser._actions if not action.option_strings and action.nargs != "*"]
        for option in [name for name in parser._option_string_actions if len(name) > 6 and name[:2] == "--"]:
            wrong = option[:-2] + option[-1]
            with pytest.raises(UsageError, match="did you mean '--") as caught:
                build_parser().parse_args([*words, *positionals, wrong])
            assert f"no option {wrong!r}" in str(caught.value)
            count += 1
    assert count > 50


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
