"""Links between documents resolve, files they name exist, and every page can be reached from the README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What `#...` may name: GitHub's slugs of the headings, and explicit ids."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in LINK.findall(without_code(page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            broken.append(f"{link}: no such heading")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_resolve(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_files_named_in_code_exist(page: Path) -> None:
    """`broker/turn.py`, `tests/spec/`, `examples/news_feed.py`: a folder and an ending, or a slash behind."""
    missing = []
    for code in CODE.findall(without_code(page.read_text())):
        if re.fullmatch(
            r"(\w+/)+[\w*]+\.(py|md|toml)|((tests|docs|examples|streamlog|core|storage|broker|client|cli)/)(\w+/)*",
            code,
        ):
            places = [ROOT / code, ROOT / "streamlog" / code]
            if not any(list(place.parent.glob(place.name)) for place in places):
                missing.append(code)
    assert missing == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or not page.is_file():
            continue
        seen.add(page)
        if page.suffix == ".md":
            waiting += [
                (page.parent / link.partition("#")[0]).resolve() for link in LINK.findall(page.read_text())
            ]
    assert [page for page in PAGES if page not in seen] == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading, with `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#a-heading-with-code) [b](other.md#nothing) [c](gone.md) [d](#here)\n"
        "# Here\n```\n[e](no.md)\n```\n"
    )
    assert broken_links(page) == ["other.md#nothing: no such heading", "gone.md: no such file"]


# -- the two commands of the README ------------------------------------------------------------------------


def test_nobody_is_told_to_install_somebody_elses_package() -> None:
    for page in PAGES:
        assert not re.search(r"pip install (-\S+ )*['\"]?streamlog(?![-\w])", page.read_text()), page


def test_the_two_commands() -> None:
    """Command one is fixed; command two is what CI runs."""
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert (
        blocks[0]
        == "python -m venv .venv && . .venv/bin/activate && pip install '.[cli]' && streamlog demo\n"
    )
    assert blocks[1] == "pip install '.[cli,test]' && pytest\n"
    ci = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^pip install .*'\.\[cli,test\]'$", ci, re.MULTILINE)
    assert re.search(r"^bounded \d+ pytest 2>&1", ci, re.MULTILINE)
