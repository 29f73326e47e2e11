"""TRL's trainer on our episodes: it computes what the sampler drew with, and its weights reach the sampler."""

from __future__ import annotations

import functools
import queue
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rollouts import RULE, InstantPolicy, sampler

import tiny_models as tm
from asyncthink import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.integrations.trl import LocalPolicy, RolloutWorker, ServerPolicy, async_grpo_trainer
from asyncthink.serve.settings import Settings
from asyncthink.train.rollout import Grading
from served import served
from toy_task import Counting

trl = pytest.importorskip("trl.experimental.async_grpo", exc_type=ImportError)
PARAMS = SamplingParams(temperature=0.8, max_tokens=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny model that often organizes, as TRL loads it."""
    model, tok = tm.organizer()
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tok.save_pretrained(path)
    yield path
    shutil.rmtree(path)


def config(out: Path, **changes: Any) -> Any:
    given: dict[str, Any] = {
        "output_dir": str(out), "max_steps": 2, "token_budget": 1024, "temperature": 0.8, "bf16": False,
        "gradient_checkpointing": False, "learning_rate": 1e-3, "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1, "report_to": [], "save_strategy": "no", "disable_tqdm": True,
        "logging_strategy": "steps", "logging_steps": 1, "use_cpu": True,
    }  # fmt: skip
    return trl.AsyncGRPOConfig(**(given | changes))


def worker(policy: Any, **options: Any) -> RolloutWorker:
    given: dict[str, Any] = {"params": PARAMS, "group_size": 4, "groups": 2, "grading": Grading(RULE), "queue_size": 64}
    return RolloutWorker(policy, [Counting()], **(given | options))


def watched(trainer: Any) -> list[torch.Tensor]:
    """For each pass of the trainer: |its log-probability - the sampler's| of each drawn token."""
    seen: list[torch.Tensor] = []
    loss = trainer.compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        outputs: list[Any] = []
        hook = model.register_forward_hook(lambda *given: outputs.append(given[-1]))
        made = loss(model, inputs, *rest, **more)
        hook.remove()
        kept = inputs["token_index"] >= 0
        logprobs = outputs[0].log_probs.flatten()[inputs["token_index"][kept]]
        seen.append((logprobs - inputs["old_log_probs"][kept]).detach().abs())
        return made

    trainer.compute_loss = compute_loss
    return seen


@pytest.mark.parametrize("context", ["shared", "isolated"])
def test_trainer_and_sampler_agree_on_every_drawn_token(folder: Path, tmp_path: Path, context: str) -> None:
    policy = LocalPolicy(sampler(context=context))
    drawer = worker(policy, options=policy.engine.sampler.options)
    trainer = async_grpo_trainer(folder, config(tmp_path, max_steps=1), drawer, policy)
    seen = watched(trainer)
    trainer.train()
    assert len(seen[0]) > 100
    assert float(seen[0].max()) < 1e-4
    log = trainer.state.log_history[0]
    assert log["batch/packing_ratio"] > 1.2, "the packer found no forks"
    assert log["ratio"] == pytest.approx(1, abs=1e-4) and abs(log["kl"]) < 1e-6
    assert {"reward", "episode/eta", "episode/tokens", "rollout/tokens_per_s"} <= log.keys()
    assert log["batch/groups_per_step"] >= 1


def test_weights_of_every_step_reach_the_sampler(folder: Path, tmp_path: Path) -> None:
    policy = LocalPolicy(sampler())
    drawer = worker(policy)
    trainer = async_grpo_trainer(folder, config(tmp_path), drawer, policy)
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    ours = dict(policy.engine.sampler.decoder.model.named_parameters())
    assert not torch.equal(trainer.model.lm_head.weight, before)
    assert all(torch.equal(weight, ours[name]) for name, weight in trainer.model.named_parameters())
    assert drawer.model_version == 3  # at the start, and after each step
    assert policy.engine.sampler.cache.used_pages == 0


def test_against_a_server(folder: Path, tmp_path: Path) -> None:
    with served(sampler(), Settings("tiny", weight_updates=True)) as server:
        policy = ServerPolicy(server.url, tmp_path)
        trainer = async_grpo_trainer(folder, config(tmp_path, max_steps=1), worker(policy), policy)
        seen = watched(trainer)
        trainer.train()
        ours = dict(server.engine.sampler.decoder.model.named_parameters())
        assert all(torch.equal(weight, ours[name]) for name, weight in trainer.model.named_parameters())
    assert float(seen[0].max()) < 1e-4


def test_a_worker_that_died_ends_the_training(folder: Path, tmp_path: Path) -> None:
    def die(seed: int) -> Episode:
        raise ConnectionError("the server was killed")

    policy, drawer = LocalPolicy(sampler()), worker(InstantPolicy(die))
    # TRL asks after the worker's health every five seconds without a sample; here at once.
    drawer.rollout_buffer.get = functools.partial(queue.Queue.get, drawer.rollout_buffer, False)  # type: ignore[method-assign]
    trainer = async_grpo_trainer(folder, config(tmp_path), drawer, policy)
    with pytest.raises(RuntimeError, match="the rollout worker failed: ConnectionError: the server was killed"):
        trainer.train()
    assert not policy.engine.healthy, "TRL closed it"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 1.0}, "temperature: expected the worker's 0.8, got 1.0"),
        ({"max_steps": -1}, r"max_steps: expected at least 1 \(questions have no end\), got -1"),
        ({"token_budget": None}, "token_budget: expected the tokens of a packed row, got None"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        async_grpo_trainer(
            "none", config(tmp_path, **changes), worker(InstantPolicy(lambda seed: Episode("q", ""))), None
        )
