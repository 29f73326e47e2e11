"""Validation during GRPO: which puzzles, which weights are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.tasks import TASKS
from asyncthink.tasks.held_out import for_validation
from asyncthink.train import checkpoint, grpo
from asyncthink.train.best import best, best_figures
from asyncthink.train.grpo import GRPOConfig, train_grpo
from asyncthink.train.loading import TINY_PROMPTS, ModelOptions, Shape, load
from asyncthink.train.progress import read_metrics
from asyncthink.train.validation import FIGURES, better, puzzles_for
from toy_task import Counting

MODEL = ModelOptions(
    shape=Shape(layers=1, hidden=16, heads=1, kv_heads=1, head_dim=16, intermediate=16), bfloat16=False
)


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[None]:
    TASKS["counting"] = Counting()
    yield
    del TASKS["counting"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded, folder = load(MODEL), tmp_path_factory.mktemp("start")
    checkpoint.save_model(folder, loaded.model, loaded.tokenizer, TINY_PROMPTS, {})
    return folder


def config(out: Path, start: Path, **changes: Any) -> GRPOConfig:
    options: dict[str, Any] = {"steps": 4, "questions": 1, "group_size": 2, "rounds": 1, "max_tokens": 4} | changes
    return GRPOConfig(
        out, ModelOptions(str(start)), "counting", save_every=1, validate_every=2, validate_puzzles=3, **options
    )


def scripted(monkeypatch: pytest.MonkeyPatch, *solved: float) -> None:
    """Validations find these shares solved, one after the other."""
    shares = iter(solved)
    figures = dict.fromkeys(FIGURES, 1.0)
    monkeypatch.setattr(grpo, "validate", lambda *arguments: figures | {"solved": next(shares)})


def test_the_best_weights_are_kept_and_not_the_last(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 0.1, 0.5, 0.3)  # before the run, after 2 steps, after 4
    last = train_grpo(config(tmp_path, start, learning_rate=1.0, rule=lambda t, p, e: float(sum(e.traces[0].tokens))))
    kept = best(tmp_path)
    assert kept is not None and kept.name == "best-000002"
    assert best_figures(tmp_path) == dict.fromkeys(FIGURES, 1.0) | {"solved": 0.5, "step": 2}
    assert sorted(folder.name for folder in tmp_path.glob("*-0*")) == ["best-000002", "step-000003", "step-000004"]
    one, other = (load_file(folder / "model.safetensors") for folder in (kept, last))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    ForkJoinSampler(kept, num_pages=16).generate([" 1 2 3"])
    lines = [line["validation"]["solved"] for line in read_metrics(tmp_path / "metrics.jsonl") if "validation" in line]
    assert lines == [0.1, 0.5, 0.3]


def test_a_resumed_run_knows_the_best_so_far(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, 0.1, 0.5, 0.3)
    train_grpo(config(tmp_path, start, steps=2))
    train_grpo(config(tmp_path, start, resume=True))
    assert json.loads((tmp_path / "best-000002/asyncthink.json").read_text())["validation"]["solved"] == 0.5
    assert len(list(tmp_path.glob("best-*"))) == 1


def test_a_real_validation_is_on_held_out_puzzles_of_its_half(start: Path, tmp_path: Path) -> None:
    puzzles = puzzles_for([TASKS["counting"], TASKS["sudoku-4"]], 5)
    assert [task.name for task, _ in puzzles] == ["counting"] * 3 + ["sudoku-4"] * 2
    assert all(for_validation(task, puzzle) for task, puzzle in puzzles)
    train_grpo(config(tmp_path, start, steps=1))
    lines = [line["validation"] for line in read_metrics(tmp_path / "metrics.jsonl") if "validation" in line]
    assert len(lines) == 2 and lines[0].keys() == set(FIGURES)
    assert lines[0]["format_errors"] == 1  # random weights in four tokens
    assert lines[0]["critical_path_tokens"] <= 4


def test_what_is_better() -> None:
    figures = {"solved": 0.5, "critical_path_tokens": 100.0}
    assert better(figures, None)
    assert not better(figures, figures)
    assert better(figures | {"critical_path_tokens": 99.0}, figures)
    assert better({"solved": 0.6, "critical_path_tokens": 300.0}, figures)


def test_what_is_refused(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="drawn: expected at least the 8 questions of a step, got 4"):
        config(tmp_path, start, questions=8, drawn=4)
    with pytest.raises(ValueError, match="credit: expected mode parallel for marginal credit, got mode asyncthink"):
        config(tmp_path, start, credit="marginal")
    with pytest.raises(ValueError, match="scale: expected one of none, group, got 'x'"):
        config(tmp_path, start, scale="x")
    with pytest.raises(ValueError, match="validate_temperature: expected at least 0, got -1"):
        config(tmp_path, start, validate_temperature=-1)
