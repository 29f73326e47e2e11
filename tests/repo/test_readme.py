"""The README tells the truth: its commands are there for CI to run, its Python runs, its figures are the tables'."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from untrained import save_untrained

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_it_is_read_in_minutes():
    assert len(README.splitlines()) <= 90


def test_the_two_commands_stand_as_lines_of_their_own():
    commands = [line for line in README.splitlines() if line.startswith("pip install -e ")]
    assert commands == [
        "pip install -e . -c constraints.txt && asyncthink demo",
        'pip install -e ".[test]" -c constraints.txt && pytest',
    ]


@pytest.mark.parametrize("code", BLOCKS)
def test_python_examples_run(code, capsys, tmp_path):
    chat = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    folder = save_untrained(tmp_path, prompts=None, chat_template=chat)  # in the place of a model from the hub
    code = code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(folder))
    exec(compile(code, "README example", "exec"), {"__name__": "readme"})
    capsys.readouterr()


@pytest.mark.parametrize("page", ["README.md", "docs/usage.md"])
def test_the_survey_of_models_is_the_committed_one(page):
    survey = json.loads((ROOT / "tests/model/model_survey.json").read_text())
    counts = Counter(row["outcome"] for row in survey["types"].values())
    served, tiny = counts["served"], counts["not built"]
    refused = counts.total() - served - tiny
    own = sum(row.get("decoder", "").startswith("fallback") for row in survey["types"].values())
    version = ".".join(survey["transformers"].split(".")[:2])
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert (
        f"Of the {counts.total()} causal-LM types in transformers {version}, {served} are served with the model's own "
        f"logits, {refused} are refused with a reason, {tiny} cannot be built tiny; none is served wrong"
    ) in text
    shares = f"{served - own} run on the paged cache, {own} on [slower caches of their own]("
    assert shares in text or page == "README.md"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("dev", "test", "lint", "bench", "demo", "docs"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
