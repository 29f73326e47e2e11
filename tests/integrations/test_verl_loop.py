"""The agent loop in verl's own worker, up to the trainer's queue. Runs in verl's environment (docs/verl.md).

``python -m pytest --noconftest tests/integrations/test_verl_loop.py``
"""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl", reason="runs in verl's environment: docs/verl.md")

import numpy as np
import torch
import transfer_queue
import verl
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from transformers import AutoTokenizer
from verl.experimental.agent_loop import agent_loop
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import AdvantageEstimator
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl_doubles import HttpServers, ScriptedServers, served

from asyncthink import checkpoint_path
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.prompts import PromptFormat
from asyncthink.tasks import TASKS

ROOT = Path(__file__).parents[2]
MODEL = checkpoint_path("countdown")
PROMPTS = PromptFormat.load(MODEL)
Worker = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class


def config(*overrides: str) -> DictConfig:
    folder = Path(verl.__file__).parent / "trainer/config"
    with initialize_config_dir(config_dir=str(folder), version_base=None):
        return compose(
            "ppo_trainer",
            overrides=[
                f"actor_rollout_ref.model.path={MODEL}",
                "actor_rollout_ref.rollout.name=vllm",
                "actor_rollout_ref.rollout.prompt_length=64",
                "actor_rollout_ref.rollout.response_length=900",
                "actor_rollout_ref.rollout.calculate_log_probs=True",
                "actor_rollout_ref.rollout.n=4",
                f"actor_rollout_ref.rollout.agent.agent_loop_config_path={ROOT}/examples/verl/agent_loops.yaml",
                *overrides,
            ],
        )


class Queue:
    """What the worker puts into the trainer's queue."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.statuses: list[str] = []
        self.keys: list[str] = []
        self.tags: list[dict[str, Any]] = []
        self.fields: list[Any] = []
        patch.setattr(transfer_queue, "init", lambda: None)
        patch.setattr(transfer_queue, "async_kv_put", self.put)
        patch.setattr(transfer_queue, "async_kv_batch_put", self.put_batch)

    async def put(self, *, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        self.statuses.append(tag["status"])

    async def put_batch(self, *, keys: list[str], fields: Any, tags: list[dict[str, Any]], partition_id: str) -> None:
        self.keys += keys
        self.tags += tags
        self.fields += [fields[k] for k in range(len(keys))]

    def column(self, name: str) -> list[Any]:
        values = [field[name] for field in self.fields]
        return [getattr(value, "data", value) if not isinstance(value, torch.Tensor) else value for value in values]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    return Queue(monkeypatch)


class Sessions(ScriptedServers):
    """Plays one list of scripts for each session, in turn."""

    def __init__(self, codec: Codec, plays: list[list[str]]) -> None:
        super().__init__(codec, [])
        self.plays, self.known = plays, dict[str, list[str]]()

    async def generate(self, request_id: str, **kwargs: Any) -> Any:  # type: ignore[override]
        self.scripts = self.known.setdefault(request_id, self.plays[len(self.known) % len(self.plays)])
        return await super().generate(request_id, **kwargs)


def solved(seed: int, mode: str = "asyncthink") -> list[str]:
    """The texts of all agents of a written-out solution, each from the beginning of its context."""
    task = TASKS["countdown"]
    puzzle = task.sample(seed)
    first, *workers = task.demonstrate(puzzle, 1, mode).scripts
    begin = PROMPTS.fill("organizer" if mode == "asyncthink" else "solo", question=task.prompt(puzzle))
    texts = [begin + first.text]
    for worker in workers:
        above = "".join(piece.text for piece in first.pieces[: worker.fork_at])
        texts.append(begin + above + PROMPTS.fill("worker_shared", subquery=worker.subquery) + worker.text)
    return texts


def wrong(seed: int) -> list[str]:
    task = TASKS["countdown"]
    return [PROMPTS.fill("organizer", question=task.prompt(task.sample(seed))) + "<ANSWER>1</ANSWER>"]


def data_row(seed: int, **more: Any) -> dict[str, Any]:
    made = runpy.run_path(str(ROOT / "examples/verl/make_data.py"))["row"](TASKS["countdown"], "countdown", seed, False)
    row = {"raw_prompt": made.pop("prompt"), **made, "uid": f"puzzle{seed}", "index": seed, "global_steps": 1}
    return row | more


def rollout(servers: Any, row: dict[str, Any], *overrides: str, handles: Any = None, validate: bool = False) -> Any:
    """One prompt through verl's worker; n rollouts of it."""
    worker = Worker(config(*overrides), servers, None, handles)
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
    trajectory = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": validate}
    asyncio.run(worker._run_prompt(row, sampling, trajectory))
    return worker


def codec() -> Codec:
    return Codec(AutoTokenizer.from_pretrained(MODEL))


def test_an_episode_is_one_row_an_agent_with_one_advantage(queue: Queue) -> None:
    words = codec()
    servers = Sessions(words, [solved(7), wrong(7)])
    rollout(servers, data_row(7))
    agents = len(solved(7))
    assert agents > 2
    assert queue.statuses == ["running", "finished"]
    assert sorted(queue.keys) == sorted(
        f"puzzle7_{session}_{row}" for session in range(4) for row in range(agents if session % 2 == 0 else 1)
    )
    whole = [words.decode(torch.cat([field["prompts"], field["responses"]]).tolist()) for field in queue.fields]
    organizer, *workers = solved(7)
    assert sorted(whole) == sorted([*workers, organizer] * 2 + wrong(7) * 2)
    for key, text, roles in zip(queue.keys, whole, queue.column("extra_fields"), strict=True):
        last = key.endswith(f"_{agents - 1}") or text in wrong(7)
        assert (roles["asyncthink"]["role"] == "organizer") == last
    for tag, field in zip(queue.tags, queue.fields, strict=True):
        assert (tag["min_global_steps"], tag["max_global_steps"], tag["status"]) == (3, 3, "success")
        assert tag["seq_len"] == len(field["input_ids"]) <= 964
        assert torch.equal(field["rollout_log_probs"], -0.5 * field["response_mask"])
        assert len(field["prompts"]) == len(queue.fields[-1]["prompts"])
    scores = {key: float(field["rm_scores"].sum()) for key, field in zip(queue.keys, queue.fields, strict=True)}
    assert {round(score, 4) for key, score in scores.items() if key.split("_")[1] in "02"} != {0.0}
    check_advantages(queue)


def check_advantages(queue: Queue) -> None:
    """verl's own GRPO: all tokens that the agents of an episode drew get the episode's advantage."""
    width = max(len(field["responses"]) for field in queue.fields)

    def padded(name: str) -> torch.Tensor:
        values = [field[name].float() for field in queue.fields]
        return torch.stack([torch.nn.functional.pad(value, (0, width - len(value))) for value in values])

    mask = padded("response_mask")
    data = DataProto.from_dict(
        tensors={"token_level_rewards": padded("rm_scores"), "response_mask": mask},
        non_tensors={"uid": np.array(["puzzle7"] * len(queue.keys), dtype=object)},
    )
    done = compute_advantage_for_multi_trajectories(data, queue.keys, AdvantageEstimator.GRPO)
    for key, advantages, drawn in zip(queue.keys, done.batch["advantages"], mask, strict=True):
        (value,) = set(advantages[drawn.bool()].tolist())
        assert (value > 0.5) if key.split("_")[1] in "02" else (value < -0.5)
        assert not advantages[~drawn.bool()].any()


def test_rewards_are_those_of_our_task(queue: Queue) -> None:
    rollout(Sessions(codec(), [solved(7), wrong(7)]), data_row(7))
    terms = [extra["reward_extra_info"] for extra in queue.column("extra_fields")]
    for key, term, field in zip(queue.keys, terms, queue.fields, strict=True):
        right = key.split("_")[1] in "02"
        assert (term["acc"], term["broken"]) == (float(right), 0.0)
        assert float(field["rm_scores"][-1]) == pytest.approx(term["score"])
        assert (term["forks"] > 0) == right
        assert (term["eta"] > 0.25) == right


def test_the_reward_path_of_verl_is_told_the_answer(queue: Queue) -> None:
    told: list[dict[str, Any]] = []

    def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> float:
        told.append({"source": data_source, "said": solution_str, "truth": ground_truth, **extra_info})
        return 0.25

    async def remote(data: DataProto) -> dict[str, Any]:
        return await NaiveRewardManager(None, tokenizer, compute_score).run_single(data)

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    handle = SimpleNamespace(compute_score=SimpleNamespace(remote=remote))
    row = data_row(7, extra_info={"index": 7}, reward_model={"style": "rule", "ground_truth": "truth"})
    rollout(Sessions(codec(), [solved(7)]), row, "actor_rollout_ref.rollout.n=1", handles=[handle])
    (seen,) = told
    assert (seen["source"], seen["truth"], seen["num_turns"]) == (
        "countdown",
        "truth",
        2 + 2 * int(seen["asyncthink"]["joins"]),
    )
    answer = seen["asyncthink"]["answer"]
    assert seen["said"].endswith(f"<ANSWER>{answer}</ANSWER>")  # whole, though some workers' contexts are longer
    assert max(len(field["input_ids"]) for field in queue.fields[:-1]) > len(queue.fields[-1]["input_ids"])
    assert seen["asyncthink"]["role"] == "organizer"
    assert [float(field["rm_scores"].sum()) for field in queue.fields] == [0.25] * len(solved(7))


def test_the_baseline_of_the_example(queue: Queue) -> None:
    servers = Sessions(codec(), [solved(7, "sequential")])
    rollout(servers, data_row(7, agent_name="one_agent"), "actor_rollout_ref.rollout.n=1")
    assert queue.statuses == ["running", "finished"]
    (extra,) = queue.column("extra_fields")
    correct = TASKS["countdown"].verify(TASKS["countdown"].sample(7), extra["asyncthink"]["answer"])
    assert (extra["asyncthink"]["role"], extra["reward_extra_info"]["acc"]) == ("solo", correct)
    assert correct > 0


def test_settings_of_the_file_hold_for_every_rollout(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """verl imports the loop when the first rollout begins, which must not register it anew."""
    monkeypatch.delitem(sys.modules, "asyncthink.integrations.verl_loop", raising=False)
    servers = Sessions(codec(), [solved(7), wrong(7)])
    rollout(servers, data_row(7))
    rollout(servers, data_row(7))
    assert queue.statuses == ["running", "finished"] * 2
    assert max(request["max_tokens"] for request in servers.requests) == 512


def test_importing_the_module_registers_the_loop_with_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_loop, "_agent_loop_registry", {})
    runpy.run_module("asyncthink.integrations.verl")
    target = "asyncthink.integrations.verl_loop.AsyncThinkLoop"
    assert agent_loop._agent_loop_registry == {"asyncthink": {"_target_": target}}


ROLLOUT = "actor_rollout_ref.rollout"


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["trainer.use_v1=False"], "trainer.use_v1: expected true"),
        ([f"{ROLLOUT}.name=sglang"], "rollout.skip_tokenizer_init: expected false"),
        ([f"{ROLLOUT}.enable_rollout_routing_replay=True"], "enable_rollout_routing_replay: expected false"),
        (["+data.apply_chat_template_kwargs.enable_thinking=True"], "data.apply_chat_template_kwargs: expected none"),
        ([f"{ROLLOUT}.prompt_length=4", f"{ROLLOUT}.response_length=4"], "raw_prompt: expected fewer than 8 tokens"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    queue: Queue, overrides: list[str], error: str, caplog: pytest.LogCaptureFixture
) -> None:
    rollout(Sessions(codec(), [solved(7)]), data_row(7), *overrides)
    assert queue.statuses == ["running", "failure"]
    assert not queue.keys
    assert error in caplog.text


def test_an_aborted_answer_fails_the_group(queue: Queue) -> None:
    servers = Sessions(codec(), [solved(7)])
    servers.aborts = True
    rollout(servers, data_row(7))
    assert (queue.statuses, queue.keys) == (["running", "failure"], [])


def test_the_examples_data_and_overrides_are_read_by_verl(tmp_path: Path) -> None:
    """The parquet files by verl's dataset, and every override of run.sh by its configuration."""
    runpy.run_path(str(ROOT / "examples/verl/make_data.py"))["main"](
        ["countdown", str(tmp_path), "--train", "3", "--test", "2"]
    )
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\nshift 2\nprintf '%s\\n' \"$@\"\n")
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DATA": str(tmp_path), "MODEL": str(MODEL)}
    command = ["bash", str(ROOT / "examples/verl/run.sh"), "trainer.total_epochs=2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    made = config(*done.stdout.splitlines())
    assert made.trainer.total_epochs == 2
    rows = RLHFDataset([made.data.train_files], AutoTokenizer.from_pretrained(MODEL), made.data)
    assert len(rows) == 3
    assert rows[2]["raw_prompt"] == data_row(2)["raw_prompt"]
    assert rows[2]["extra_info"]["asyncthink"] == {"task": "countdown", "seed": 2, "held_out": False}
    loops = OmegaConf.load(made.actor_rollout_ref.rollout.agent.agent_loop_config_path)
    assert [loop.name for loop in loops] == ["asyncthink", "one_agent"]


SERVED = """
import json, sys
from asyncthink import ForkJoinSampler, SamplingParams, checkpoint_path
from asyncthink.integrations.agent_rows import agent_rows
from asyncthink.tasks import TASKS

task = TASKS["countdown"]
sampler = ForkJoinSampler(checkpoint_path("countdown"), dtype="float32")
questions = [task.prompt(task.sample(seed)) for seed in json.loads(sys.argv[1])]
episodes = sampler.generate(questions, SamplingParams(temperature=0.0, max_tokens=512))
rows = [[(row.prompt + row.response, row.mask, row.logprobs) for row in agent_rows(e)] for e in episodes]
print(json.dumps(rows))
"""


@pytest.mark.slow
@pytest.mark.skipif("ASYNCTHINK_PYTHON" not in os.environ, reason="$ASYNCTHINK_PYTHON: a Python that serves our model")
def test_a_real_model_behind_the_servers(queue: Queue) -> None:
    """Our server, in its own environment, as the replica: rows are those of the local engine's greedy episodes."""
    python, seeds = os.environ["ASYNCTHINK_PYTHON"], [3, 7, 11]
    local = subprocess.run([python, "-c", SERVED, json.dumps(seeds)], capture_output=True, text=True, check=True)
    with served(python) as url:
        for seed, expected in zip(seeds, json.loads(local.stdout.splitlines()[-1]), strict=True):
            queue.keys.clear()
            queue.fields.clear()
            row = data_row(seed, __do_sample__=False, __rollout_n__=1)
            rollout(HttpServers(url), row)
            assert len(queue.fields) == len(expected) > 1
            for field, (tokens, mask, logprobs) in zip(queue.fields, expected, strict=True):
                assert torch.cat([field["prompts"], field["responses"]]).tolist() == tokens
                assert field["response_mask"].tolist()[-len(mask) :] == mask
                assert int(field["response_mask"].sum()) == sum(mask)
                assert field["rollout_log_probs"].tolist()[-len(mask) :] == pytest.approx(logprobs, abs=1e-4)
