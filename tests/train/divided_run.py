"""Training runs of one and of several gloo processes. Usage: divided_run.py OUT PROCESSES SCENARIO...

Each scenario writes its runs below OUT/SCENARIO; tests compare them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from forked import finished, in_processes
from killed_run import ByTokens, Changes, config, grpo_config
from torch import nn

from asyncthink.model.files import device_for
from asyncthink.train import sft, stored_weights
from asyncthink.train.checkpoint import save_model
from asyncthink.train.distributed import World
from asyncthink.train.grpo import train_grpo
from asyncthink.train.grpo_loss import Objective
from asyncthink.train.loading import ModelOptions, Shape, load
from asyncthink.train.sft import SFTConfig, train_sft
from asyncthink.train.steps import Steps

SHAPE = Shape(layers=2, hidden=24, heads=2, kv_heads=1, head_dim=16, intermediate=40)  # rows that 5 do not divide

LARGE = Shape(layers=24, hidden=512, heads=8, kv_heads=4, head_dim=64, intermediate=1536)
LIMIT = 450  # mebibytes that each process may have besides the program itself


def sft_config(out: Path, **changes: Any) -> SFTConfig:
    """Three batches a step: the shares of two processes differ. Gradients are clipped."""
    model = ModelOptions(shape=SHAPE, bfloat16=False, device="cpu")
    plain = dataclasses.replace(config(out), out=out, model=model, batches=3, clip=0.5, decay=0.0, weight_decay=0.1)
    return dataclasses.replace(plain, **{"export": None, "evaluate_every": 2, "evaluate_episodes": 2} | changes)


def collectives(out: Path) -> None:
    """Each process writes what it sees of the others."""
    with World.start(device_for("cpu")) as world:
        seen = {
            "rank": world.rank,
            "main": world.is_main,
            "mine": list(world.mine(range(5))),
            "total": world.total([world.rank + 1, 10.0**world.rank]),
            "most": world.most(world.rank),
            "gathered": world.gather([world.rank] * (world.rank + 1)),
        }
        world.barrier()
        (out / f"{world.rank}.json").write_text(json.dumps(seen))
    assert not torch.distributed.is_initialized()


def skipped(out: Path) -> None:
    """A gradient is NaN in each process in turn; all skip the step, and take the next one together."""
    with World.start(device_for("cpu")) as world:
        options = ModelOptions(shape=SHAPE, bfloat16=False, device="cpu")
        model = load(options, world=world).model
        steps = Steps(torch.optim.AdamW(model.parameters(), lr=0.1), 1.0)
        for culprit in (*range(world.size), None):
            loss = model(torch.arange(3, 9)[None]).logits.square().sum()
            (loss * (math.nan if world.rank == culprit else 1.0)).backward()
            steps.take(*world.total([float(loss.detach())]))
        finite = all(bool(torch.isfinite(p.to_local()).all()) for p in model.parameters())
        (out / f"{world.rank}.json").write_text(json.dumps([repr(steps.left_out), finite]))


def resumed(out: Path, processes: int) -> None:
    """A run of one process goes on in several and then in one again; another one is of one process throughout."""
    every: dict[str, Any] = {"evaluate_every": 1, "batches": processes + 1}
    finished(1, train_sft, sft_config(out / "one", steps=1, **every))
    shutil.copytree(out / "one", out / "many")
    finished(1, train_sft, sft_config(out / "one", steps=4, resume=True, **every))
    finished(processes, train_sft, sft_config(out / "many", steps=3, resume=True, **every))
    finished(1, train_sft, sft_config(out / "many", steps=4, resume=True, **every))


def write_model(folder: Path, shape: Shape) -> None:
    loaded = load(ModelOptions(shape=shape, bfloat16=False, device="cpu"))
    save_model(folder, loaded.model, loaded.tokenizer, loaded.prompts, {})


def adapted(out: Path, processes: int) -> None:
    """Adapters on a frozen model in bfloat16."""
    finished(1, write_model, out / "start", SHAPE)
    model = ModelOptions(str(out / "start"), bfloat16=False, device="cpu", lora=3, lora_targets="q_proj,down_proj")
    model = dataclasses.replace(model, weights="bfloat16", checkpointing=True)
    for name, size in (("one", 1), ("many", processes)):
        finished(
            size, train_sft, sft_config(out / name, model=model, steps=2, batches=processes + 1, learning_rate=1e-2)
        )


def rolled_out(out: Path, processes: int) -> None:
    """Five questions, small batches and a reference: the processes have unequal shares and numbers of batches."""
    finished(1, train_sft, dataclasses.replace(config(out / "cold"), steps=1))
    for name, size in (("one", 1), ("many", processes)):
        plain = grpo_config(out / name)
        model = ModelOptions(str(out / "cold/export"), bfloat16=False, device="cpu")
        changed = dataclasses.replace(
            plain, model=model, questions=5, steps=2, batch_tokens=60, learning_rate=1e-3, minibatches=2
        )
        changed = dataclasses.replace(changed, rule=ByTokens(), objective=Objective(kl=0.1), export=None)
        finished(size, train_grpo, changed)


def killed_in_a_step(made: SFTConfig, call: int) -> None:
    """The last process kills itself in its ``call``-th forward pass of the run; the others go on until they notice."""
    compute, calls = sft.token_logprobs, iter(range(1, 10**6))

    def counted(model: nn.Module, *arguments: Any, **options: Any) -> torch.Tensor:
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if last and next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(model, *arguments, **options)

    sft.token_logprobs = counted
    train_sft(made)


def killed(out: Path, processes: int) -> None:
    """A process dies in the third step of four; the run is resumed. Another run has no such accident."""
    made = sft_config(out / "whole", steps=4, batches=processes, save_every=2, evaluate_every=4)
    finished(processes, train_sft, made)
    made = dataclasses.replace(made, out=out / "run")
    statuses = in_processes(processes, killed_in_a_step, made, 3, log=out)
    (out / "statuses.json").write_text(json.dumps(statuses))
    finished(processes, train_sft, dataclasses.replace(made, resume=True))


def killed_at_a_change(made: SFTConfig, rank: int, fatal: int) -> None:
    if int(os.environ["RANK"]) == rank:
        Changes(fatal)
    train_sft(made)


def killed_while_saving(out: Path, processes: int) -> None:
    """One process dies right before some change of the file system; which process and change differ from run to run."""
    made = sft_config(out / "whole", steps=3, batches=processes, save_every=1)
    finished(processes, train_sft, made)
    statuses = []
    for number in range(16):
        made = dataclasses.replace(made, out=out / f"{number}")
        rank, fatal = (0, 4 + 5 * number) if number < 11 else (1, 2 * number - 21)  # rank 1 writes its shares alone
        statuses.append(in_processes(processes, killed_at_a_change, made, rank, fatal, log=out / "logs"))
        if any(statuses[-1]):
            resume = (made.out / "config.json").exists()
            finished(processes, train_sft, dataclasses.replace(made, resume=resume))
    (out / "statuses.json").write_text(json.dumps(statuses))


def train_limited(made: SFTConfig, mebibytes: int) -> None:
    """Train with at most that much more private memory than the process has now."""
    stored_weights.FILE_BYTES = 2**25
    (data,) = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    limit = (int(data) << 10) + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    train_sft(made)


def limited(out: Path, processes: int) -> None:
    """A model whose weights, gradients and moments (16 bytes a parameter) are more than a process may have."""
    finished(1, write_model, out / "start", LARGE)
    model = ModelOptions(str(out / "start"), bfloat16=False, device="cpu", checkpointing=True)
    statuses = {}
    for size in (1, processes):
        made = sft_config(out / f"{size}", model=model, steps=2, batches=processes, learning_rate=1e-3)
        made = dataclasses.replace(made, evaluate_every=2, save_every=2)
        statuses[size] = in_processes(size, train_limited, made, LIMIT, log=out / f"log-{size}")
    (out / "statuses.json").write_text(json.dumps(statuses))


def main(out: Path, processes: int, *scenarios: str) -> None:
    for name in scenarios:
        folder = out / name
        folder.mkdir(parents=True)
        if name in ("collectives", "skipped"):
            finished(processes, globals()[name], folder)
        else:
            globals()[name](folder, processes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
