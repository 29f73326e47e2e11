"""Two actors of a real Ray on this machine: the episodes of one process, whatever dies."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rollouts import plain
from typer.testing import CliRunner

from asyncthink import Episode, ForkJoinSampler, SamplingParams, checkpoint_path
from asyncthink.cli.app import app
from asyncthink.engine.loaded import LoadedModel
from asyncthink.integrations.ray import RayPool, open_models
from asyncthink.integrations.ray_rollouts import RayRollouts
from asyncthink.tasks import Countdown, Task
from asyncthink.train.grpo import train_grpo
from asyncthink.train.grpo_config import GRPOConfig
from asyncthink.train.loading import ModelOptions
from asyncthink.train.progress import read_metrics

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = pytest.mark.slow

BOX = str(checkpoint_path())
TASK = Countdown()
QUESTIONS = [TASK.prompt(TASK.sample(seed, held_out=True)) for seed in range(10)]
SIZES = {"device": "cpu", "num_pages": 512}
OPENER = functools.partial(open_models, [BOX], **SIZES)
BATCH = 2


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors do not import tests
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=8, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pool(cluster: None) -> Iterator[RayPool]:
    with RayPool(OPENER, 2) as pool:
        yield pool


def params(temperature: float) -> list[SamplingParams]:
    return [SamplingParams(temperature=temperature, seed=seed, max_tokens=150) for seed in range(len(QUESTIONS))]


@functools.cache
def one_process(temperature: float, **options: str) -> list[dict[str, Any]]:
    """Drawn by one sampler in the pool's batches."""
    sampler = ForkJoinSampler(BOX, **SIZES, prefix_pages=0, **options)  # nothing is kept from one batch to the next
    starts = range(0, len(QUESTIONS), BATCH)
    sets = params(temperature)
    drawn = [sampler.generate(QUESTIONS[start : start + BATCH], sets[start : start + BATCH]) for start in starts]
    return [plain(episode) for episodes in drawn for episode in episodes]


@pytest.mark.parametrize(
    ("temperature", "options"),
    [(0.0, {}), (1.0, {}), (1.0, {"context": "isolated", "join": "link"})],
    ids=["greedy", "seeded", "isolated link"],
)
def test_two_actors_draw_bitwise_what_one_process_draws(
    pool: RayPool, temperature: float, options: dict[str, str]
) -> None:
    expected = one_process(temperature, **options)
    sampler = pool.sampler(BOX, batch=BATCH, prefix_pages=0, **options)
    assert [plain(episode) for episode in sampler.generate(QUESTIONS, params(temperature))] == expected
    # With heads that an actor has computed before, or in larger batches, products may round differently.
    for batch in (BATCH, len(QUESTIONS)):
        warm = pool.sampler(BOX, batch=batch, **options).generate(QUESTIONS, params(temperature))
        assert [[trace.tokens for trace in episode.traces] for episode in warm] == [
            [trace["tokens"] for trace in episode["traces"]] for episode in expected
        ]


class Deadly(ForkJoinSampler):
    """Ends its process with SIGKILL before it answers a question, as often as there are files to remove."""

    def generate(self, questions: Any, *rest: Any, **options: Any) -> list[Episode]:
        for file in sorted(self.folder.iterdir()) if self.question in questions else ():  # type: ignore[attr-defined]
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(questions, *rest, **options)


class DeadlyModel(LoadedModel):
    def sampler(self, **options: Any) -> ForkJoinSampler:
        made = super().sampler(**options)
        made.__class__ = Deadly
        return made


def open_deadly(folder: Path, question: str) -> dict[str, LoadedModel]:
    Deadly.folder, Deadly.question = folder, question  # type: ignore[attr-defined]
    loaded = LoadedModel.load(BOX, **SIZES)
    return {"deadly": DeadlyModel(loaded.name, loaded.decoder, loaded.tokenizer, loaded.prompts)}


def test_a_killed_process_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "once").touch()
    told: list[str] = []
    with RayPool(functools.partial(open_deadly, tmp_path, QUESTIONS[5]), 2, say=told.append) as pool:
        finished: list[int] = []
        episodes = pool.sampler("deadly", batch=BATCH, prefix_pages=0).generate(
            QUESTIONS,
            params(1.0),
            on_event=lambda number, event: (
                finished.append(number) if event.kind == "start" and not event.agent else None
            ),
        )
    assert [plain(episode) for episode in episodes] == one_process(1.0)
    assert sorted(finished) == list(range(len(QUESTIONS)))
    assert pool.pool.replaced == 1
    (line,) = told
    assert "died, questions 4 to 5 again: " in line and "\n" not in line


def test_a_question_that_kills_every_actor_is_named(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).touch()
    with RayPool(functools.partial(open_deadly, tmp_path, QUESTIONS[5]), 1, say=lambda line: None) as pool:
        sampler = pool.sampler("deadly", batch=BATCH, prefix_pages=0)
        with pytest.raises(RuntimeError, match=r"^questions 4 to 5: 3 actors died over this: "):
            sampler.generate(QUESTIONS, params(1.0))
        assert len(sampler.generate(QUESTIONS[:1])) == 1


def test_an_actor_killed_through_ray_is_replaced(pool: RayPool) -> None:
    before, killed = pool.pool.replaced, list[int]()

    def watch(number: int, event: Any) -> None:
        if not killed:
            killed.append(number)
            ray.kill(pool.pool._actors[1])

    with pytest.warns(RuntimeWarning, match=r"^actor 1 died, questions \d to \d again: "):
        episodes = pool.sampler(BOX, batch=BATCH, prefix_pages=0).generate(QUESTIONS, params(1.0), on_event=watch)
    assert [plain(episode) for episode in episodes] == one_process(1.0)
    assert pool.pool.replaced == before + 1


def test_a_model_that_cannot_be_loaded_is_one_line() -> None:
    told = "cannot load a causal language model from /nowhere: there is no such folder"
    with pytest.raises(ValueError, match=rf"^{told}$"):
        RayPool(functools.partial(open_models, ["/nowhere"]), 2)
    result = CliRunner().invoke(app, ["eval", "--ray-actors", "2", "--model", "/nowhere", "--puzzles", "1"])
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1] == f"asyncthink: {told}"


def test_more_actors_than_the_cluster_has_room_for() -> None:
    told = r"ray_actors: expected at most 4 \(the cluster has 8 CPUs, an actor takes 2\), got 5"
    with pytest.raises(ValueError, match=told):
        RayPool(OPENER, 5, cpus=2)
    told = r"ray_actors: expected at most 0 \(the cluster has 0 GPUs, an actor takes 1\), got 1"
    with pytest.raises(ValueError, match=told):
        RayPool(OPENER, 1, gpus=1)


def test_an_actor_has_as_many_threads_as_cpus(pool: RayPool) -> None:
    assert pool.sampler(BOX).served.machine == "CPU, 1 thread"
    with RayPool(OPENER, 1, cpus=2) as wide:
        assert wide.sampler(BOX).served.machine == "CPU, 2 threads"


def evaluated(*words: str) -> dict[str, Any]:
    command = ["eval", "--puzzles", "9", "--max-tokens", "150", "--latency", "2", "--mode", "sequential,asyncthink"]
    result = CliRunner().invoke(app, [*command, "--device", "cpu", "--json", *words])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_command_reports_what_it_reports_in_one_process() -> None:
    ours, theirs = evaluated("--ray-actors", "2", "--ray-batch", "3"), evaluated()
    assert ours["machine"] == "2 Ray actors, each on CPU, 1 thread"
    for report in (ours, theirs):
        del report["machine"]
        for row in report["rows"]:
            assert len(row.pop("seconds")["each"]) == 2
        for comparison in report["comparisons"]:
            del comparison["seconds"]
    assert ours == theirs


def talkative(task: Task, puzzle: object, episode: Episode) -> float:
    """Differs within a group, whatever a few tokens solve."""
    return episode.total_tokens / 100


@pytest.mark.parametrize("lora", [0, 4], ids=["all weights", "adapters"])
def test_rollouts_of_a_run_follow_its_weights(lora: int, tmp_path: Path) -> None:
    if lora:
        pytest.importorskip("peft", reason="the extra train is not installed")

    def config(out: Path) -> GRPOConfig:
        return GRPOConfig(
            out=out,
            model=ModelOptions(model=BOX, bfloat16=False, lora=lora, device="cpu"),
            max_tokens=80,
            questions=2,
            group_size=4,
            steps=3,
            cache_tokens=16_384,
            learning_rate=1e-2,
            warmup=1,
            save_every=3,
            rule=talkative,
        )

    train_grpo(config(tmp_path / "here"))
    with RayRollouts(2, batch=3) as rollouts:
        train_grpo(config(tmp_path / "there"), rollouts)
    here, there = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("here", "there"))
    learned = [ours["off_policy"] for ours in there if ours["off_policy"] is not None]
    assert len(learned) == 3 and max(learned) < 1e-4, "drawn with the weights that are trained"
    for ours, theirs in zip(there, here, strict=True):
        for name in ("reward", "total_tokens", "critical_path_tokens", "loss", "gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
