"""`asyncthink profile`: parts add up, nothing of the clock stays behind, and bad options end in one line."""

from __future__ import annotations

import json

import pytest
from torch import nn
from typer.testing import CliRunner

from asyncthink import checkpoint_path
from asyncthink.cli import profile as profile_command
from asyncthink.cli.app import app
from asyncthink.engine.loaded import LoadedModel
from asyncthink.engine.local import LocalEngine
from asyncthink.episode.core import EpisodeCore
from asyncthink.eval.profiling import PARTS, Clock, profile
from asyncthink.model import linear as model_pack
from asyncthink_kernels.ops import _library

TINY = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def test_parts_add_up_and_nothing_stays() -> None:
    served = LoadedModel.load(checkpoint_path())
    decoder = served.decoder
    before = (model_pack._linear, dict(_library._runs), EpisodeCore.accept, EpisodeCore.tick)
    found = profile(decoder, served.tokenizer, agents=3, prefix=20, tokens=5)
    assert set(found["parts"]) == set(found["shares"]) == set(PARTS)
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    assert sum(found["parts"].values()) == pytest.approx(found["ms_watched"])
    assert all(found["parts"][part] > 0 for part in PARTS)
    assert found["agents"] == 3 and 1 <= found["steps"] <= 5 and found["tokens_per_second"] > 0
    assert before == (model_pack._linear, _library._runs, EpisodeCore.accept, EpisodeCore.tick)
    assert "forward" not in vars(decoder) and "plan" not in vars(decoder.cache)
    layers = [module for module in decoder.model.modules() if isinstance(module, nn.Linear)]
    assert layers and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_packed_layers_are_seen(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    monkeypatch.setitem(profile_command.COMPILED, "compile", "aot_eager")
    monkeypatch.setattr(model_pack, "LEAST_BYTES", 1)
    decoder, tokenizer = profile_command.random_model(TINY, "float32", 2, 9, 4, compiled)
    assert decoder.linears is not None and decoder.compiled == compiled
    found = profile(decoder, tokenizer, agents=2, prefix=9, tokens=4)
    assert all(found["parts"][part] > 0 for part in PARTS)
    assert sum(found["shares"].values()) == pytest.approx(1.0)


def test_the_end_of_the_agents_is_not_in_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many agents are dropped one by one when all steps are timed; that took more than their scheduling."""
    served = LoadedModel.load(checkpoint_path())
    drop, clocks = LocalEngine.drop, []
    monkeypatch.setattr(LocalEngine, "drop", lambda *given: (clocks.append(sum(clock.seconds.values())), drop(*given)))
    clock = Clock()
    monkeypatch.setattr("asyncthink.eval.profiling.Clock", lambda: clock)
    profile(served.decoder, served.tokenizer, agents=3, prefix=4, tokens=3)
    assert clocks[-3] == pytest.approx(sum(clock.seconds.values()), abs=0)


def test_compiled_layers_that_are_not_packed_cannot_be_seen() -> None:
    served = LoadedModel.load(checkpoint_path(), compile="aot_eager")
    with pytest.raises(ValueError, match=r"only where they are packed: its linear layers take .* in the caches"):
        profile(served.decoder, served.tokenizer, agents=1, prefix=2, tokens=2)


def test_time_belongs_to_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    clock = Clock()
    inner = clock.around("inner", lambda: None)
    clock.around("outer", inner)()
    assert dict(clock.seconds) == {"outer": 1.0 + 4.0, "inner": 2.0}


def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(profile_command.SHAPES, "tiny", TINY)
    options = ["--shape", "tiny", "--agents", "2", "--prefix", "9", "--tokens", "4", "--dtype", "float32"]
    done = CliRunner().invoke(app, ["profile", *options, "--json"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["parts"]) == set(PARTS)
    shown = CliRunner().invoke(app, ["profile", *options])
    assert shown.exit_code == 0 and "linear layers" in shown.stdout and "tokens/s" in shown.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "other"], "--shape: expected one of qwen3-0.6b, got 'other'"),
        (["--dtype", "int8"], "dtype: expected one of auto, float32, bfloat16, float16, float64, got 'int8'"),
        (["--shape", "qwen3-0.6b", "--model", "x"], "give --model or --shape, got both"),
        (["--model", "./nowhere"], "cannot load a causal language model from ./nowhere: there is no such folder"),
        (["--shape", "qwen3-0.6b", "--revision", "v1"], "--revision: expected none beside --shape, got 'v1'"),
    ],
)
def test_bad_options(options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["profile", *options])
    assert done.exit_code == 1 and message in done.stderr and "Traceback" not in done.output
