"""``--num-states`` and ``--fallback`` of every command that loads a model, as they reach the sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from asyncthink import ForkJoinSampler, checkpoint_path
from asyncthink.cli.app import app
from asyncthink.cli.remote import connect
from asyncthink.cli.train import app as training
from asyncthink.train.grpo_config import GRPOConfig
from asyncthink.train.rollout_sampler import cache_options

MODEL = ("--model", checkpoint_path())
COMMANDS = [("demo", *MODEL), ("run", *MODEL, "q"), ("chat", *MODEL), ("serve", *MODEL, "--port", 0), ("eval", *MODEL)]


def call(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command[0]))
@pytest.mark.parametrize(("flag", "fallback"), [("--fallback", True), ("--no-fallback", False), (None, None)])
def test_commands_pass_them_on(
    command: tuple[object, ...], flag: str | None, fallback: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def noted(self: ForkJoinSampler, *_: object, **options: Any) -> None:
        given.update(options)
        raise ValueError("noted")

    monkeypatch.setattr(ForkJoinSampler, "__init__", noted)
    result = call(*command, *([] if flag is None else [flag, "--num-states", 7]))
    assert result.stderr.endswith("asyncthink: noted\n")
    assert given["fallback"] is fallback
    assert given["num_states"] == (None if flag is None else 7)


def test_so_does_grpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[GRPOConfig] = []
    monkeypatch.setattr("asyncthink.train.grpo.train_grpo", configs.append)
    base = ["grpo", "--out", str(tmp_path), "--model", "m", "--cache-tokens", "100"]
    for more in ([], ["--num-states", "9", "--no-fallback"]):
        training([*base, *more], standalone_mode=False)
    expected = {"num_pages": 7, "num_states": None, "fallback": None}
    assert [cache_options(config) for config in configs] == [
        expected,
        expected | {"num_states": 9, "fallback": False},
    ]
    with pytest.raises(ValueError, match="num_states: expected at least 1, got 0"):
        GRPOConfig(out=tmp_path, model=configs[0].model, num_states=0)


@pytest.mark.parametrize("given", [{"num_states": 3}, {"fallback": True}, {"fallback": False}])
def test_servers_have_decoders_of_their_own(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(ValueError, match=f"{name}: expected none beside --server, whose model is loaded there"):
        connect(["http://localhost:1"], "m", None, print, device="auto", **given)


def test_a_model_without_states_names_the_option() -> None:
    result = call("run", *MODEL, "q", "--num-states", 4)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "asyncthink: num_states: expected none, as qwen3 has no recurrent layers, got 4"
    )
