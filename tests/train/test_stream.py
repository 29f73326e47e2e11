"""A run on the weights of another run asks new questions; a resumed one asks those of the run that was not stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncthink.tasks import TASKS
from asyncthink.train import grpo
from asyncthink.train.demonstrations import DemonstrationPacker
from asyncthink.train.grpo import GRPOConfig, train_grpo
from asyncthink.train.loading import ModelOptions, Shape
from asyncthink.train.sft import SFTConfig, train_sft
from asyncthink.train.stream import Stream
from toy_task import Counting

SHAPE = Shape(layers=1, hidden=16, heads=1, kv_heads=1, head_dim=16, intermediate=16)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The question of every episode that GRPO draws."""
    questions: list[str] = []
    whole = grpo.roll_out

    def watched(sampler: Any, drawn: Any, *rest: Any) -> Any:
        questions.extend(question.task.prompt(question.puzzle) for question in drawn)
        return whole(sampler, drawn, *rest)

    monkeypatch.setattr(grpo, "roll_out", watched)
    return questions


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[None]:
    TASKS["counting"] = Counting()
    yield
    del TASKS["counting"]


def supervised(out: Path, **changes: Any) -> Path:
    options: dict[str, Any] = {"model": ModelOptions(shape=SHAPE, bfloat16=False), "steps": 2} | changes
    return train_sft(SFTConfig(out, "counting", batch_tokens=100, evaluate_episodes=1, save_every=1, **options))


def learned(out: Path, model: Path, steps: int, **changes: Any) -> Path:
    options = {"max_tokens": 4, "questions": 2, "group_size": 2, "rounds": 1, "save_every": 1} | changes
    return train_grpo(GRPOConfig(out, ModelOptions(str(model)), "counting", steps=steps, **options))


def stream(folder: Path) -> Any:
    return json.loads((folder / "asyncthink.json").read_text())["stream"]


def test_a_continued_run_goes_on_in_the_stream(tmp_path: Path, asked: list[str]) -> None:
    start = supervised(tmp_path / "sft")
    whole = learned(tmp_path / "whole", start, 4)
    expected = list(asked)
    asked.clear()
    first = learned(tmp_path / "first", start, 2)
    second = learned(tmp_path / "second", first, 1)
    second = learned(tmp_path / "second", first, 2, resume=True)
    assert asked == expected
    assert len(set(asked)) == len(asked)
    assert stream(whole) == {"sft": {"start": 0, "next": 2}, "grpo": {"start": 0, "next": 4}}
    assert stream(second) == {"sft": {"start": 0, "next": 2}, "grpo": {"start": 2, "next": 4}}


def test_demonstrations_go_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    whole = DemonstrationPacker.batch

    def watched(self: DemonstrationPacker, seed: int, step: int, batch_tokens: int) -> Any:
        numbers.append(step)
        return whole(self, seed, step, batch_tokens)

    monkeypatch.setattr(DemonstrationPacker, "batch", watched)
    first = supervised(tmp_path / "first", batches=2)
    supervised(tmp_path / "second", model=ModelOptions(str(first), bfloat16=False), steps=1, batches=2)
    supervised(tmp_path / "second", model=ModelOptions(str(first), bfloat16=False), batches=2, resume=True)
    assert numbers == list(range(8))


def test_weights_of_elsewhere_begin_at_zero(tmp_path: Path) -> None:
    assert Stream.of("grpo", None, None) == Stream.of("grpo", "some/hub-id", None) == Stream("grpo", 0, {})
    (tmp_path / "asyncthink.json").write_text("{}")
    assert Stream.of("grpo", str(tmp_path), None).start == 0
