"""The demo's input: log lines of a make-believe shop, or the user's own files.

The shop has eight services. Its log is made by a seeded generator (made for this project, under its
licence): the same seed gives the same bytes everywhere. Lines carry what real ones do: several levels,
addresses, umlauts, tabs, stack traces.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from streamlog.cli.failures import CommandError
from streamlog.cli.lines import unreadable

NEWLINE: Final = b"\n"
KEY_WITHIN_BYTES: Final = 500
"""A component is named near the start; an unlucky expression takes quadratic time in what it searches."""

# "2024-05-01 ... INFO payments ..." and the common shapes of other people's logs, in the order tried.
KEY_PATTERNS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rb"[:\[]([A-Za-z_][\w.$]*)@\d+\]",
        rb"(?:TRACE|DEBUG|INFO|WARN|WARNING|ERROR|FATAL|CRITICAL)\s+\[?([A-Za-z_][\w.$-]*)",
        rb"\s([A-Za-z_][\w.$-]*)\[\d+\]: ",
        rb"^\[[^\]]*\] \[([a-z]+)\]",
        rb"\s([A-Za-z_][\w.$]*): ",
    )
)

_NAMES: Final = (
    "Ada",
    "Björn",
    "Chloé",
    "Dmitri",
    "Emre",
    "Fatima",
    "Grzegorz",
    "Hanna",
    "Íñigo",
    "Jürgen",
    "Keiko",
    "Łukasz",
)
_CITIES: Final = ("Zürich", "Kraków", "Lyon", "Malmö", "Porto", "Gent", "Brno", "Graz")
_ITEMS: Final = (
    "teapot",
    "lamp",
    "kite",
    "drill",
    "novel",
    "scarf",
    "radio",
    "globe",
    "puzzle",
    "bicycle bell",
)

# service: (how often, [(level, how often, message)])
_SERVICES: Final[dict[str, tuple[int, tuple[tuple[str, int, str], ...]]]] = {
    "gateway": (30, (
        ("INFO", 80, "{ip} {verb} /{path} {status} {ms}ms \"{agent}\""),
        ("WARN", 8, "{ip} {verb} /{path} 429 rate limit of {n} requests/min reached"),
        ("ERROR", 2, "upstream {service} closed the connection after {ms}ms, retry {small}/3"),
    )),
    "auth": (14, (
        ("INFO", 60, "session {hex} opened for user={user} ({city})"),
        ("WARN", 14, "failed password for {user} from {ip} port {port}"),
        ("DEBUG", 10, "token {hex} refreshed, expires in {n}s"),
    )),
    "orders": (18, (
        ("INFO", 70, "order {n} placed by {user}: {small} x {item}, {money} EUR"),
        ("INFO", 20, "order {n} shipped to {city}"),
        ("WARN", 4, "order {n}: address of {user} not confirmed"),
    )),
    "payments": (12, (
        ("INFO", 70, "charge {hex} of {money} EUR captured for order {n}"),
        ("WARN", 8, "charge {hex} needs a second look: score 0.{n}"),
        ("ERROR", 3, "charge {hex} refused by the bank (code {status})\nTraceback (most recent call last):\n"
                     "  File \"payments/bank.py\", line {small}, in capture\n    raise "
                     "Refused(code)\npayments.bank.Refused: {status}"),
    )),
    "inventory": (10, (
        ("INFO", 60, "{item}: {n} left in {city}"),
        ("WARN", 10, "{item}: below the minimum of {small} in {city}"),
        ("DEBUG", 20, "recount\tshelf={small}\titem={item}\tcount={n}"),
    )),
    "search": (10, (
        ("INFO", 70, "q=\"{item} {city}\" hits={n} took={ms}ms"),
        ("DEBUG", 20, "segment {hex} merged, {n} documents"),
    )),
    "mailer": (4, (
        ("INFO", 60, "mail {hex} to {user} sent: \"Your {item} is on its way\""),
        ("WARN", 8, "mail {hex} to {user} deferred: mailbox of {city} is full  "),
    )),
    "scheduler": (2, (
        ("INFO", 60, "job nightly-{item} finished in {ms}ms"),
        ("ERROR", 4, "job nightly-{item} missed its slot by {n}ms"),
    )),
}  # fmt: skip
_AGENTS: Final = ("Mozilla/5.0", "curl/8.5.0", "okhttp/4.12", "python-requests/2.31")
_PATHS: Final = ("cart", "checkout", "items?page=2", "search?q=lamp", "login", "health", "orders/recent")


class Line(NamedTuple):
    """One line of input: its number over all sources, the component that wrote it, and its bytes without the
    newline.
    """

    number: int
    key: bytes
    value: bytes


class Input(NamedTuple):
    """All lines, and for each source its name, how many lines it has, and whether a newline ends it."""

    lines: list[Line]
    sources: list[tuple[str, int, bool]]


def made_up_log(count: int, seed: int) -> bytes:
    """A log of `count` lines, a newline behind each."""
    chance = random.Random(seed)
    services = list(_SERVICES)
    weights = [weight for weight, _ in _SERVICES.values()]
    kinds = {name: (list(shapes), [kind[1] for kind in shapes]) for name, (_, shapes) in _SERVICES.items()}
    lines: list[str] = []
    now_ms = 9 * 3600 * 1000
    while len(lines) < count:
        now_ms += chance.choice((1, 2, 3, 5, 8, 40))
        service = chance.choices(services, weights)[0]
        shapes, shape_weights = kinds[service]
        level, _, shape = chance.choices(shapes, shape_weights)[0]
        seconds, ms = divmod(now_ms, 1000)
        clock = f"{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{ms:03d}"
        lines += f"2024-05-01 {clock} {level:<5} {service} {_filled(shape, chance)}".split("\n")
    return "".join(line + "\n" for line in lines[:count]).encode()


def _filled(shape: str, chance: random.Random) -> str:
    return shape.format(
        ip=f"10.{chance.randrange(4)}.{chance.randrange(256)}.{chance.randrange(1, 255)}",
        verb=chance.choice(("GET", "GET", "GET", "POST", "PUT")),
        path=chance.choice(_PATHS),
        status=chance.choice((200, 200, 200, 201, 304, 404, 500)),
        ms=chance.randrange(1, 900),
        agent=chance.choice(_AGENTS),
        n=chance.randrange(10, 9000),
        small=chance.randrange(1, 40),
        port=chance.randrange(1024, 65536),
        hex=f"{chance.getrandbits(48):012x}",
        user=chance.choice(_NAMES),
        city=chance.choice(_CITIES),
        item=chance.choice(_ITEMS),
        money=f"{chance.randrange(5, 400)}.{chance.randrange(100):02d}",
        service=chance.choice(("orders", "payments", "search")),
    )


def read_input(paths: list[str], key_regex: str | None) -> Input:
    """The lines of files, one file after the other, each with the component that wrote it.

    A line that names no component (the rest of a stack trace) belongs to the one before it.
    """
    lines: list[Line] = []
    sources: list[tuple[str, int, bool]] = []
    patterns = KEY_PATTERNS if key_regex is None else (re.compile(key_regex.encode()),)
    for path in paths:
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise unreadable(path, error) from error
        values = data.split(NEWLINE)
        ended = values[-1] == b""
        if ended:
            values.pop()
        sources.append((path, len(values), ended and bool(values)))
        pattern = _best(patterns, values)
        lines += _keyed(values, pattern, len(lines), path.rsplit("/", 1)[-1].encode())
    if not lines:
        raise CommandError("the files have no lines; give the demo something to read")
    return Input(lines, sources)


def _best(patterns: tuple[re.Pattern[bytes], ...], values: list[bytes]) -> re.Pattern[bytes]:
    """The first pattern that names a component in most of the first lines; else the one that does so most
    often.
    """
    sample = values[:200]
    hits = [
        sum(pattern.search(value, 0, KEY_WITHIN_BYTES) is not None for value in sample)
        for pattern in patterns
    ]
    for pattern, found in zip(patterns, hits, strict=True):
        if found * 2 > len(sample):
            return pattern
    return patterns[hits.index(max(hits))]


def _keyed(values: list[bytes], pattern: re.Pattern[bytes], start: int, default: bytes) -> Iterator[Line]:
    key = default
    for number, value in enumerate(values, start):
        found = pattern.search(value, 0, KEY_WITHIN_BYTES)
        if found is not None:
            key = (found[1] if pattern.groups else found[0]) or default
        yield Line(number, key, value)


def rebuild(values: list[bytes], ended: bool) -> bytes:
    """The bytes of a source from its lines."""
    return NEWLINE.join(values) + (NEWLINE if ended else b"")
