"""Steps that must not be taken: without a gradient, or with something that is not finite. What is saved is finite."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from state_files import state_tensors
from torch import Tensor, nn

from asyncthink.episode.records import Episode
from asyncthink.tasks import Task
from asyncthink.tasks.rewards import Reward, RewardRule
from asyncthink.train import checkpoint, grpo, sft
from asyncthink.train.checkpoint import checkpoints, save_checkpoint
from asyncthink.train.distributed import ALONE
from asyncthink.train.grpo import train_grpo
from asyncthink.train.grpo_config import GRPOConfig
from asyncthink.train.grpo_loss import Objective
from asyncthink.train.loading import TINY_PROMPTS, Loaded, ModelOptions, Shape, load, optimizer
from asyncthink.train.sft import SFTConfig, train_sft
from asyncthink.train.state import Progress, load_state
from asyncthink.train.steps import LeftOut, Steps, check_finite

SHAPE = Shape(layers=1, hidden=16, heads=1, kv_heads=1, head_dim=16, intermediate=16)
MODEL = ModelOptions(shape=SHAPE, bfloat16=False)
NAN, INF = math.nan, math.inf


def made(max_skipped: int = 5) -> tuple[nn.Parameter, torch.optim.AdamW, Steps]:
    """A weight with momentum and weight decay, after one step."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    adam = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    steps = Steps(adam, 1.0, max_skipped)
    give(weight, 0.3, 0.1)
    steps.take(1.0)
    return weight, adam, steps


def give(weight: nn.Parameter, *values: float) -> None:
    weight.grad = torch.tensor(values)


def state(weight: nn.Parameter, adam: torch.optim.AdamW) -> list[Tensor]:
    """The weight and all that the optimizer holds of it."""
    return [weight.detach().clone(), *(value.clone() for value in adam.state[weight].values())]


def test_sums_are_divided_before_the_step() -> None:
    weight, adam, steps = made()
    other = nn.Parameter(torch.ones(2))  # without a gradient
    adam.add_param_group({"params": [other]})
    steps = Steps(adam, 10.0)
    give(weight, 3.0, 4.0)
    steps.divide(5.0)
    assert weight.grad is not None
    assert weight.grad.tolist() == pytest.approx([0.6, 0.8])
    assert steps.take(1.0) == pytest.approx(1.0)
    assert other.tolist() == [1.0, 1.0]


def test_a_silent_step_moves_nothing() -> None:
    weight, adam, steps = made()
    before = state(weight, adam)
    give(weight, 0.0, 0.0)
    assert steps.take(0.0) == 0
    assert all(map(torch.equal, state(weight, adam), before))
    assert steps.left_out == LeftOut(silent=1)
    assert weight.grad is None


@pytest.mark.parametrize(
    ("loss", "gradient"),
    [(NAN, (1.0, 1.0)), (INF, (0.0, 0.0)), (1.0, (NAN, 0.0)), (1.0, (INF, 0.0)), (1.0, (3e38, 3e38))],
)
def test_a_skipped_step_is_as_if_it_had_not_been(loss: float, gradient: tuple[float, float]) -> None:
    ends = []
    for broken in (False, True):
        weight, adam, steps = made()
        if broken:
            before = state(weight, adam)
            give(weight, *gradient)
            steps.take(loss)
            assert all(map(torch.equal, state(weight, adam), before))
            assert (steps.left_out, weight.grad) == (LeftOut(0, 1, 1), None)
        give(weight, 0.2, 0.4)
        steps.take(1.0)
        ends.append(state(weight, adam))
        assert steps.left_out == LeftOut(0, int(broken), 0)
    assert all(map(torch.equal, *ends))


def test_several_skipped_steps_in_a_row_stop() -> None:
    weight, _, steps = made(max_skipped=3)
    for gradient in (NAN, NAN, 1.0, NAN, 0.0, NAN):  # the taken step begins anew, the silent one does not
        give(weight, gradient, gradient)
        steps.take(1.0)
    assert steps.left_out == LeftOut(silent=1, skipped=4, skipped_in_a_row=2)
    give(weight, NAN, 0.0)
    with pytest.raises(RuntimeError, match=r"got loss 2.5 and gradient norm nan; 3 steps in a row were skipped"):
        steps.take(2.5)
    assert torch.isfinite(weight).all()


def test_what_is_not_finite_is_named() -> None:
    check_finite("weights", [("a", torch.ones(2)), ("b", torch.arange(3))])
    with pytest.raises(
        ValueError, match=r"weights: expected finite numbers, got NaN or infinity in b \(2 of 3 tensors"
    ):
        check_finite("weights", [("a", torch.ones(2)), ("b", torch.tensor(NAN)), ("c", torch.tensor([1, -INF]))])


def folder_of(out: Path, loaded: Loaded, adam: torch.optim.AdamW, step: int) -> Path:
    parts: tuple[Any, ...] = loaded.model, loaded.tokenizer, TINY_PROMPTS, {}
    return save_checkpoint(out, *parts, adam, Progress(step, left_out=LeftOut(3, 2, 1)))


@pytest.mark.parametrize("broken", ["weights", "moments"])
def test_nothing_that_is_not_finite_is_saved(tmp_path: Path, broken: str) -> None:
    loaded = load(MODEL)
    adam = optimizer(loaded.model, 1e-3, 0.0)
    for parameter in loaded.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adam.step()
    kept = folder_of(tmp_path, loaded, adam, 1)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    weight = next(iter(loaded.model.parameters()))
    spoiled = weight if broken == "weights" else adam.state[weight]["exp_avg"]
    with torch.no_grad():
        spoiled[0, 0] = INF
    with pytest.raises(ValueError, match=f"{broken}: expected finite numbers"):
        folder_of(tmp_path, loaded, adam, 2)
    if broken == "weights":
        with pytest.raises(ValueError, match="weights: expected finite numbers"):
            checkpoint.save_model(kept, loaded.model, loaded.tokenizer, TINY_PROMPTS, {})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert load_state(kept, loaded.model, adam, ALONE) == Progress(1, left_out=LeftOut(3, 2, 1))


def test_a_state_of_other_parameters_is_named(tmp_path: Path) -> None:
    loaded = load(MODEL)
    adam = optimizer(loaded.model, 1e-3, 0.0)
    for parameter in loaded.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adam.step()
    folder = folder_of(tmp_path, loaded, adam, 1)
    with pytest.raises(
        ValueError, match=r"resume: .*step-000001 holds the state of model\..*, which is not trained here"
    ):
        load_state(folder, nn.Linear(2, 2), adam, ALONE)
    with pytest.raises(ValueError, match="holds no training state"):
        load_state(tmp_path, loaded.model, adam, ALONE)


def strict(out: Path) -> list[dict[str, Any]]:
    """The reports, read as JSON without NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return [json.loads(line, parse_constant=refuse) for line in (out / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, Tensor]:
    found = {**load_file(folder / "model.safetensors"), **state_tensors(folder)}
    return {name: tensor for name, tensor in found.items() if name != "random"}


class TestSFT:
    def config(self, out: Path, **changes: Any) -> SFTConfig:
        plain = SFTConfig(out, model=MODEL, steps=3, batch_tokens=100, warmup=1, decay=0.0, evaluate_every=99)
        return replace(plain, evaluate_episodes=1, save_every=1, log_every=1, **changes)

    def spoil(self, monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
        """Log-probabilities of the calls with these numbers become NaN."""
        whole, number = sft.token_logprobs, iter(range(99))
        monkeypatch.setattr(
            sft, "token_logprobs", lambda *a, **k: whole(*a, **k) * (NAN if next(number) in calls else 1.0)
        )

    def test_a_step_with_nan_is_skipped_and_counted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spoil(monkeypatch, 1)
        train_sft(self.config(tmp_path, steps=2))
        before, after = map(tensors, checkpoints(tmp_path))
        assert all(torch.equal(before[name], after[name]) for name in before)
        train_sft(self.config(tmp_path, resume=True))
        lines = [line for line in strict(tmp_path) if "loss" in line]
        assert [line["skipped"] for line in lines] == [0, 1, 1]
        assert [line["loss"] is None for line in lines] == [False, True, False]
        assert lines[1]["gradient_norm"] is None
        assert all(torch.isfinite(tensor).all() for tensor in tensors(checkpoints(tmp_path)[-1]).values())

    def test_nan_in_a_row_stops_also_across_a_resume(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spoil(monkeypatch, *range(1, 99))
        train_sft(self.config(tmp_path, steps=2, max_skipped=3))
        with pytest.raises(RuntimeError, match="3 steps in a row were skipped"):
            train_sft(self.config(tmp_path, steps=9, max_skipped=3, resume=True))
        assert checkpoints(tmp_path)[-1].name == "step-000003"


@dataclass(frozen=True)
class Odd(RewardRule):
    """Rewards by the tokens that were drawn, so that episodes differ; ``nan_of`` 4 of them are NaN."""

    nan_of: int = 0

    def __call__(self, task: Task, puzzle: Any, episode: Episode) -> Reward:
        drawn = sum(episode.traces[0].tokens)
        return Reward(0.0, 0.0, 0.0, False, NAN if drawn % 4 < self.nan_of else float(drawn % 3))


@dataclass(frozen=True)
class Even(RewardRule):
    def __call__(self, task: Task, puzzle: Any, episode: Episode) -> Reward:
        return Reward(1.0, 0.0, 0.0, False, 1.0)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded, folder = load(MODEL), tmp_path_factory.mktemp("start")
    checkpoint.save_model(folder, loaded.model, loaded.tokenizer, TINY_PROMPTS, {})
    return folder


class TestGRPO:
    def config(self, out: Path, start: Path, **changes: Any) -> GRPOConfig:
        plain = GRPOConfig(out, ModelOptions(str(start)), max_tokens=6, questions=2, group_size=8, steps=2, warmup=1)
        return replace(plain, save_every=1, weight_decay=0.5, **changes)

    @pytest.mark.parametrize("kl", [0.0, 0.1])
    def test_episodes_with_a_nan_reward_are_left_out(self, start: Path, tmp_path: Path, kl: float) -> None:
        rule = Odd(nan_of=1)
        folder = train_grpo(self.config(tmp_path, start, rule=rule, objective=Objective(kl=kl)))
        first, second = strict(tmp_path)
        assert 0 < first["rewards_not_finite"] <= first["left_out"] < first["episodes"] == 16
        assert first["logprobs_not_finite"] == first["skipped"] == second["skipped"] == 0
        assert 0 <= first["reward"] <= 2
        before, after = load_file(start / "model.safetensors"), tensors(folder)
        assert any(not torch.equal(before[name], after[name]) for name in before)
        assert all(torch.isfinite(tensor).all() for tensor in after.values())

    def test_without_advantages_weight_decay_moves_nothing(self, start: Path, tmp_path: Path) -> None:
        folder = train_grpo(self.config(tmp_path, start, rule=Even()))
        before, after = load_file(start / "model.safetensors"), load_file(folder / "model.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert [(line["silent"], line["gradient_norm"]) for line in strict(tmp_path)] == [(1, 0.0), (2, 0.0)]

    def test_without_a_finite_reward_the_run_stops(self, start: Path, tmp_path: Path) -> None:
        config = self.config(tmp_path, start, rule=Odd(nan_of=4), max_skipped=2, rounds=1, objective=Objective(kl=0.1))
        with pytest.raises(RuntimeError, match="2 steps in a row were skipped"):
            train_grpo(config)
        (line,) = strict(tmp_path)
        assert (line["rewards_not_finite"], line["left_out"], line["skipped"]) == (16, 16, 1)
        assert line["reward"] is line["loss"] is None
        saved = load_file(checkpoints(tmp_path)[-1] / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in saved.values())

    def test_of_two_minibatches_one_is_skipped(
        self, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, number = grpo.token_scores, iter(range(99))

        def spoiled(*arguments: Any, **names: Any) -> tuple[Tensor, Tensor]:
            logprobs, entropy = whole(*arguments, **names)
            return logprobs * (NAN if next(number) == 0 else 1.0), entropy

        monkeypatch.setattr(grpo, "token_scores", spoiled)
        folder = train_grpo(self.config(tmp_path, start, rule=Odd(), minibatches=2))
        first, second = strict(tmp_path)
        assert (first["skipped"], second["skipped"]) == (1, 1)
        assert first["gradient_norm"] > 0 and first["loss"] is not None  # those of the other
        assert all(torch.isfinite(tensor).all() for tensor in tensors(folder).values())

    @pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "clip", "temperature"])
    def test_numbers_that_are_not_finite_are_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"{name}: expected .*got nan"):
            GRPOConfig(tmp_path, MODEL, **{name: NAN})
        if name != "temperature":
            with pytest.raises(ValueError, match=f"{name}: expected .*got nan"):
                SFTConfig(tmp_path, **{name: NAN})
