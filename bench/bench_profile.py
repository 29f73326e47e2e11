"""Where a decode step of the sampler goes, by `asyncthink profile`: 8 and 256 agents behind one prompt, as the model
comes and compiled.

`pytest bench/bench_profile.py --benchmark` runs the Qwen3-0.6B shape (bfloat16, random weights). "other" is what is
neither a linear layer nor attention; the goal is 5% of a step at 8 agents and 15% at 256. Shares are of steps with
a clock in them; "step ms" is without. Without the flag a tiny model runs, and shares must add up.
"""

from __future__ import annotations

import pytest

from asyncthink.profile_command import SHAPES, random_model
from asyncthink.profiling import profile
from bench_generation import TINY


@pytest.mark.quick(agents=[8], compiled=[False])
@pytest.mark.parametrize(("agents", "compiled"), [(8, False), (256, False), (8, True)])
def test_step(benchmark, table, agents, compiled):
    timed = benchmark.enabled
    prefix, steps = (512, 24 if agents == 8 else 8) if timed else (9, 2)
    shape, dtype = (SHAPES["qwen3-0.6b"], "bfloat16") if timed else (TINY, "float32")
    decoder, tokenizer = random_model(shape, dtype, agents, prefix, steps, compiled)
    found = benchmark.pedantic(
        lambda: profile(decoder, tokenizer, agents=agents, prefix=prefix, tokens=steps), rounds=1
    )
    shares = {part: 100 * share for part, share in found["shares"].items()}
    assert sum(shares.values()) == pytest.approx(100)
    assert found["agents"] == agents
    row = {
        "agents": agents,
        "prefix": prefix,
        "compiled": "yes" if compiled else "no",
        "step ms": found["ms"],
        "with the clock ms": found["ms_watched"],
        "tokens/s": found["tokens_per_second"],
        "other %": 100 - shares["linear"] - shares["attention"],
    }
    row |= {f"{part} %": share for part, share in shares.items()}
    benchmark.extra_info |= row
    if timed:
        table.add(row)
