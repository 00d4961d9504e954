"""Examples as a user has them: files outside the package, loaded by their path."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def real() -> Callable[..., list[Path]]:
    """Real input, where this machine has it; skips the test elsewhere."""

    def find(*names: str) -> list[Path]:
        paths = [REAL_DATA / name for name in names]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            pytest.skip(f"no {', '.join(missing)} in {REAL_DATA}")
        return paths

    return find


@pytest.fixture
def example(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The example named like the test module: test_news_feed.py -> examples/news_feed.py."""
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # msgspec looks up annotations by the module's name
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]
