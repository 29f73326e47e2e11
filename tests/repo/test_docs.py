"""The pages tell the truth: links and anchors lead somewhere, the paths they name exist, the site builds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for folder in (".", "docs", "docs/training", "bench", "bench/results", "python/asyncthink/checkpoints/*")
    for path in ROOT.glob(f"{folder}/*.md")
)
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]+))?\)")
#: Paths from the repository's root, as text in backticks.
NAMED = re.compile(r"`((?:asyncthink_kernels|python|csrc|tests|bench|docs|examples)/[\w./*-]*)`")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Of all headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/design.md", "bench/RESULTS.md"} <= set(
        map(name, PAGES)
    )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent in (ROOT, ROOT / "docs")], ids=name)
def test_paths_that_are_named_exist(page: Path) -> None:
    for path in NAMED.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path


def test_every_room_is_named_for_contributors() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (ROOT / "python/asyncthink").glob("*/__init__.py")}
    assert [room for room in rooms if f"`python/asyncthink/{room}/`" not in text] == []


def test_every_page_of_docs_is_on_the_site() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    text = yaml.safe_dump(config["nav"])
    assert [name(page) for page in PAGES if page.parent == ROOT / "docs" and page.name not in text] == []


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ForkJoinSampler" in (tmp_path / "api/index.html").read_text(encoding="utf-8")
