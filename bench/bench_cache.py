"""Forks, joins and plans. `pytest bench/bench_cache.py --benchmark` times them; without the flag results are checked.

A fork copies no byte, and with a join by link costs the same on 1K and 128K tokens; a join by append is here without
its copies, which are `join_append`'s. A step's plan is timed as it is made in decoding: updated in place, and built
afresh as after a fork, join or release.
"""

from __future__ import annotations

import statistics

import pytest

from asyncthink_kernels.cache import Branch, TreeCache

PREFIXES = (1024, 32 * 1024, 128 * 1024)
BRANCHES = (1, 8, 64, 1024)
JOINED = 64  # tokens of a join


def prefix(tokens: int) -> tuple[TreeCache, Branch]:
    cache = TreeCache(num_pages=1 << 16)
    root = cache.root()
    cache.plan([(root, tokens)])
    return cache, root


def add(benchmark, table, what: str, tokens: int, branches: int | str = "") -> None:
    """The line of a table, where times were taken."""
    if not benchmark.enabled:
        return
    times = sorted(benchmark.stats.stats.data)
    table.add(
        {
            "what": what,
            "prefix": tokens,
            "branches": branches,
            "median us": 1e6 * statistics.median(times),
            "p20": 1e6 * times[len(times) // 5],
            "p80": 1e6 * times[4 * len(times) // 5],
        }
    )


@pytest.mark.parametrize("tokens", PREFIXES)
def test_fork_and_release(benchmark, table, tokens):
    cache, root = prefix(tokens)
    used = cache.used_pages

    def fork_and_release() -> None:
        cache.release(cache.fork(root))

    benchmark.pedantic(fork_and_release, rounds=300, warmup_rounds=3)
    assert (cache.used_pages, cache.stats.tokens_copied) == (used, 0)
    assert cache.stats.tokens_shared == tokens * cache.stats.forks > 0
    add(benchmark, table, "fork and release", tokens)


@pytest.mark.parametrize("mode", ["append", "link"])
@pytest.mark.parametrize("tokens", PREFIXES)
def test_join(benchmark, table, tokens, mode):
    """A worker's tokens join a branch that is made for it and released after it."""
    cache, root = prefix(tokens)
    worker = cache.fork(root)
    cache.plan([(worker, JOINED)])
    used = cache.used_pages
    made: list[Branch] = []

    def organizer() -> None:
        for branch in made:
            cache.release(branch)
        made[:] = [cache.fork(root)]

    def join() -> None:
        cache.join(made[0], worker, tokens, tokens + JOINED, mode)

    benchmark.pedantic(join, setup=organizer, rounds=300, warmup_rounds=3)
    assert made[0].length == tokens + JOINED
    assert cache.used_pages == used + (JOINED // cache.page_size if mode == "append" else 0)
    cache.release(made[0])
    assert cache.used_pages == used
    add(benchmark, table, f"join by {mode}", tokens)


@pytest.mark.parametrize("tokens", [4096, 128 * 1024])
@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("kind", ["in_place", "rebuilt"])
def test_plan_of_a_step(benchmark, table, tokens, branches, kind):
    cache, root = prefix(tokens)
    work = [(cache.fork(root), 1) for _ in range(branches)]
    cache.plan(work)

    def change_topology() -> None:
        if kind == "rebuilt":
            cache.release(cache.root())

    rounds = 300 if tokens * branches < 1 << 24 else 30
    plan = benchmark.pedantic(lambda: cache.plan(work), setup=change_topology, rounds=rounds, warmup_rounds=3)
    steps = cache.stats.plans_built + cache.stats.plans_advanced - 1  # the first plan was the prefix
    assert plan.positions.tolist() == [tokens + steps - 1] * branches
    assert (cache.stats.plans_advanced > 0) == (kind == "in_place")
    assert len(plan.entries) == branches * (tokens // cache.chunk + 1)
    add(benchmark, table, f"plan, {kind.replace('_', ' ')}", tokens, branches)


@pytest.mark.parametrize("tokens", PREFIXES)
def test_plan_of_a_prefill(benchmark, table, tokens):
    cache, root = prefix(1)

    def undo() -> None:
        cache.truncate(root, 1)

    plan = benchmark.pedantic(lambda: cache.plan([(root, tokens)]), setup=undo, rounds=5, warmup_rounds=1)
    assert plan.slots.tolist() == list(range(1, tokens + 1))
    assert int(plan.row_ptr[-1]) == len(plan.entries)
    add(benchmark, table, "plan, prefill", tokens, 1)
