"""What is said to who leaves an `async` or an `await` out, as those who come from the blocking API do.

    with cluster.producer() as producer:      TypeError: use `async with`, ...
    streamlog.aio.open("data/").topics        UnknownNameError: ...; await it first: ...

Type checkers do not see these methods, so they still say that there is no `__enter__` and no such attribute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from streamlog.errors import UnknownNameError


class EnteredInLoop:
    """Base of what `async with` takes."""

    if not TYPE_CHECKING:

        def __enter__(self) -> NoReturn:
            raise TypeError(f"use `async with`, not `with`, for {self!r}")

        def __exit__(self, *_: object) -> None:
            """Never called; without it `with` would complain of that before it enters."""


class IteratedInLoop:
    """Base of what `async for` takes."""

    if not TYPE_CHECKING:

        def __iter__(self) -> NoReturn:
            raise TypeError(f"use `async for`, not `for`, for {self!r}")


class Unawaited:
    """Base of what must be awaited for what one really wants, and then has its attributes."""

    _how_to_await: str

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise UnknownNameError(
                f"{self!r} has no {name!r}; await it first: {self._how_to_await}",
                name=name,
                suggestion="await",
            )

        def __iter__(self) -> NoReturn:
            raise TypeError(f"{self!r} cannot be iterated over; await it first: {self._how_to_await}")
