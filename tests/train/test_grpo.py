"""GRPO end to end on a task that is learned in seconds: rewards rise, format errors fall, a resume repeats the run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file

from asyncthink.tasks import TASKS
from asyncthink.tasks.rewards import RewardRule
from asyncthink.train.demonstrations import Mixture
from asyncthink.train.grpo import GRPOConfig, train_grpo
from asyncthink.train.grpo_loss import Objective
from asyncthink.train.loading import ModelOptions, Shape
from asyncthink.train.rollout import draw_questions
from asyncthink.train.sft import SFTConfig, train_sft
from toy_task import Counting

SMALL = Shape(layers=2, hidden=64, heads=2, kv_heads=1, head_dim=32, intermediate=128)


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[None]:
    TASKS["counting"] = Counting()
    yield
    del TASKS["counting"]


def cold_start(out: Path, steps: int) -> Path:
    """A cold start cut short: the format is there, with errors."""
    return train_sft(
        SFTConfig(
            out=out,
            task="counting",
            model=ModelOptions(shape=SMALL, bfloat16=False),
            mixture=Mixture(solo=0.2, shared=0.5, isolated=0.3),
            steps=steps,
            batch_tokens=800,
            learning_rate=4e-3,
            warmup=20,
            evaluate_every=1000,
            evaluate_episodes=4,
        )
    )


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory, toy: None) -> Path:
    """Right now and then, which is enough for a step."""
    return cold_start(tmp_path_factory.mktemp("sft"), 150)


def config(out: Path, cold: Path, **changes: object) -> GRPOConfig:
    plain = GRPOConfig(
        out=out,
        model=ModelOptions(model=str(cold), bfloat16=False),
        task="counting",
        max_tokens=120,
        questions=6,
        group_size=8,
        steps=2,
        learning_rate=5e-4,
        save_every=1,
        rule=RewardRule(weight=1.0, threshold=0.6),
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_the_rate_falls_to_zero_over_the_last_steps(tmp_path: Path) -> None:
    made = config(tmp_path, tmp_path, steps=20, warmup=2, decay=0.5, learning_rate=1.0)
    assert [made.rate(step) for step in (0, 1, 10, 20)] == [0.5, 1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"decay: expected a share in \[0, 1\], got 2"):
        config(tmp_path, tmp_path, decay=2)


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_reward_rises_and_format_errors_fall(tmp_path: Path) -> None:
    train_grpo(config(tmp_path / "run", cold_start(tmp_path / "sft", 450), steps=30, save_every=30))
    lines = metrics(tmp_path / "run")
    assert len(lines) == 30
    first, last = lines[:6], lines[-6:]
    for name in ("reward", "accuracy"):
        assert fmean(line[name] for line in last) > fmean(line[name] for line in first) + 0.02, name
    assert fmean(line["format_errors"] for line in first) > 0.04
    assert fmean(line["format_errors"] for line in last) < 0.5 * fmean(line["format_errors"] for line in first)
    # What the sampler drew with is what the trainer computes.
    assert max(line["off_policy"] for line in lines) < 1e-4


def test_kl_is_measured_against_the_weights_at_the_start(cold: Path, tmp_path: Path) -> None:
    out, changes = tmp_path / "run", {"objective": Objective(kl=0.1), "warmup": 1}
    train_grpo(config(out, cold, **changes))
    train_grpo(config(out, cold, steps=4, resume=True, **changes))
    first, second, third, _ = (line["kl"] for line in metrics(out))
    assert first < 1e-7 < 1e-5 < second
    assert third > 1e-5, "a resumed run keeps the reference of its start"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "sequential"},
        {"mode": "parallel", "pool": 2},
        {"join": "append"},
        {"join": "link", "context": "isolated"},
        {"objective": Objective(kl=0.1, normaliser="episode"), "minibatches": 2},
        {"objective": Objective(normaliser="constant", entropy=1e-3), "scale": "group"},
        {"mode": "parallel", "pool": 2, "credit": "marginal"},
    ],
)
def test_every_setting_trains(changes: dict[str, object], cold: Path, tmp_path: Path) -> None:
    folder = train_grpo(config(tmp_path / "run", cold, **changes))
    before, after = weights(cold), weights(folder)
    assert any(not torch.equal(before[name], after[name]) for name in after)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    if changes.get("minibatches", 1) == 1:
        assert max(line["off_policy"] for line in metrics(tmp_path / "run")) < 1e-4


def test_packing_does_not_change_the_step(cold: Path, tmp_path: Path) -> None:
    """One pack of everything, or one episode a pack: the same weights up to rounding."""
    folders = [
        train_grpo(config(tmp_path / str(length), cold, steps=1, batch_tokens=length)) for length in (1, 100_000)
    ]
    one, many = map(weights, folders)
    for name in one:
        torch.testing.assert_close(one[name], many[name], rtol=0, atol=1e-5)


def test_resume_repeats_the_uninterrupted_run(cold: Path, tmp_path: Path) -> None:
    whole = train_grpo(config(tmp_path / "whole", cold, steps=4))
    train_grpo(config(tmp_path / "parts", cold, steps=2))
    parts = train_grpo(config(tmp_path / "parts", cold, steps=4, resume=True))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(parts).values(), strict=True))
    timed = {"seconds", "seconds_rollout", "seconds_update"}
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"), strict=True):
        assert {k: v for k, v in a.items() if k not in timed} == {k: v for k, v in b.items() if k not in timed}


def test_questions_are_a_pure_function_and_never_held_out() -> None:
    task = Counting()
    asked = [question for step in range(50) for question in draw_questions([task], 7, step, 4)]
    assert asked == [question for step in range(50) for question in draw_questions([task], 7, step, 4)]
    held_out = {task.sample(seed, held_out=True) for seed in range(500)}
    assert not held_out & {question.puzzle for question in asked}


def test_what_is_refused(cold: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="group_size: expected at least 2"):
        config(tmp_path, cold, group_size=1)
    with pytest.raises(ValueError, match="temperature: expected more than 0"):
        config(tmp_path, cold, temperature=0.0)
    with pytest.raises(ValueError, match="steps: expected at least 1"):
        config(tmp_path, cold, steps=0)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        train_grpo(config(tmp_path / "none", cold, resume=True))
    out = tmp_path / "run"
    train_grpo(config(out, cold, steps=1))
    with pytest.raises(ValueError, match="already holds a run"):
        train_grpo(config(out, cold, steps=2))
    with pytest.raises(ValueError, match="steps: expected more than the 1 that are done"):
        train_grpo(config(out, cold, steps=1, resume=True))


@pytest.mark.parametrize("guide", ["legal", "plan"])
def test_a_step_under_a_guide_is_on_policy_and_without_format_errors(cold: Path, tmp_path: Path, guide: str) -> None:
    train_grpo(config(tmp_path / "run", cold, guide=guide, steps=1, max_tokens=60))
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    metrics = json.loads(line)
    assert metrics["format_errors"] == 0
    assert metrics["off_policy"] < 1e-4
