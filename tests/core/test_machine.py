"""The shape of machines."""

from __future__ import annotations

from enum import Enum

import pytest

from streamlog.core.machine import Decision, check_transition


class Light(Enum):
    RED = 1
    GREEN = 2


VALID_PREVIOUS = {Light.RED: frozenset({Light.GREEN}), Light.GREEN: frozenset({Light.RED})}


def test_transitions_stand_in_a_table() -> None:
    check_transition(VALID_PREVIOUS, Light.RED, Light.GREEN)
    with pytest.raises(AssertionError, match="RED -> RED is not a transition of Light"):
        check_transition(VALID_PREVIOUS, Light.RED, Light.RED)


def test_an_empty_decision_says_so() -> None:
    assert Decision([], [], []).is_empty
    assert not Decision([(b"k", None)], [], []).is_empty
    assert not Decision([], ["change"], []).is_empty
    assert not Decision([], [], [(1, "reply")]).is_empty
