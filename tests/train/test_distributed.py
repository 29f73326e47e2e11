"""Two gloo processes take the step that one would take. Run by torchrun, this file is what each of them does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import asyncthink
from asyncthink.cli.train import app
from asyncthink.model.files import device_for
from asyncthink.train.checkpoint import checkpoints
from asyncthink.train.distributed import World, gradients
from asyncthink.train.progress import read_metrics
from asyncthink.train.sft import SFTConfig, train_sft

BOX = Path(asyncthink.__file__).parent / "checkpoints" / "countdown"
SFT = ["sft", "--batch-tokens", "150", "--batches", "3", "--decay", "0", "--no-bfloat16", "--device", "cpu"]


def torchrun(*arguments: str | Path, processes: int = 2) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, *map(str, arguments)], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def each_process(out: Path) -> None:
    with World.start(device_for("cpu")) as world:
        mine = float(world.rank)
        tensors = [torch.full((2, 3), mine + 1), torch.tensor(10.0**mine, dtype=torch.float64), torch.arange(2) + mine]
        transposed = tensors[0].T  # a view: sums must arrive in the memory that was given
        world.sum_([transposed, *tensors[1:]])
        seen: dict[str, Any] = {
            "rank": world.rank,
            "main": world.is_main,
            "mine": list(world.mine(range(5))),
            "sums": [tensor.tolist() for tensor in tensors],
            "gathered": world.gather([{"rank": world.rank}] * (world.rank + 1)),
        }
        world.barrier()
        (out / f"{world.rank}.json").write_text(json.dumps(seen))
    assert not torch.distributed.is_initialized()


def test_collectives(tmp_path: Path) -> None:
    torchrun(__file__, tmp_path)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "rank": rank,
            "main": rank == 0,
            "mine": [0, 2, 4] if rank == 0 else [1, 3],
            "sums": [[[3.0] * 3] * 2, 11.0, [1.0, 3.0]],
            "gathered": [{"rank": 0}, {"rank": 1}, {"rank": 1}],
        }


def test_two_processes_go_on_as_one_would(tmp_path: Path) -> None:
    """One process trains two steps; then two and one go on. Three batches a step: the shares are unequal."""
    for name in ("one", "two"):
        app([*SFT, "--steps", "2", "--save-every", "2", "--out", str(tmp_path / name)], standalone_mode=False)
    further = [*SFT, "--steps", "5", "--resume"]
    app([*further, "--out", str(tmp_path / "one")], standalone_mode=False)
    torchrun("-m", "asyncthink", "train", *further, "--out", tmp_path / "two")
    one, two = (load_file(checkpoints(tmp_path / name)[-1] / "model.safetensors") for name in ("one", "two"))
    start = load_file(checkpoints(tmp_path / "one")[0] / "model.safetensors")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-6, rtol=0)
        assert (tensor - start[name]).abs().max() > 1e-5
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert [line["step"] for line in logs[1]] == [line["step"] for line in logs[0]]  # one process wrote
    for line, other in zip(*logs, strict=True):
        assert line["tokens"] == other["tokens"]
        if "loss" in line:
            assert other["loss"] == pytest.approx(line["loss"], abs=2e-5)
            assert other["gradient_norm"] == pytest.approx(line["gradient_norm"], abs=2e-4)


def test_alone_nothing_is_sent() -> None:
    with World.start(device_for("cpu")) as world:
        tensor = torch.ones(3)
        world.sum_([tensor])
        world.barrier()
        assert (world, world.gather([7]), tensor.tolist()) == (World(0, 1), [7], [1, 1, 1])


def test_more_processes_than_batches_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "start", classmethod(lambda cls, device: World(0, 3)))
    monkeypatch.setattr(World, "stop", lambda world: None)
    with pytest.raises(ValueError, match="batches: expected at least one for each of 3 processes, got 2"):
        train_sft(SFTConfig(tmp_path / "run", batches=2))
    assert not (tmp_path / "run").exists()


def test_unreached_parameters_have_zero_gradients() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    other = nn.Parameter(torch.ones(3))
    layer(torch.ones(2)).sum().backward()
    made = gradients([*layer.parameters(), other])
    assert [gradient.tolist() for gradient in made] == [[[1, 1], [1, 1]], [0, 0, 0]]
    assert other.grad is made[1]


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda"])
def test_devices_that_are_not_here_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_for("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=f"device: expected .*{name}"):
        device_for(name)


@pytest.mark.slow
def test_two_processes_share_the_rollouts(tmp_path: Path) -> None:
    """The episodes, their figures and the step are those of one process; each draws half of the questions' groups."""
    how = [
        "--questions",
        "2",
        "--group-size",
        "4",
        "--max-tokens",
        "250",
        "--steps",
        "1",
        "--learning-rate",
        "1e-4",
        "--kl",
        "0.1",
    ]
    arguments = ["grpo", "--model", str(BOX), *how, "--warmup", "1", "--device", "cpu"]
    app([*arguments, "--out", str(tmp_path / "one")], standalone_mode=False)
    torchrun("-m", "asyncthink", "train", *arguments, "--out", tmp_path / "two")
    ((line,), (other,)) = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    clock = {"seconds", "seconds_rollout", "seconds_update"}
    assert line["gradient_norm"] > 0
    assert line.keys() == other.keys()
    for name in line.keys() - clock:
        assert other[name] == pytest.approx(line[name], rel=1e-3, abs=1e-5), name
    one, two = (load_file(tmp_path / name / "step-000001/model.safetensors") for name in ("one", "two"))
    start = load_file(BOX / "model.safetensors")
    assert max(float((one[name] - start[name]).abs().max()) for name in one) > 5e-5
    differences = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert (differences < 1e-6).float().mean() > 0.99  # AdamW's first step is the sign of the gradient, or nearly


if __name__ == "__main__":
    each_process(Path(sys.argv[1]))
