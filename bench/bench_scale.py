"""Up to 1,024 agents on one shared prefix: pages, memory, the time of a step and of its plan, and joins beside them.

A small model (2 layers) lets the cache and the planner show. Pages must be those of the prefix and of each agent's own
tokens, exactly. Agents have own texts of unequal length, so that their tails end anywhere in a page. In the second half
an agent joins another's tokens in every step, by append and link in turn: "worst with joins" holds the time until all
others have their logits, the join included. "MB grown" means something where this file runs alone: a process that held
more before gives the cache memory that it has already.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from pathlib import Path

import pytest
import torch

from asyncthink.model.decoder import Decoder
from asyncthink_kernels.cache import Branch
from random_models import random_qwen3

SHAPE = {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}  # fmt: skip
PAGE, LONGEST, STEPS, JOINED = 16, 64, 30, 24  # tokens of a page, of an agent's beginning; steps; tokens of a join
TOLERANCE = 1e-4  # of logits, relative: the linear layers round otherwise for another number of rows


def resident() -> float:
    """MB of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Agents:
    """Agents with what they were given, so that any of them can be computed again alone."""

    def __init__(self, decoder: Decoder, prefix: int, count: int) -> None:
        self.decoder, self.cache = decoder, decoder.cache
        self.prefix = torch.randint(SHAPE["vocab_size"], (prefix,))
        self.root = self.cache.root()
        self._pass([self.root], [self.prefix])
        self.branches = [self.cache.fork(self.root) for _ in range(count)]
        lengths = torch.randint(JOINED, LONGEST, (count,)).tolist()
        self.own = [torch.randint(SHAPE["vocab_size"], (n,)) for n in lengths]
        for begin in range(0, count, 64):
            self._pass(self.branches[begin : begin + 64], self.own[begin : begin + 64])

    def _pass(self, branches: list[Branch], tokens: list[torch.Tensor]) -> torch.Tensor:
        plan = self.cache.plan([(b, len(t)) for b, t in zip(branches, tokens, strict=True)])
        ends = torch.tensor([len(t) for t in tokens]).cumsum(0) - 1
        return self.decoder.forward(torch.cat(tokens), plan, ends)

    def step(self) -> tuple[torch.Tensor, float, float]:
        """One token of each: logits [B, V], seconds of the plan, of the whole step."""
        new = torch.randint(SHAPE["vocab_size"], (len(self.branches),))
        self.own = [torch.cat([old, one[None]]) for old, one in zip(self.own, new, strict=True)]
        start = time.perf_counter()
        plan = self.cache.plan([(branch, 1) for branch in self.branches])
        planned = time.perf_counter()
        logits = self.decoder.forward(new, plan, list(range(len(new))))
        return logits, planned - start, time.perf_counter() - start

    def alone(self, number: int) -> torch.Tensor:
        """Logits [V] of an agent's last token, from a branch that shares nothing."""
        branch = self.cache.root()
        try:
            return self._pass([branch], [torch.cat([self.prefix, self.own[number]])])[0]
        finally:
            self.cache.release(branch)

    @property
    def pages_expected(self) -> int:
        return -(-len(self.prefix) // PAGE) + sum(-(-len(own) // PAGE) for own in self.own)


@pytest.mark.quick(prefix=[4096], agents=[64, 1024])
@pytest.mark.parametrize("agents", [1, 64, 256, 1024])
@pytest.mark.parametrize("prefix", [512, 4096])
def test_agents(benchmark, table, agents, prefix):
    if not benchmark.enabled:
        agents, prefix = max(agents // 32, 1), prefix // 32
    torch.manual_seed(1)
    model = random_qwen3(SHAPE, torch.float32)
    most = LONGEST + 2 * STEPS + JOINED * STEPS  # of one agent; few of them join
    pages = 2 * prefix // PAGE + agents * ((LONGEST + 2 * STEPS) // PAGE + 2) + most
    before = resident()
    crowd = Agents(Decoder(model, page_size=PAGE, num_pages=pages), prefix, agents)
    gc.collect()
    gc.freeze()  # as a server does: a walk over the objects of all imported libraries takes 170 ms, amid some step
    plans, steps, joined = [], [], []

    def one() -> None:
        _, planned, whole = crowd.step()
        plans.append(planned)
        steps.append(whole)

    benchmark.pedantic(one, rounds=STEPS, warmup_rounds=1)
    logits = crowd.step()[0]
    used, expected, grown = crowd.cache.used_pages, crowd.pages_expected, resident() - before
    assert used == expected
    for number in {0, agents - 1}:
        error = (logits[number] - crowd.alone(number)).norm() / logits[number].norm()
        assert error < TOLERANCE, f"agent {number} is {error:.1e} from what it says alone"
    for turn in range(STEPS if agents > 1 else 0):
        start = time.perf_counter()
        dst, src = crowd.branches[turn % (agents // 2)], crowd.branches[-1]
        crowd.decoder.join(dst, src, src.length - JOINED, src.length, ("append", "link")[turn % 2])
        crowd.step()
        joined.append(time.perf_counter() - start)
    if benchmark.enabled:
        row = {
            "agents": agents,
            "prefix": prefix,
            "step ms": 1e3 * statistics.median(steps[1:]),
            "plan ms": 1e3 * statistics.median(plans[1:]),
            "worst step ms": 1e3 * max(steps[1:]),
            "worst with joins ms": 1e3 * max(joined, default=float("nan")),
            "pages": used,
            "pages expected": expected,
            "pages unshared": expected + (agents - 1) * (prefix // PAGE),
            "MB grown": grown,
        }
        benchmark.extra_info |= row
        table.add(row)
    gc.unfreeze()
