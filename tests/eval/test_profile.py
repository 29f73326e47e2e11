"""`asyncthink profile`: parts add up, and bad options end in one line."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from asyncthink import checkpoint_path
from asyncthink.cli import profile as profile_command
from asyncthink.cli.app import app
from asyncthink.engine.labels import PREFIX, label
from asyncthink.engine.loaded import LoadedModel
from asyncthink.eval.profiling import PARTS, own_times, profile
from asyncthink.model import linear as model_pack
from asyncthink.model.decoder import Decoder

TINY = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def test_parts_add_up() -> None:
    served = LoadedModel.load(checkpoint_path())
    found = profile(served.decoder, served.tokenizer, agents=3, prefix=20, tokens=5)
    assert set(found["parts"]) == set(found["shares"]) == set(PARTS)
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    assert sum(found["parts"].values()) == pytest.approx(found["ms_watched"])
    assert all(found["parts"][part] > 0 for part in PARTS)
    assert found["agents"] == 3 and 1 <= found["steps"] <= 5 and found["tokens_per_second"] > 0


def test_labels_cost_nothing_while_no_profiler_runs() -> None:
    assert label("plan") is label("draw")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler, label("plan"):
        pass
    assert [event.name for event in profiler.events()] == [f"{PREFIX}plan"]


def event(number: int, name: str, start: float, end: float, parent: Any = None) -> Any:
    """As torch.profiler has them, times in microseconds."""
    span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    return SimpleNamespace(id=number, name=name, time_range=span, cpu_parent=parent)


def test_time_belongs_to_the_innermost_part() -> None:
    first, second = event(1, f"{PREFIX}step", 0, 9000), event(2, f"{PREFIX}step", 10_000, 20_000)
    model = event(3, f"{PREFIX}model", 11_000, 18_000, second)
    other = event(4, "aten::silu", 12_000, 13_000, model)
    outer = event(5, "asyncthink::packed_linear", 13_000, 16_000, model)
    inner = event(6, "mkldnn::_linear_pointwise", 14_000, 15_000, outer)
    attention = event(7, "asyncthink::tree_attention", 16_000, 16_500, model)
    hidden = event(8, "aten::linear", 12_200, 12_300, other)  # within something that is no part
    early = event(9, f"{PREFIX}plan", 100, 200, first)
    late = event(10, f"{PREFIX}plan", 30_000, 31_000)  # in no step
    events = [late, attention, inner, outer, hidden, other, model, second, early, first]
    parts = own_times(events, [False, True])
    assert parts == pytest.approx(
        dict.fromkeys(PARTS, 0.0) | {"rest": 3.0, "transformers": 3.4, "linear": 3.1, "attention": 0.5}
    )
    assert own_times(events, [True, True])["plan"] == pytest.approx(0.1)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_packed_layers_are_seen(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    monkeypatch.setitem(profile_command.COMPILED, "compile", "aot_eager")
    monkeypatch.setattr(model_pack, "LEAST_BYTES", 1)
    decoder, tokenizer = profile_command.random_model(TINY, "float32", 2, 9, 4, compiled)
    assert decoder.linears is not None and decoder.compiled == compiled
    found = profile(decoder, tokenizer, agents=2, prefix=9, tokens=4)
    assert all(found["parts"][part] > 0 for part in PARTS)
    assert sum(found["shares"].values()) == pytest.approx(1.0)


def test_packed_layers_of_steps_that_are_not_recorded_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of many rows are not."""
    monkeypatch.setattr(model_pack, "LEAST_BYTES", 1)
    made, tokenizer = profile_command.random_model(TINY, "float32", 2, 9, 4, False)
    decoder = Decoder(made.model, num_pages=16, record=False)
    assert decoder.linears is not None and decoder.recorded is None
    found = profile(decoder, tokenizer, agents=2, prefix=9, tokens=4)
    assert all(found["parts"][part] > 0 for part in PARTS)


def test_compiled_layers_that_are_not_packed_cannot_be_seen() -> None:
    served = LoadedModel.load(checkpoint_path(), compile="aot_eager")
    with pytest.raises(ValueError, match=r"only where they are packed: its linear layers take .* in the caches"):
        profile(served.decoder, served.tokenizer, agents=1, prefix=2, tokens=2)


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
