"""A failing seed made small: which of its clients and faults can be left out, so that it still fails in the same way.

    parts [producer-0, ..., fault-0, fault-1, ...] --leave out halves, quarters, ..., single ones--> what cannot be spared

Source: Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input (delta debugging).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


def kind_of(error: BaseException) -> str:
    """What went wrong, without the numbers and values of this one run."""
    text = re.sub(
        r"b?'[^']*'|\d+|\([^()]*\)|\[[^\[\]]*\]", "#", str(error).splitlines()[0] if str(error) else ""
    )
    return f"{type(error).__name__}: {text[:60]}"


def shrink(
    parts: Sequence[str], still_fails: Callable[[frozenset[str]], bool], may_go_on: Callable[[], bool]
) -> frozenset[str]:
    """The parts that can be left out together, nearly as many as possible.

    still_fails:  told what is left out.
    may_go_on:    asked before each try; at False the best so far is the answer.
    """
    without: frozenset[str] = frozenset()
    size = (len(parts) + 1) // 2
    while size:
        left = [part for part in parts if part not in without]
        for start in range(0, len(left), size):
            if not may_go_on():
                return without
            tried = without.union(left[start : start + size])
            if still_fails(tried):
                without = tried
        size //= 2
    return without
