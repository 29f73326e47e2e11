"""Forks and plans. `pytest bench/bench_cache.py --benchmark` times them; without the flag only results are checked.

A fork copies no byte and costs the same on 1K and 32K tokens. A step's plan is timed as it is made in decoding:
updated in place, and built afresh as after a fork, join or release.
"""

from __future__ import annotations

import pytest

from asyncthink_kernels.cache import Branch, TreeCache

PREFIX = 4096
BRANCHES = (1, 8, 64, 1024)


def prefix(tokens: int) -> tuple[TreeCache, Branch]:
    cache = TreeCache(num_pages=1 << 16)
    root = cache.root()
    cache.plan([(root, tokens)])
    return cache, root


@pytest.mark.parametrize("tokens", [1024, 32 * 1024])
def test_fork_and_release(benchmark, tokens):
    cache, root = prefix(tokens)
    used = cache.used_pages

    def fork_and_release() -> None:
        cache.release(cache.fork(root))

    benchmark(fork_and_release)
    assert (cache.used_pages, cache.stats.tokens_copied) == (used, 0)
    assert cache.stats.tokens_shared == tokens * cache.stats.forks > 0


@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("kind", ["in_place", "rebuilt"])
def test_plan_of_a_step(benchmark, branches, kind):
    cache, root = prefix(PREFIX)
    work = [(cache.fork(root), 1) for _ in range(branches)]
    cache.plan(work)

    def change_topology() -> None:
        if kind == "rebuilt":
            cache.release(cache.root())

    plan = benchmark.pedantic(lambda: cache.plan(work), setup=change_topology, rounds=300, warmup_rounds=3)
    steps = cache.stats.plans_built + cache.stats.plans_advanced - 1  # the first plan was the prefix
    assert plan.positions.tolist() == [PREFIX + steps - 1] * branches
    assert (cache.stats.plans_advanced > 0) == (kind == "in_place")
    assert len(plan.entries) == branches * (PREFIX // cache.chunk + 1)


@pytest.mark.parametrize("tokens", [1024, 32 * 1024])
def test_plan_of_a_prefill(benchmark, tokens):
    cache, root = prefix(1)

    def undo() -> None:
        cache.truncate(root, 1)

    plan = benchmark.pedantic(lambda: cache.plan([(root, tokens)]), setup=undo, rounds=5, warmup_rounds=1)
    assert plan.slots.tolist() == list(range(1, tokens + 1))
    assert int(plan.row_ptr[-1]) == len(plan.entries)
