"""Events and replies are plain frozen values."""

from __future__ import annotations

import inspect
import pickle

import msgspec
import pytest

from streamlog.core import group_events as events

STRUCTS = [
    value
    for _, value in inspect.getmembers(events, inspect.isclass)
    if issubclass(value, msgspec.Struct) and value.__module__ == events.__name__
]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_frozen_and_documented(struct: type[msgspec.Struct]) -> None:
    assert struct.__struct_config__.frozen
    assert struct.__doc__ or struct is events.LeavingMember or struct.__name__.endswith("Reply")


def test_every_request_has_a_token() -> None:
    for request in events.Request.__args__:  # type: ignore[attr-defined]
        assert "token" in request.__struct_fields__, request.__name__


def test_values_pickle() -> None:
    join = events.JoinGroup(token=1, protocols=(("range", b"x"),))
    assert pickle.loads(pickle.dumps(join)) == join
