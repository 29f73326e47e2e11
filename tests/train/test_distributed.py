"""Several gloo processes, each with a share of the weights, take the steps that one would take."""

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
from state_files import state_tensors
from torch import Tensor
from transformers import AutoModelForCausalLM

from asyncthink.model.files import device_for
from asyncthink.train.checkpoint import checkpoints
from asyncthink.train.distributed import World
from asyncthink.train.lora import FOLDER
from asyncthink.train.progress import read_metrics
from asyncthink.train.sft import SFTConfig, train_sft

QUICK = ("collectives", "skipped", "resumed", "adapted", "rolled_out", "killed")
CLOCKS = ("seconds", "seconds_rollout", "seconds_update")


def ran(out: Path, processes: int, *scenarios: str, script: str = "divided_run.py") -> Path:
    command = [sys.executable, Path(__file__).with_name(script), out, str(processes), *scenarios]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenarios of ``divided_run.py``, run once for all tests."""
    return ran(tmp_path_factory.mktemp("runs"), request.param, *QUICK)


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=tolerance, rtol=0, msg=lambda text, name=name: name + text)


def same_reports(one: Path, other: Path, tolerance: float) -> list[dict[str, Any]]:
    """The reports of both runs agree, clocks apart; returns those of the first."""
    lines, others = (read_metrics(out / "metrics.jsonl") for out in (one, other))
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, again in zip(lines, others, strict=True):
        assert line.keys() == again.keys()
        for name in line.keys() - set(CLOCKS):
            assert again[name] == pytest.approx(line[name], rel=tolerance, abs=tolerance), (line["step"], name)
    return lines


def test_collectives(runs: Path) -> None:
    seen = [json.loads(path.read_text()) for path in sorted((runs / "collectives").iterdir())]
    size = len(seen)
    for rank, of in enumerate(seen):
        assert of["rank"] == rank
        assert of["main"] is (rank == 0)
        assert of["mine"] == list(range(5))[rank::size]
        assert of["total"] == [sum(range(1, size + 1)), sum(10.0**each for each in range(size))]
        assert of["most"] == size - 1
        assert of["gathered"] == [each for each in range(size) for _ in range(each + 1)]


def test_one_process_with_a_nan_is_enough_for_all(runs: Path) -> None:
    seen = [json.loads(path.read_text()) for path in (runs / "skipped").iterdir()]
    count = len(seen)
    assert seen == [[f"LeftOut(silent=0, skipped={count}, skipped_in_a_row=0)", True]] * count


def test_several_processes_go_on_as_one_would(runs: Path) -> None:
    """One process trains a step, several go on to step 3, one to step 4; another run is of one process throughout.

    Losses, norms, evaluations, weights and moments are those of one process to rounding: weights are tied, gradients
    clipped, the shares of the batches unequal.
    """
    one, many = runs / "resumed/one", runs / "resumed/many"
    lines = same_reports(one, many, 2e-4)
    assert [line["step"] for line in lines if "held_out" in line] == [1, 2, 3, 4]
    assert all(line["gradient_norm"] > 0.5 for line in lines if "loss" in line)  # they were clipped
    same(weights(checkpoints(one)[-1]), weights(checkpoints(many)[-1]), 2e-6)
    same(state_tensors(checkpoints(one)[-1]), state_tensors(checkpoints(many)[-1]), 2e-6)
    model = AutoModelForCausalLM.from_pretrained(checkpoints(many)[-1])
    assert type(model).__name__ == "Qwen3ForCausalLM"


def test_adapters_alone_are_trained_and_merged_into_what_is_written(runs: Path) -> None:
    one, many = runs / "adapted/one", runs / "adapted/many"
    same_reports(one, many, 2e-2)  # bfloat16
    last, again = checkpoints(one)[-1], checkpoints(many)[-1]
    assert all(tensor.any() for tensor in weights(last / FOLDER).values())
    same(weights(last / FOLDER), weights(again / FOLDER), 1e-2)
    same({k: v.float() for k, v in weights(last).items()}, {k: v.float() for k, v in weights(again).items()}, 1e-2)


def test_processes_share_the_rollouts(runs: Path) -> None:
    """The episodes, their figures and the steps are those of one process; each draws the groups of its questions."""
    one, many = runs / "rolled_out/one/run", runs / "rolled_out/many/run"
    lines = same_reports(one, many, 1e-3)
    assert all(line["gradient_norm"] > 0 for line in lines)
    assert max(line["off_policy"] for line in lines[:1]) < 0.1
    same(weights(checkpoints(one)[-1]), weights(checkpoints(many)[-1]), 1e-4)


def test_a_process_that_dies_ends_the_run_which_then_goes_on(runs: Path) -> None:
    """The others end with a line for a reader. Nothing is lost and nothing is counted twice."""
    out = runs / "killed"
    *others, last = json.loads((out / "statuses.json").read_text())
    assert last == -9
    assert set(others) == {1}
    for rank in range(len(others)):
        line = (out / f"stderr-{rank}").read_text().splitlines()[-1]
        assert f"LostProcessError: process {rank} of {len(others) + 1}: another process" in line
        assert "resume the run (--resume) from its last checkpoint" in line
    same_reports(out / "whole", out / "run", 1e-6)
    same(weights(checkpoints(out / "whole")[-1]), weights(checkpoints(out / "run")[-1]), 1e-6)
    assert not list(out.glob("run/.step*"))


@pytest.mark.slow
def test_a_process_that_dies_while_it_saves(tmp_path: Path) -> None:
    out = ran(tmp_path, 2, "killed_while_saving") / "killed_while_saving"
    statuses = json.loads((out / "statuses.json").read_text())
    assert sum(-9 in each for each in statuses) > 12, statuses
    for number, each in enumerate(statuses):
        assert sorted(each) in ([-9, 1], [0, 0], [-9, 0]), (number, each)
        same_reports(out / "whole", out / str(number), 1e-6)
        same(weights(checkpoints(out / "whole")[-1]), weights(checkpoints(out / str(number))[-1]), 1e-6)


@pytest.mark.slow
def test_a_model_too_large_for_one_process_trains_on_four(tmp_path: Path) -> None:
    """Each process may have 450 MiB; weights, gradients and moments are 1.2 GiB. Loading and saving included."""
    out = ran(tmp_path, 4, "limited") / "limited"
    statuses = json.loads((out / "statuses.json").read_text())
    assert statuses == {"1": [1], "4": [0, 0, 0, 0]}
    assert "allocate" in (out / "log-1/stderr-0").read_text()
    last = checkpoints(out / "4")[-1]
    assert len(list(last.glob("model-*.safetensors"))) > 4
    model = AutoModelForCausalLM.from_pretrained(last)
    assert sum(16 * parameter.numel() for parameter in model.parameters()) > 2.5 * 450 * 2**20
    first, *_, final = [line["loss"] for line in read_metrics(out / "4/metrics.jsonl") if "loss" in line]
    assert final < first


@pytest.mark.slow
def test_families_are_divided_and_written_as_they_are(tmp_path: Path) -> None:
    """Also with sliding windows, experts that are stored one by one, tied and untied heads, scaled RoPE."""
    for folder in ran(tmp_path, 2, script="divided_families.py").iterdir():
        one, many, again = (load_file(folder / f"figures-{name}") for name in ("one", "many", "again"))
        for other in (many, again):
            torch.testing.assert_close(other["logits"], one["logits"], atol=1e-4, rtol=1e-4, msg=folder.name)
            torch.testing.assert_close(other["norm"], one["norm"], atol=0, rtol=1e-4, msg=folder.name)


def test_alone_nothing_is_sent() -> None:
    with World.start(device_for("cpu")) as world:
        world.barrier()
        assert (world, world.gather([7]), world.total([1.5]), world.most(3)) == (World(0, 1), [7], [1.5], 3)


def test_more_processes_than_batches_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "start", classmethod(lambda cls, device: World(0, 3)))
    monkeypatch.setattr(World, "stop", lambda world: None)
    with pytest.raises(ValueError, match="batches: expected at least one for each of 3 processes, got 2"):
        train_sft(SFTConfig(tmp_path / "run", batches=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda"])
def test_devices_that_are_not_here_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_for("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=f"device: expected .*{name}"):
        device_for(name)
