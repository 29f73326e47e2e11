"""Where a decode step of the sampler goes, by `asyncthink profile`: agents behind one prompt, compiled or not.

`pytest bench/bench_profile.py --benchmark` runs the Qwen3-0.6B shape (bfloat16, random weights) and, for the planner
and the scheduler, 1,024 agents of a model of 2 layers (float32). "other" is what is neither a linear layer nor
attention; the goal is 5% of a step at 8 agents and 15% at 256. Shares are of steps that a profiler watches; "step ms"
is without. Without the flag a tiny model runs, and shares must add up.
"""

from __future__ import annotations

from typing import Any

import pytest

import bench_scale
from asyncthink.cli.profile import SHAPES, random_model
from asyncthink.eval.profiling import profile
from random_models import TINY

MODELS = {"qwen3-0.6b": (SHAPES["qwen3-0.6b"], "bfloat16"), "2 layers": (bench_scale.SHAPE, "float32")}
CELLS = [
    *(("qwen3-0.6b", agents, 512, compiled) for compiled in (False, True) for agents in (8, 256)),
    ("2 layers", 1024, 4096, False),
]


@pytest.fixture(scope="module")
def held() -> dict[tuple[str, bool], Any]:
    """The last model and its tokenizer: cells in a row share what was compiled."""
    return {}


@pytest.mark.quick(model=["qwen3-0.6b"], agents=[8], compiled=[False])
@pytest.mark.parametrize(("model", "agents", "prefix", "compiled"), CELLS)
def test_step(benchmark, table, held, model, agents, prefix, compiled):
    timed = benchmark.enabled
    shape, dtype = MODELS[model] if timed else (TINY, "float32")
    prefix, steps = (prefix, 24 if agents == 8 else 8) if timed else (9, 2)
    if (model, compiled) not in held:
        held.clear()
        held[model, compiled] = random_model(shape, dtype, 1024 if model == "2 layers" else 256, prefix, 24, compiled)
    decoder, tokenizer = held[model, compiled]
    found = benchmark.pedantic(
        lambda: profile(decoder, tokenizer, agents=agents, prefix=prefix, tokens=steps), rounds=1
    )
    shares = {part: 100 * share for part, share in found["shares"].items()}
    assert sum(shares.values()) == pytest.approx(100)
    assert found["agents"] == agents
    row = {
        "model": model,
        "agents": agents,
        "prefix": prefix,
        "compiled": "yes" if compiled else "no",
        "step ms": found["ms"],
        "watched ms": found["ms_watched"],
        "tokens/s": found["tokens_per_second"],
        "plan and schedule ms": found["parts"]["plan"] + found["parts"]["schedule"],
        "other %": 100 - shares["linear"] - shares["attention"],
    }
    row |= {f"{part} %": share for part, share in shares.items()}
    benchmark.extra_info |= row
    if timed:
        table.add(row)
