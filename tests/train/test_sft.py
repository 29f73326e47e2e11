"""Supervised fine-tuning: schedule, exact resume, whole files, evaluation, and the checkpoint in the box."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from state_files import state_tensors
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from asyncthink.cli.train import app
from asyncthink.protocol.prompts import PromptFormat
from asyncthink.tasks import tasks
from asyncthink.train import state
from asyncthink.train.checkpoint import checkpoints
from asyncthink.train.demonstrations import DemonstrationPacker
from asyncthink.train.evaluate import evaluate, held_out_episodes
from asyncthink.train.loading import TINY_PROMPTS, ModelOptions, Shape
from asyncthink.train.packed_attention import ATTENTION
from asyncthink.train.sft import SFTConfig, train_sft
from asyncthink.train.tokenizer import build_tokenizer

SHAPE = Shape(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, intermediate=48)


def config(out: Path, **changes: Any) -> SFTConfig:
    small = SFTConfig(
        out=out,
        model=ModelOptions(shape=SHAPE, bfloat16=False),
        steps=6,
        batch_tokens=400,
        warmup=2,
        evaluate_every=3,
        evaluate_episodes=4,
        save_every=3,
        log_every=1,
    )
    return dataclasses.replace(small, **changes)


def losses(out: Path) -> dict[int, float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    made = config(Path("x"), steps=100, warmup=10, decay=0.4, learning_rate=1.0)
    rates = [made.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:61] == [1.0] * 52
    assert rates[70] == pytest.approx(1 - math.sqrt(0.25))
    assert rates[60:] == sorted(set(rates[60:]), reverse=True)
    assert rates[100] == 0


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"batch_tokens": 0}, {"save_every": 0}, {"warmup": -1}, {"decay": 1.5}], ids=str
)
def test_bad_numbers_are_named(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        config(tmp_path, **change)


def test_a_run_learns_and_leaves_whole_files(tmp_path: Path) -> None:
    made = config(tmp_path / "run", steps=40, learning_rate=1e-2, save_every=20, export=tmp_path / "export", plot=True)
    last = train_sft(made)
    seen = losses(made.out)
    assert list(seen) == list(range(1, 41))
    assert seen[40] < seen[1] - 1
    assert [folder.name for folder in checkpoints(made.out)] == ["step-000020", "step-000040"]
    assert (made.out / "curve.png").read_bytes().startswith(b"\x89PNG")
    for folder in (last, tmp_path / "export"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        assert model.dtype == torch.float32
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
        assert PromptFormat.load(folder) == TINY_PROMPTS.for_depth(1)
        assert json.loads((folder / "asyncthink.json").read_text())["task"] == "countdown"
    exported = load_file(tmp_path / "export" / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in load_file(last / "model.safetensors").items())
    assert not list(tmp_path.glob("**/*.part*"))


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = train_sft(config(tmp_path / "whole", decay=0.0))
    train_sft(config(tmp_path / "parts", steps=3, decay=0.0))
    parts = train_sft(config(tmp_path / "parts", resume=True, decay=0.0))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for one, other in (
        (load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")),
        (state_tensors(whole), state_tensors(parts)),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_came_after_the_checkpoint_is_run_again(tmp_path: Path) -> None:
    made = config(tmp_path / "run", steps=5, decay=0.0)
    train_sft(made)
    for folder in checkpoints(made.out)[1:]:  # as if it had died after step 3 was saved and step 5 was logged
        shutil.rmtree(folder)
    before = losses(made.out)
    train_sft(dataclasses.replace(made, resume=True))
    assert losses(made.out) == before


def test_a_failing_save_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(tmp_path / "run", steps=3)
    train_sft(made)
    files = {file: file.read_bytes() for file in tmp_path.glob("**/*") if file.is_file() and file.suffix != ".jsonl"}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "save_shares", full)
    with pytest.raises(OSError, match="No space left"):
        train_sft(dataclasses.replace(made, steps=6, resume=True))
    assert [folder.name for folder in checkpoints(made.out)] == ["step-000003"]
    kept = {file: file.read_bytes() for file in files if file.name != "config.json"}
    assert all(files[file] == data for file, data in kept.items())
    assert not list(tmp_path.glob("**/*.part*"))


def test_a_run_is_not_overwritten_and_not_invented(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint"):
        train_sft(config(tmp_path / "run", resume=True))
    train_sft(config(tmp_path / "run", steps=1))
    with pytest.raises(ValueError, match="already holds a run"):
        train_sft(config(tmp_path / "run"))
    with pytest.raises(ValueError, match="steps: expected more than the 1 that are done, got 1"):
        train_sft(config(tmp_path / "run", steps=1, resume=True))


def test_training_goes_on_from_a_folder(tmp_path: Path) -> None:
    first = train_sft(config(tmp_path / "first", steps=30, learning_rate=1e-2, evaluate_every=30, save_every=30))
    train_sft(config(tmp_path / "second", model=ModelOptions(str(first), bfloat16=False), steps=1, learning_rate=1e-4))
    assert losses(tmp_path / "second")[1] < losses(tmp_path / "first")[1] - 1


class Oracle(nn.Module):
    """Knows what comes next, but says ``wrong`` where the next token is ``blind``."""

    config = SimpleNamespace(_attn_implementation=ATTENTION)

    def __init__(self, blind: int | None = None, wrong: int = 0) -> None:
        super().__init__()
        self.blind, self.wrong = blind, wrong

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        following = input_ids.roll(-1, 1)
        if self.blind is not None:
            following = following.where(following != self.blind, torch.tensor(self.wrong))
        logits = nn.functional.one_hot(following, len(build_tokenizer())).float() * 50
        return type("Output", (), {"logits": logits})


def test_evaluation_counts_exact_rows_and_answers() -> None:
    tokenizer = build_tokenizer()
    episodes = held_out_episodes(DemonstrationPacker(tasks("countdown"), tokenizer, TINY_PROMPTS), 0, 12)
    right = evaluate(Oracle(), episodes, tokenizer)
    names = ("organizer", "solo", "worker_isolated", "worker_shared")
    assert {name: right[f"{name}/{f}"] for name in names for f in ("exact", "final", "tokens")} == dict.fromkeys(
        names, 1.0
    )
    late = evaluate(Oracle(tokenizer.convert_tokens_to_ids("</ANSWER>")), episodes, tokenizer)
    assert (late["solo/exact"], late["solo/final"], late["organizer/final"]) == (0, 0, 0)
    assert (late["worker_shared/exact"], late["worker_shared/final"]) == (1, 1)
    early = evaluate(Oracle(tokenizer.convert_tokens_to_ids("=")), episodes, tokenizer)
    assert (early["solo/exact"], early["solo/final"]) == (0, 1)
    assert 0.5 < early["solo/tokens"] < 1
    assert early["solo/loss"] > right["solo/loss"] + 1


def test_the_command_trains_and_names_what_is_wrong(tmp_path: Path) -> None:
    runner = CliRunner()
    wrong = ["--task", "chess"], ["--steps", "0"], ["--warmup", "-1"], ["--resume"]
    for arguments, word in ((each, each[0].removeprefix("--")) for each in wrong):
        result = runner.invoke(app, ["sft", "--out", str(tmp_path / "run"), *arguments])
        assert result.exit_code != 0
        assert isinstance(result.exception, ValueError)
        assert str(result.exception).startswith(word)
        assert not checkpoints(tmp_path / "run")
    result = runner.invoke(app, ["sft", "--out", str(tmp_path / "nowhere"), "--model", str(tmp_path)])
    assert str(result.exception).startswith("model: cannot load")
