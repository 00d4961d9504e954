"""The version is one, everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import streamlog
from streamlog.version import VERSION


def test_the_module_and_the_project_agree() -> None:
    assert streamlog.__version__ == VERSION
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    static = re.search(r'^version = "([^"]+)"', project, re.M)
    assert (
        static.group(1) == VERSION if static else "version" in project and "streamlog/version.py" in project
    )


def test_it_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?([ab]|rc|\.dev|\.post)?\d*", VERSION)
