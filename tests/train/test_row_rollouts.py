"""GRPO of models that run one row a trace: a fallback type and a hybrid, with states and caches by their options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asyncthink.episode.records import Episode
from asyncthink.tasks import TASKS
from asyncthink.train.grpo import train_grpo
from asyncthink.train.grpo_config import GRPOConfig
from asyncthink.train.loading import ModelOptions
from scripted import PROMPTS
from tiny_fallbacks import taught_own
from tiny_hybrids import taught_hybrid
from toy_task import Counting


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    TASKS["counting"] = Counting()
    yield
    del TASKS["counting"]


def forks(task: Any, puzzle: Any, episode: Episode) -> float:
    """A reward that differs within a group of random episodes."""
    return episode.forks + 0.01 * episode.total_tokens


@pytest.mark.parametrize(
    ("kind", "options"),
    [("falcon", {"fallback": True}), ("qwen3_5", {"num_states": 24, "fallback": False})],
)
def test_sampler_and_trainer_agree(
    kind: str, options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tok = taught_hybrid(kind) if kind == "qwen3_5" else taught_own(kind)
    for part in (model, tok):
        part.save_pretrained(tmp_path / "start")
    PROMPTS.save(tmp_path / "start")
    config = GRPOConfig(
        out=tmp_path / "run",
        model=ModelOptions(model=str(tmp_path / "start"), bfloat16=False, device="cpu"),
        task="counting",
        max_tokens=30,
        questions=2,
        group_size=4,
        steps=2,
        cache_tokens=16_000,
        learning_rate=1e-3,
        warmup=0,
        rule=forks,
        **options,
    )
    last = train_grpo(config)
    assert capsys.readouterr().out.count("rows: one a trace") == 1
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2
    assert all(0 < line["off_policy"] < 1e-4 for line in metrics)
    assert any(line["forks"] > 0 for line in metrics)
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "start", last))
    assert any(not torch.equal(before[name], after[name]) for name in before)
