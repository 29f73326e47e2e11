"""Whether a run multiplies in bfloat16: decided once, stored with the run, kept by every resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asyncthink.cli.train import app
from asyncthink.model.auto_dtype import Choice
from asyncthink.train import loading
from asyncthink.train.distributed import World
from asyncthink.train.grpo_config import GRPOConfig
from asyncthink.train.loading import ModelOptions, Shape, load
from asyncthink.train.precision import settle
from asyncthink.train.sft import SFTConfig, train_sft

SHAPE = Shape(layers=1, hidden=16, heads=1, kv_heads=1, head_dim=16, intermediate=16)
AUTO = ModelOptions(shape=SHAPE, device="cpu")


def machine(monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    """One whose measurement finds bfloat16 fast, or slow."""
    choice = Choice(torch.bfloat16, "it is fast") if bfloat16 else Choice(torch.float32, "it is slow")
    monkeypatch.setattr(loading, "choose_dtype", lambda *args, **names: choice)


def config(out: Path, **changes: Any) -> SFTConfig:
    plain = SFTConfig(out, model=AUTO, steps=2, batch_tokens=100, warmup=1, decay=0.0, evaluate_every=99, save_every=1)
    return replace(plain, evaluate_episodes=1, log_every=1, **changes)


def stored(out: Path) -> bool:
    value = json.loads((out / "config.json").read_text())["model"]["bfloat16"]
    assert isinstance(value, bool)
    return value


@pytest.mark.parametrize("began", [True, False])
def test_a_run_resumed_on_another_machine_keeps_its_numbers(
    began: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, began)
    whole = train_sft(config(tmp_path / "whole"))
    train_sft(config(tmp_path / "parts", steps=1))
    assert capsys.readouterr().out.count("it is fast" if began else "it is slow") == 2
    machine(monkeypatch, not began)
    parts = train_sft(config(tmp_path / "parts", resume=True))
    assert "as the run began" in capsys.readouterr().out
    assert stored(tmp_path / "whole") is stored(tmp_path / "parts") is began
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_named_dtype_is_kept_also_by_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, True)
    named = replace(AUTO, bfloat16=False)
    train_sft(config(tmp_path, steps=1))
    assert settle(named, tmp_path, True, World())[0] == named
    assert settle(AUTO, tmp_path, True, World())[0] == replace(AUTO, bfloat16=True)


def test_a_new_run_and_one_without_the_entry_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, False)
    (tmp_path / "config.json").write_text('{"model": {"bfloat16": true}}')
    assert settle(AUTO, tmp_path, False, World()) == (replace(AUTO, bfloat16=False), "it is slow")
    for text in ("{}", '{"model": {"bfloat16": "auto"}}', '{"model": null}'):
        (tmp_path / "config.json").write_text(text)
        assert settle(AUTO, tmp_path, True, World())[1] == "it is slow"


@pytest.mark.parametrize("options", [{"model": {"bfloat16": True}}, {"model": None, "bfloat16": True}])
def test_a_run_that_began_with_the_names_of_an_earlier_version_resumes(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, True)
    train_sft(config(tmp_path, steps=1))
    older = json.loads((tmp_path / "config.json").read_text())
    older["length"], older["budget"] = older.pop("batch_tokens"), older.pop("max_tokens")
    (tmp_path / "config.json").write_text(json.dumps(older | options))
    machine(monkeypatch, False)
    assert train_sft(config(tmp_path, resume=True)).name == "step-000002"
    assert "as the run began" in capsys.readouterr().out
    assert stored(tmp_path) is True


def test_rank_0_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, False)  # what this process, the second, would find
    sent: list[Any] = []
    monkeypatch.setattr(World, "gather", lambda world, items: sent.extend(items) or [(True, "it is fast")])
    assert settle(AUTO, tmp_path, False, World(1, 2)) == (replace(AUTO, bfloat16=True), "it is fast")
    assert sent == []


@pytest.mark.parametrize("bfloat16", [True, False])
def test_a_model_that_is_loaded_alone_is_measured_for(bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, bfloat16)
    assert load(AUTO).bfloat16 is bfloat16
    assert load(replace(AUTO, bfloat16=not bfloat16)).bfloat16 is not bfloat16


@pytest.mark.parametrize(("flags", "expected"), [([], "auto"), (["--bfloat16"], True), (["--no-bfloat16"], False)])
def test_the_command_line(flags: list[str], expected: bool | str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SFTConfig] = []
    monkeypatch.setattr("asyncthink.train.sft.train_sft", seen.append)
    app(["sft", "--out", "x", *flags], standalone_mode=False)
    assert seen[0].model.bfloat16 == expected


def test_grpo_multiplies_in_the_dtype_of_the_weights(tmp_path: Path) -> None:
    GRPOConfig(tmp_path, AUTO)
    with pytest.raises(ValueError, match="bfloat16: expected False"):
        GRPOConfig(tmp_path, replace(AUTO, bfloat16=True))
    with pytest.raises(ValueError, match="bfloat16: expected True, False or 'auto', got 'yes'"):
        replace(AUTO, bfloat16="yes")
