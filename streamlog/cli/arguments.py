"""The parser: the table of commands, the options all of them share, and messages that help.

The shared options may stand before or behind the command's name.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn

from streamlog.cli.failures import UsageError

if TYPE_CHECKING:
    from streamlog.cli.terminal import Terminal

DIRECTORY_DEFAULT: Final = "./streamlog-data"
SYNC_MODES: Final = ("full", "normal", "off")

# Commands in the order `--help` shows them; each has a module with add_parser(commands).
COMMANDS: Final = (
    "demo",
    "demo cluster",
    "topics",
    "produce",
    "consume",
    "groups",
    "perf",
    "verify",
    "dump",
    "backup",
)

EPILOG: Final = """\
Start here:
  streamlog demo                                     see what it does, in a few seconds
  streamlog demo cluster                             see several brokers survive
  streamlog topics create logs --partitions 4        a topic, in ./streamlog-data
  streamlog produce logs app.log                     every line of a file becomes a record
  streamlog consume logs --group billing             what the group has not seen yet

Exit codes: 0 done, 1 failed, 2 wrong command line, 3 another process owns the directory,
4 damage found, 130 Ctrl-C, 141 the reader of the output went away, 143 terminated.
"""

Commands = Any  # argparse's private type of "add_subparsers()"
Run = Callable[[argparse.Namespace, "Terminal"], int]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions with a next step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)
        self._given: Sequence[str] = ()
        self._intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Also a subcommand's parser names what it does not know: only it knows what was meant.

        Options may stand between positionals (`produce TOPIC --create FILE`), which argparse does on request only.
        """
        if self._intermixed:
            return super().parse_known_args(args, namespace)
        self._given = args or ()
        if any(action.nargs in ("*", "+") for action in self._get_positional_actions()):
            self._intermixed = True
            try:
                namespace, unknown = self.parse_known_intermixed_args(args, namespace)
            finally:
                self._intermixed = False
        else:
            namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._told_unknown(unknown))
        return namespace, unknown

    def _told_unknown(self, unknown: Sequence[str]) -> str:
        option = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
        if option is None:
            return f"{' '.join(unknown)!r} is more than this command takes"
        near = closest(option, [name for name in self._option_string_actions if name.startswith("--")])
        return f"there is no option {option!r}" + (f"; did you mean {near!r}?" if near else "")

    def error(self, message: str) -> NoReturn:
        told = _with_suggestion(message)
        if "required" in message:  # what is missing may be there, misspelt
            given = [word for word in self._given if word.startswith("--") and word != "--"]
            unknown = [word for word in given if word.partition("=")[0] not in self._option_string_actions]
            told = self._told_unknown(unknown) if unknown else told
        raise UsageError(
            f"{told}{'' if told.endswith('?') else '.'} `{self.prog} --help` shows how it is used"
        )


def build_parser() -> Parser:
    """The whole command line."""
    from streamlog.version import VERSION

    parser = Parser(
        prog="streamlog",
        description="Kafka the way SQLite is a database: durable, ordered event logs in a directory, "
        "without a server.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"streamlog {VERSION}")
    _add_shared(parser, first=True)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", title="commands", parser_class=Parser)
    for name in COMMANDS:
        import_module(f"streamlog.cli.{name.replace(' ', '_')}").add_parser(commands)
    return parser


def with_joined_names(words: Sequence[str]) -> list[str]:
    """The words with the two of a command's name as one: `demo cluster` is not `demo` with a file."""
    first = next(
        (
            at
            for at, word in enumerate(words)
            if not word.startswith("-") and (at == 0 or words[at - 1] not in ("--dir", "-d"))
        ),
        len(words),
    )
    name = " ".join(words[first : first + 2])
    return [*words[:first], name, *words[first + 2 :]] if name in COMMANDS else [*words]


def add_command(
    commands: Commands, name: str, run: Run | None, help: str, description: str = "", **options: Any
) -> Parser:
    """One command (or subcommand) with the shared options; `run` is None for a family of subcommands."""
    text = f"{help[0].upper()}{help[1:]}." + (f"\n\n{description}" if description else "")
    parser: Parser = commands.add_parser(name, help=help, description=text, **options)
    if run is not None:
        parser.set_defaults(run=run)
        _add_shared(parser, first=False)
    return parser


def add_family(commands: Commands, name: str, help: str) -> Commands:
    """A command that only has subcommands."""
    parser = add_command(commands, name, None, help)
    subcommands = parser.add_subparsers(
        metavar="SUBCOMMAND", dest="subcommand", title="subcommands", parser_class=Parser
    )
    parser.set_defaults(family=parser)
    return subcommands


def _add_shared(parser: Parser, *, first: bool) -> None:
    def default(value: object) -> object:
        return (
            value if first else argparse.SUPPRESS
        )  # what stood before the command must not be reset behind it

    shared = parser.add_argument_group("shared options")
    shared.add_argument(
        "--dir",
        "-d",
        metavar="DIR",
        default=default(DIRECTORY_DEFAULT),
        help=f"the cluster's directory (default {DIRECTORY_DEFAULT})",
    )
    shared.add_argument(
        "--json",
        action="store_true",
        default=default(False),
        help="JSON for programs instead of text for people",
    )
    shared.add_argument(
        "--quiet",
        "-q",
        action="store_true",
        default=default(False),
        help="no progress and no notes on stderr",
    )
    shared.add_argument(
        "--debug", action="store_true", default=default(False), help="show the traceback of an error"
    )


def add_sync(parser: Parser) -> None:
    """The durability of a command that writes."""
    parser.add_argument(
        "--sync",
        choices=SYNC_MODES,
        default="full",
        help="what survives: full = power loss (default); normal = power loss, but for the last commits; "
        "off = a killed process",
    )


def add_replication(parser: Parser) -> None:
    """How many brokers a directory gets that a command makes, and on how many of them a topic that it makes stands."""
    parser.add_argument(
        "--replication-factor",
        type=whole(1),
        metavar="N",
        help="on how many brokers a topic that is made stands (default 1); no more than there are",
    )
    parser.add_argument(
        "--brokers",
        type=whole(1),
        metavar="N",
        help="how many brokers a directory gets that is made (default 1); one that is there must have as many",
    )


def key_value(text: str) -> tuple[str, str]:
    """`name=value`, as --config takes it."""
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as retention.ms=3600000")
    return name.strip(), value.strip()


def whole(minimum: int) -> Callable[[str], int]:
    """A whole number of at least `minimum`; `_` and `,` may separate thousands."""

    def parse(text: str) -> int:
        try:
            number = int(text.replace(",", "_"))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{number} is below {minimum}")
        return number

    return parse


def seconds(text: str) -> float:
    """A duration in seconds."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def closest(word: str, words: Sequence[str]) -> str | None:
    """The word that was probably meant."""
    import difflib

    near = difflib.get_close_matches(word, words, 1, 0.6)
    return near[0] if near else None


def _with_suggestion(message: str) -> str:
    found = re.search(
        r"argument (?:COMMAND|SUBCOMMAND|command|subcommand): invalid choice: '([^']*)' \(choose from (.*)\)",
        message,
    )
    if found is None:
        return message
    names = [name.strip(" '") for name in found[2].split(",")]
    near = closest(found[1], names)
    return f"there is no command {found[1]!r}; " + (
        f"did you mean {near!r}?" if near else f"there are {', '.join(names)}"
    )
