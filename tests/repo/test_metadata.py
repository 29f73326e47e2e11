"""What others need to use the package: licence, authors, addresses, and a model card beside every checkpoint."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import asyncthink

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EVALUATED = {
    "countdown": "docs/training/joins.json",
    "countdown-10x4": "docs/countdown_10x4/data/test-no-rl-0.json",
}
CHECKPOINTS = sorted(path.parent for path in (ROOT / "python/asyncthink/checkpoints").glob("*/config.json"))


def test_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert (PROJECT["license"], PROJECT["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


def test_authors_and_addresses() -> None:
    assert PROJECT["authors"] == [{"name": "The asyncthink-kernels developers"}]
    assert {"Homepage", "Repository", "Issues", "Documentation", "Changelog"} == PROJECT["urls"].keys()
    assert all(url.startswith("https://github.com/asyncthink/asyncthink-kernels") for url in PROJECT["urls"].values())


def test_one_version_everywhere() -> None:
    """pyproject.toml has it; what people cite and the newest entry of the changelog follow."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert citation["version"] == newest == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert "2510.26658" in citation["references"][0]["url"]


def test_ci_runs_on_every_python_that_is_promised() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["run"]
    promised = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", each)]
    assert job["strategy"]["matrix"]["python"] == promised
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    for version in promised:
        assert SpecifierSet(PROJECT["requires-python"]).contains(version)


def test_hooks_before_a_commit_are_those_of_make_lint() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    programs = [hook["entry"].split()[0] for hook in repository["hooks"]]
    assert repository["repo"] == "local"
    assert programs == ["ruff", "ruff", "clang-format", "mypy"]
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert all(program in lint for program in programs)


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_model_card(folder: Path) -> None:
    """Its figures are those of the committed evaluation."""
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    stated = yaml.safe_load(header)
    assert stated["license"] == "apache-2.0"
    assert "asyncthink" in stated["tags"]
    assert {"language", "pipeline_tag"} <= stated.keys()
    for heading in ("## What it is trained on", "## What it reaches", "## Limits"):
        assert heading in text
    rows = json.loads((ROOT / EVALUATED[folder.name]).read_text())["rows"]
    for row in rows:
        name = "one agent alone" if row["mode"] == "sequential" else "organized"
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name}")]
        assert f"| {100 * row['at_least']['4']['value']:.4g}% |" in line
        assert f"| {row['critical_path_tokens']['value']:.0f} tokens |" in line
        assert f"| {row['total_tokens']['value']:.0f} |" in line
        assert line.endswith(f"| {100 * row['format_errors']['value']:.2g} |")


def test_the_checkpoint_in_the_box_has_a_card() -> None:
    assert asyncthink.checkpoint_path("countdown") in CHECKPOINTS
