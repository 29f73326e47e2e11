"""``--depth`` reaches the sampler, and a model that knows no nested forks is refused in a line."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from asyncthink.cli.app import app
from asyncthink.episode.records import Episode
from asyncthink.train.loading import TINY_PROMPTS
from untrained import save_untrained


def ask(model: Path, *options: object) -> Result:
    command = ["run", "--model", model, "q", "--max-tokens", 5, "--json", *options]
    return CliRunner().invoke(app, list(map(str, command)))


def test_run_takes_a_depth(tmp_path: Path) -> None:
    kept = tmp_path / "e.json"
    done = ask(save_untrained(tmp_path, prompts=TINY_PROMPTS), "--depth", 2, "--save", kept)
    assert done.exit_code == 0, done.output
    assert Episode.load(kept).depth == json.loads(done.stdout)["depth"] == 2


def test_a_model_without_templates_for_it_is_refused(tmp_path: Path) -> None:
    flat = save_untrained(tmp_path)
    refused = ask(flat, "--depth", 2)
    assert refused.exit_code == 1
    reason = "depth: expected 1, as the prompts have no template 'forking_worker_shared' for workers that may fork"
    assert reason in " ".join(refused.output.split())
    assert "depth" not in json.loads(ask(flat).stdout)
