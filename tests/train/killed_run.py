"""Training runs that are killed at some change of the file system and resumed. Usage: killed_run.py OUT sft|grpo STRIDE

Makes OUT/whole, which nobody kills, and OUT/0, 1, ...: runs killed once, at every STRIDE-th change around their last
two checkpoints, or several times, at random. Prints a JSON list of the changes at which each was killed.

Each life of a run is a fork of this process, which has imported everything and computed nothing. It is killed right
before a change would be made; what any other moment between two changes leaves behind is the same.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncthink.episode.records import Episode
from asyncthink.tasks import Task
from asyncthink.tasks.rewards import Reward, RewardRule
from asyncthink.train.grpo import GRPOConfig, train_grpo
from asyncthink.train.grpo_loss import Objective
from asyncthink.train.loading import ModelOptions, Shape
from asyncthink.train.sft import SFTConfig, train_sft

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def config(out: Path) -> SFTConfig:
    return SFTConfig(
        out / "run",
        model=ModelOptions(
            shape=Shape(layers=1, hidden=16, heads=1, kv_heads=1, head_dim=16, intermediate=16), bfloat16=False
        ),
        steps=3,
        batch_tokens=100,
        warmup=1,
        evaluate_every=2,
        evaluate_episodes=1,
        save_every=1,
        log_every=1,
        export=out / "export",
    )


@dataclass(frozen=True)
class ByTokens(RewardRule):
    """Rewards that differ among episodes of whatever quality."""

    def __call__(self, task: Task, puzzle: Any, episode: Episode) -> Reward:
        return Reward(0.0, 0.0, 0.0, False, float(sum(episode.traces[0].tokens) % 5))


def grpo_config(out: Path) -> GRPOConfig:
    """From the weights of OUT/cold. They know nothing of the protocol, hence the rule."""
    return GRPOConfig(
        out / "run",
        ModelOptions(str(out.parent / "cold/export"), bfloat16=False),
        max_tokens=6,
        questions=1,
        group_size=4,
        steps=3,
        warmup=1,
        rule=ByTokens(),
        objective=Objective(kl=0.1),
        save_every=1,
        export=out / "export",
    )


class Changes:
    """Counts changes of the file system; kills this process at number ``fatal``."""

    def __init__(self, fatal: int | None = None) -> None:
        self.count, self.fatal = 0, fatal
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and arguments[2] & WRITES):
            self.count += 1
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)


def life(kind: str, out: Path, fatal: int | None) -> int:
    """Train until the end or the fatal change. Returns how many changes were made, 0 when it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with os.fdopen(reader) as report:
            told = report.read()
        status = os.waitpid(child, 0)[1]
        if status not in (0, signal.SIGKILL):
            raise SystemExit(f"{out}: a life ended with status {status}")
        return int(told or 0)
    try:
        changes = Changes(fatal)
        resume = (out / "run/config.json").exists()
        if kind == "sft":
            train_sft(dataclasses.replace(config(out), resume=resume))
        else:
            train_grpo(dataclasses.replace(grpo_config(out), resume=resume))
        os.write(writer, str(changes.count).encode())
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def main(out: Path, kind: str, stride: int) -> None:
    if kind == "grpo":
        life("sft", out / "cold", None)
    changes = life(kind, out / "whole", None)
    rng = random.Random(0)
    kills = [[k] for k in range(changes // 3, changes + 1, stride)]
    kills += [[rng.randrange(1, changes // 2) for _ in range(4)] for _ in range(20 // stride)]
    for number, each in enumerate(kills):
        for fatal in each:
            if life(kind, out / str(number), fatal):
                break
        else:
            life(kind, out / str(number), None)
    print(json.dumps(kills))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
