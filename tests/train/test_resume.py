"""A killed training run, resumed, is the run that nobody killed: weights, optimizer, random state, log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_run import config
from safetensors.torch import load_file
from state_files import state_tensors

from asyncthink.train.checkpoint import checkpoints, remove_leftovers
from asyncthink.train.distributed import World
from asyncthink.train.progress import Reporter, read_metrics
from asyncthink.train.runs import begin_run, find_run
from asyncthink.train.state import STATE, Progress

#: What a clock, a place, or transformers about the place a tokenizer came from, writes down.
OTHERWISE = ("seconds", "seconds_rollout", "seconds_update", "out", "export", "resume", "is_local", "local_files_only")


def files(folder: Path) -> dict[str, Any]:
    """Every file below ``folder``, tensors by name; without :data:`OTHERWISE`."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.parent.name == STATE:  # its index holds a random name of its own
            if path.name != ".metadata":
                continue
            found |= {
                f"{path.parent.relative_to(folder)}:{key}": tensor
                for key, tensor in state_tensors(path.parent.parent).items()
            }
            continue
        if path.suffix == ".safetensors":
            found |= {f"{name}:{key}": tensor for key, tensor in load_file(path).items()}
        elif path.suffix in (".json", ".jsonl") and path.name != "tokenizer.json":
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = [{k: v for k, v in json.loads(line).items() if k not in OTHERWISE} for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("stride", [40, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "reports"), [("sft", [1, 2, 2, 3, 3]), ("grpo", [1, 2, 3])])
def test_killed_at_any_change_and_resumed_is_bitwise_the_same(
    tmp_path: Path, kind: str, reports: list[int], stride: int
) -> None:
    script = Path(__file__).with_name("killed_run.py")
    done = subprocess.run([sys.executable, script, tmp_path, kind, str(stride)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout.splitlines()[-1])
    assert len(kills) > 75 // stride > 0
    whole = files(tmp_path / "whole")
    assert [folder.name for folder in checkpoints(tmp_path / "whole/run")] == ["step-000002", "step-000003"]
    assert [line["step"] for line in whole["run/metrics.jsonl"]] == reports
    assert all(line["gradient_norm"] > 0 for line in whole["run/metrics.jsonl"] if "loss" in line)
    for number, kill in enumerate(kills):
        made = files(tmp_path / str(number))
        assert made.keys() == whole.keys(), kill
        for name, value in whole.items():
            same = torch.equal(value, made[name]) if isinstance(value, torch.Tensor) else value == made[name]
            assert same, (kill, name)


def test_a_half_written_report_is_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Reporter(path, 10, 0) as reporter:
        for step in (1, 2, 3):
            reporter.step(Progress(step, 10 * step, 1.0), {"loss": 1 / step}, "")
    whole = path.read_text()
    for cut in range(len(whole.splitlines(True)[-1])):
        path.write_text(whole[: len(whole) - 1 - cut])
        assert [line["step"] for line in read_metrics(path)] == [1, 2]
        with Reporter(path, 10, 2) as reporter:
            reporter.step(Progress(3, 30, 1.0), {"loss": 1 / 3}, "")
        assert path.read_text() == whole


def test_a_log_that_is_none_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for text in ('{"step": 1}\nnonsense\n{"step": 2}\n', '[1]\n{"step": 2}\n', '{"loss": 1}\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match="expected a JSON object with a step in line"):
            Reporter(path, 10, 2)
        assert path.read_text() == text


def test_a_run_that_died_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert find_run(out, resume=False) is None
    with pytest.raises(ValueError, match="holds no checkpoint"):
        find_run(out, resume=True)
    begin_run(out, config(tmp_path), World())
    assert find_run(out, resume=True) is None
    assert json.loads((out / "config.json").read_text())["batch_tokens"] == config(tmp_path).batch_tokens


def test_leftovers_are_no_checkpoints_and_go(tmp_path: Path) -> None:
    for name in (".step-000003.part", ".step-000001.gone", "step-000002", "step-final", "step-1000000"):
        (tmp_path / name / "adapter").mkdir(parents=True)
    (tmp_path / "config.json.17.part").write_text("{")
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000002", "step-1000000"]
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-000002", "step-final", "step-1000000"}
