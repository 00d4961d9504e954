"""examples/news_feed.py: every reader sees everything, whenever it comes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest


def test_sample(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main([]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "3 publishers have published 600 stories"
    assert shown[2] == "carol joins now: 600 wait for her"
    assert [line.split()[:3] for line in shown[3:6]] == [
        [name, "read", "600"] for name in ("alice", "bob", "carol")
    ]
    assert len({line.split()[-1] for line in shown[3:6]}) == 1
    assert shown[-1] == "all readers have seen the same"


def test_sections_are_read_in_the_order_they_were_published(example: ModuleType, tmp_path: Path) -> None:
    """The digest is of the stories in order: another order, another digest."""
    forth = {"a": [f"story {n}" for n in range(120)], "b": ["x", "y"]}
    back = {**forth, "a": forth["a"][::-1]}
    [one], [other] = (
        {r.digest for r in example.run(s, str(tmp_path / str(n)))} for n, s in enumerate((forth, back))
    )
    assert one != other


def test_readers_go_on_where_they_were(example: ModuleType, tmp_path: Path) -> None:
    sections, data = {"a": [f"story {n}" for n in range(60)]}, str(tmp_path / "data")
    for _ in range(2):
        readings = example.run(sections, data)
        assert [reading.stories for reading in readings] == [60, 60, 60]


def test_files_are_sections(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.txt").write_text("first\nsecond\n")
    (tmp_path / "two.txt").write_text("third\n")
    assert example.main([str(tmp_path / "one.txt"), str(tmp_path / "two.txt")]) == 0
    assert "2 publishers have published 3 stories" in capsys.readouterr().out


def test_a_file_that_is_not_there(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        example.main([str(tmp_path / "nowhere")])
    assert ended.value.code == 2 and f"there is no {tmp_path}/nowhere" in capsys.readouterr().err
