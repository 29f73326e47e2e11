"""What runs inside an actor, and the sampler in front of a pool, without Ray: actors are objects in this process."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rollouts import plain
from torch import nn
from typer.testing import CliRunner

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.cli.app import app
from asyncthink.engine.loaded import LoadedModel
from asyncthink.integrations.actor_pool import ActorPool, LostActorError
from asyncthink.integrations.ray import RayModel, RayPool, RaySampler
from asyncthink.integrations.ray_actor import DecoderActor, Job, load_weights, weights_of
from asyncthink.integrations.ray_cluster import gpus_for
from asyncthink.integrations.ray_rollouts import RayRollouts
from scripted import PROMPTS
from tiny_models import organizer

QUESTIONS = [f"{number}" for number in range(7)]
PARAMS = [SamplingParams(temperature=0.8, seed=seed, max_tokens=12) for seed in range(len(QUESTIONS))]
OPTIONS = {"mode": "sequential"}


def changed(factor: float) -> nn.Module:
    model, _ = organizer()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(factor)
    return model


def opened() -> dict[str, LoadedModel]:
    model, tok = organizer()
    sampler = ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=256)
    return {"tiny": LoadedModel("tiny", sampler.decoder, tok, PROMPTS)}


class Here:
    """A cluster whose actors are objects; the calls numbered in ``deaths`` lose theirs."""

    def __init__(self, deaths: Sequence[int] = ()) -> None:
        self.deaths, self.calls = deaths, 0
        self.version, self.weights = 0, list[Any]()

    def start(self, number: int) -> tuple[Any, Any]:
        actor = DecoderActor(torch.get_num_threads())
        return actor, functools.partial(actor.open, opened, self.version, *self.weights)

    def put(self, weights: Any) -> None:
        self.weights = [*self.weights[:1], weights]
        self.version += 1

    def submit(self, actor: Any, job: Job) -> Any:
        return functools.partial(getattr(actor, job.method), *job.arguments)

    def wait(self, tickets: Sequence[Any], timeout: float | None) -> Any:
        return tickets[-1]

    def result(self, ticket: Any) -> Any:
        self.calls += 1
        if self.calls in self.deaths:
            raise LostActorError("lost")
        return ticket()

    def kill(self, actor: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # actors set it


def pool(actors: int = 2, deaths: Sequence[int] = ()) -> RayPool:
    made = object.__new__(RayPool)  # without Ray
    made.actors, made.cluster = actors, Here(deaths)  # type: ignore[assignment]
    made.pool = ActorPool(made.cluster, actors, say=lambda message: None)
    return made


def expected(model: nn.Module, batch: int = 3) -> list[dict[str, Any]]:
    """The episodes of a sampler in this process, drawn in the pool's batches: bitwise the same."""
    sampler = ForkJoinSampler(model, organizer()[1], prompts=PROMPTS, num_pages=256, mode="sequential")
    starts = range(0, len(QUESTIONS), batch)
    drawn = [sampler.generate(QUESTIONS[start : start + batch], PARAMS[start : start + batch]) for start in starts]
    return [plain(episode) for episodes in drawn for episode in episodes]


def test_batches_make_the_episodes_of_one_process_in_order() -> None:
    sampler: RaySampler = pool(deaths=[6]).sampler("tiny", batch=3, **OPTIONS)
    events: list[int] = []
    episodes = sampler.generate(QUESTIONS, PARAMS, on_event=lambda number, event: events.append(number))
    assert [plain(episode) for episode in episodes] == expected(organizer()[0])
    assert sampler.pool.pool.replaced == 1
    assert sorted(set(events)) == list(range(7))
    assert len(events) == sum(len(episode.events) for episode in episodes), "told once of each"
    assert (sampler.options.mode, sampler.generate([])) == ("sequential", [])


def test_errors_of_the_sampler_come_through() -> None:
    ours = pool()
    with pytest.raises(ValueError, match="mode: expected one of"):
        ours.sampler("tiny", mode="sideways")
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        ours.sampler("tiny", batch=0)
    sampler = ours.sampler("tiny", **OPTIONS)
    with pytest.raises(ValueError, match=r"params: expected one or 7 \(one a question\), got 2"):
        sampler.generate(QUESTIONS, PARAMS[:2])
    with pytest.raises(ValueError, match="expected fewer than"):
        sampler.generate(["1", "1" * 5000])
    assert len(sampler.generate(["1"], PARAMS[0])) == 1


def test_new_weights_reach_every_actor_and_those_that_replace_them() -> None:
    ours = pool(deaths=[12])
    sampler = ours.sampler("tiny", batch=3, **OPTIONS)
    assert ours.refresh(weights_of(changed(0.5))) == 1
    half = [plain(episode) for episode in sampler.generate(QUESTIONS, PARAMS)]
    assert half == expected(changed(0.5)) != expected(organizer()[0])
    head = {name: weight for name, weight in weights_of(changed(0.25)).items() if name == "lm_head.weight"}
    assert ours.refresh(head) == 2
    assert [plain(episode) for episode in sampler.generate(QUESTIONS, PARAMS)] == expected(changed(0.25))
    assert ours.pool.replaced == 1


def test_an_actor_with_other_weights_draws_nothing() -> None:
    actor = DecoderActor(torch.get_num_threads())
    actor.open(opened, 0)
    with pytest.raises(RuntimeError, match="weights: expected version 1 on every actor, got 0"):
        actor.generate(1, "tiny", (), ["1"], PARAMS[:1])
    weights = weights_of(organizer()[0])
    with pytest.raises(RuntimeError, match="weights: expected version 1, got 2"):
        actor.take(2, weights)
    assert actor.take(1, weights) == actor.take(1, weights) == 1


def test_weights_are_checked_before_any_is_changed() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(2, 1).to(torch.bfloat16))
    weights = weights_of(copy.deepcopy(model))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    load_weights(model, weights)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    new = weights_of(nn.Sequential(nn.Linear(2, 1)))
    with pytest.raises(ValueError, match=r"weights: expected names of the model's parameters, got '7.bias'"):
        load_weights(model, new | {"7.bias": new["0.bias"]})
    with pytest.raises(
        ValueError, match=r"weights: expected 1.bias as \('bfloat16', \(1,\)\), got \('float32', \(1,\)\)"
    ):
        load_weights(model, new | {"1.bias": new["0.bias"]})
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    model[0].requires_grad_(False)
    assert list(weights_of(model, trainable=True)) == ["1.weight", "1.bias"]


def test_a_model_on_actors_says_where_it_runs() -> None:
    model = RayModel(pool(actors=2), "tiny", batch=3)
    assert model.machine.startswith("2 Ray actors, each on CPU, ")
    assert model.parameters == opened()["tiny"].parameters


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for command in (["eval"], ["train", "grpo", "--out", str(tmp_path / "run"), "--model", "m"]):
        result = CliRunner().invoke(app, [*command, "--ray-actors", "2"])
        assert result.exit_code == 1
        assert 'asyncthink: Ray is not installed: pip install "asyncthink-kernels[ray]"' in result.stderr
    assert not (tmp_path / "run").exists()


def test_rollouts_are_of_one_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="ray_actors: expected one training process, got 2"):
        RayRollouts(2)


@pytest.mark.parametrize(
    ("asked", "gpus", "told"),
    [
        ("cuda:1", None, "device: expected auto, cpu or cuda with Ray, which chooses the GPU, got 'cuda:1'"),
        ("cpu", 0.5, "ray_gpus: expected none for cpu, got 0.5"),
        ("cuda", 0, "ray_gpus: expected some for cuda, got 0"),
    ],
)
def test_gpus_without_effect_are_refused(asked: str, gpus: float | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        gpus_for(asked, gpus)


def test_an_actor_sets_its_threads_before_torch_is_loaded() -> None:
    code = "import sys, asyncthink.integrations.ray; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
