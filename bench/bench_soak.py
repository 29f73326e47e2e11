"""2,000 whole episodes of the checkpoint in the box, one wave after another: memory stays flat, every page comes back.

Waves take turns in how workers see and how they are joined. Some are short of tokens and some are cancelled halfway.
"""

from __future__ import annotations

import gc
import itertools

import pytest

from asyncthink import SamplingParams, checkpoint_path
from asyncthink.engine.loaded import LoadedModel
from asyncthink.tasks import Countdown
from bench_scale import resident

WAVE = 50
MOST_GROWTH = 64.0  # MB, from the first tenth on: noise of the allocator is some MB


def waves(served: LoadedModel):
    """Endless: (sampler, parameters) of the next wave."""
    kinds = itertools.product(["exact", "append", "link"], ["shared", "isolated"])
    samplers = [served.sampler(join=join, context=context) for join, context in kinds]
    for number in itertools.count():
        limit = 40 if number % 5 == 4 else 700
        yield samplers[number % len(samplers)], SamplingParams(temperature=1.0, max_tokens=limit, seed=number)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_memory_stays_flat(benchmark, table, quick):
    episodes = (200 if quick else 2000) if benchmark.enabled else 2 * WAVE
    task, served = Countdown(), LoadedModel.load(checkpoint_path())
    questions = [task.prompt(task.sample(k, held_out=True)) for k in range(WAVE)]
    schedule = waves(served)
    memory: list[float] = []
    caches = {}

    def run() -> None:
        for _ in range(episodes // WAVE):
            sampler, params = next(schedule)
            caches[id(sampler)] = sampler
            for episode in sampler.generate(questions, params):
                assert episode.traces
            with sampler.stream(questions[0], params) as events:  # left after its first events
                for _ in zip(range(5), events, strict=False):
                    pass
            assert sampler.scheduler.idle
            gc.collect()
            memory.append(resident())

    benchmark.pedantic(run, rounds=1)
    for sampler in caches.values():
        sampler.refresh()  # lets go of the prefixes that stay between episodes
    assert served.decoder.cache.used_pages == 0
    start = memory[min(max(len(memory) // 10, 6), len(memory) - 1)]
    assert memory[-1] - start < MOST_GROWTH
    if benchmark.enabled:
        row = {"episodes": episodes, "RSS MB start": start, "RSS MB end": memory[-1], "pages left": 0}
        benchmark.extra_info |= row
        table.add(row)
