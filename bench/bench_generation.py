"""Decoding end to end beside what people would use instead: B branches behind one prefix, in steps.

`pytest bench/bench_generation.py --benchmark` runs the Qwen3-0.6B shape with random weights; prefixes are prefilled
first, and what is timed is a step of all branches with the logits of each. Engines step in turn on the same clock, a
slow one less often. Without the flag a tiny model runs, and everybody's logits must be ours.

"ours" records its steps (docs/steps.md). "eager" is ours without that, "compiled" with `compile=True`, "int8" and
"int4" on quantised weights; all four in bfloat16 and without `--quick`: torch.compile takes most of a minute.
llama.cpp takes part where `pip install -e ".[peers]"` was run. A whole step is one sample of ours for pytest-benchmark.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import machine
from clock import Spread
from engines import NEW, Engine
from engines.hugging_face import HuggingFace
from engines.ours import Ours
from random_models import SHAPE, TINY, random_qwen3

PREFIXES = (512, 4096)
STEPS = (3, 20)  # fewest of a slow engine, and most
SECONDS = 2.0  # of each engine in a cell
#: How far logits may be from ours, relative to their norm: rounding of 28 layers in other orders.
APART = {torch.float32: 1e-3, torch.bfloat16: 0.1}
#: The same for other weights: those of 4 bits have an error of a tenth each.
APART_BY_NAME = {"int8": 0.2, "int4": 0.6}
#: Ours in other ways.
WAYS: dict[str, dict[str, object]] = {
    "eager": {"record": False},
    "compiled": {"compile": True},
    "int8": {"weights": "int8"},
    "int4": {"weights": "int4"},
}


@dataclass
class Field:
    """The engines of one dtype, and the length of the prefix that all of them hold."""

    engines: dict[str, Engine]
    timed: bool
    prefix: int = 0

    def hold(self, prefix: int, vocabulary: int) -> None:
        if prefix != self.prefix:
            tokens = torch.randint(vocabulary, (prefix,), generator=torch.Generator().manual_seed(0)).tolist()
            for engine in self.engines.values():
                engine.prefill(tokens)
            self.prefix = prefix


@pytest.fixture(scope="module")
def fields(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Field]]:
    """The engines of the dtype that is at work; those of another are closed first."""
    held: dict[str, Field] = {}
    yield held
    _close(held)


def _close(held: dict[str, Field]) -> None:
    for one in held.values():
        for engine in one.engines.values():
            engine.close()
    held.clear()


def make(dtype: torch.dtype, timed: bool, ways: bool, peers: list[str], folder: Path) -> Field:
    model = random_qwen3(SHAPE if timed else TINY, dtype)
    longest = max(PREFIXES)
    engines: dict[str, Engine] = {"ours": Ours(model, longest)}
    if ways:
        engines |= {name: Ours(model, longest, **options) for name, options in WAYS.items()}
    if "transformers" in peers:
        engines["transformers"] = HuggingFace(model)
    if "llama.cpp" in peers:
        from engines.llama_cpp_wheel import LlamaCppWheel
        from gguf_files import write_gguf

        path, wide = folder / "model.gguf", dtype == torch.float32
        write_gguf(model, path, "F32" if wide else "BF16")
        engines["llama.cpp"] = LlamaCppWheel(path, longest, model.config.vocab_size, wide=wide)
        path.unlink()  # it stays mapped
    return Field(engines, timed)


@pytest.mark.quick(branches=[4], prefix=[512], dtype=[torch.bfloat16])
@pytest.mark.parametrize("branches", [1, 4, 8])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_decoding(benchmark, table, fields, engines, tmp_path, quick, branches, prefix, dtype):
    if not benchmark.enabled:
        prefix, dtype = prefix // 16, torch.float32
    ways = not quick and (dtype == torch.bfloat16 or not benchmark.enabled)
    if str(dtype) not in fields:
        _close(fields)
        fields[str(dtype)] = make(dtype, benchmark.enabled, ways, engines, tmp_path)
    now = fields[str(dtype)]
    vocabulary = (SHAPE if benchmark.enabled else TINY)["vocab_size"]
    now.hold(prefix, vocabulary)
    for engine in now.engines.values():
        engine.branch(branches)
    tokens = torch.randint(vocabulary, (NEW, branches), generator=torch.Generator().manual_seed(1)).tolist()
    check(now.engines, tokens[:2], APART[dtype])
    if not benchmark.enabled:
        benchmark.pedantic(now.engines["ours"].step, args=(tokens[2],))
        return
    times = in_turn(benchmark, now.engines, tokens[2:])
    row = row_of(times, dtype, branches, prefix)
    benchmark.extra_info |= row
    table.add(row)
    for engine in now.engines.values():
        table.note(engine.note)


def check(engines: Mapping[str, Engine], tokens: list[list[int]], limit: float) -> None:
    """AssertionError unless everybody's logits are ours: the same model runs, on the same context."""
    for given in tokens:
        found = {name: torch.stack([row.float() for row in engine.step(given)]) for name, engine in engines.items()}
        for name, logits in found.items():
            apart = ((logits - found["ours"]).norm() / found["ours"].norm()).item()
            most = APART_BY_NAME.get(name, limit)
            assert apart <= most, f"{name}: logits are {apart:.1e} from ours, expected at most {most:.0e}"


def in_turn(benchmark, engines: Mapping[str, Engine], tokens: list[list[int]]) -> dict[str, Spread]:
    peers = {name: engine for name, engine in engines.items() if name != "ours"}

    def once(engine: Engine, given: list[int]) -> float:
        start = time.perf_counter()
        engine.step(given)
        return time.perf_counter() - start

    wanted = {name: min(max(int(SECONDS / once(e, tokens[0])), STEPS[0]), STEPS[1]) for name, e in peers.items()}
    once(engines["ours"], tokens[0])
    found: dict[str, list[float]] = {name: [] for name in peers}
    turn = itertools.count()

    def peers_then_ours() -> tuple[tuple[list[int]], dict[str, object]]:
        number = next(turn)
        for name, engine in peers.items():
            if number * wanted[name] // STEPS[1] >= len(found[name]):
                found[name].append(once(engine, tokens[1 + number]))
        return (tokens[1 + number],), {}

    benchmark.pedantic(engines["ours"].step, setup=peers_then_ours, rounds=STEPS[1])
    ours = {"ours": Spread.of(benchmark.stats.stats.data)}
    return ours | {name: Spread.of(seconds) for name, seconds in found.items()}


def columns(ours: Spread, branches: int, prefix: int) -> dict[str, str | float]:
    """Our part of a line."""
    return {
        "branches": branches,
        "prefix": prefix,
        "step ms": 1e3 * ours.median,
        "p20": 1e3 * ours.p20,
        "p80": 1e3 * ours.p80,
        "tokens/s": branches / ours.median,
    }


def row_of(times: Mapping[str, Spread], dtype: torch.dtype, branches: int, prefix: int) -> dict[str, str | float]:
    ours = times["ours"]
    row: dict[str, str | float] = {"dtype": str(dtype).removeprefix("torch.")}
    row |= columns(ours, branches, prefix)
    for name, spread in times.items():
        if name != "ours":
            row[f"{name} tokens/s"] = branches / spread.median
        if name not in ("ours", *WAYS):
            row[f"x {name}"] = spread.median / ours.median
    return row | {"device": machine.device(), "threads": machine.threads()}
