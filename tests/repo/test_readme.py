"""The README tells the truth: its commands are there for CI to run, its Python runs, its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_stand_as_lines_of_their_own():
    commands = [line for line in README.splitlines() if line.startswith("pip install -e ")]
    assert commands == [
        "pip install -e . -c constraints.txt && asyncthink demo",
        'pip install -e ".[test]" -c constraints.txt && pytest',
    ]


@pytest.mark.parametrize("number", range(len(re.findall(r"```python\n", README))))
def test_python_examples_run(number, capsys):
    code = re.findall(r"```python\n(.*?)```", README, re.S)[number]
    exec(compile(code, f"README example {number}", "exec"), {"__name__": "readme"})
    capsys.readouterr()


def test_links_to_files_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("dev", "test", "lint", "bench", "demo"):
        assert re.search(rf"^{target}:", makefile, re.M)
