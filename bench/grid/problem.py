"""A cell on a device: the cache grown as decoding grows it, the step's plan, K and V, and what must come out.

Letters: T rows, Hq query heads, H kv heads, G = Hq / H, D head_dim, P pages, S page_size, N tokens of a context.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from asyncthink_kernels import tuning
from asyncthink_kernels.cache import Branch, KVStorage, LayerShape, TreeCache
from clock import Spread

from .cells import Cell

PLANS = 12  # timed of each kind
SLACK = 4  # pages that each leaf may grow by while plans are timed


@dataclass(frozen=True)
class Node:
    """A node of the tree: rows [begin, end) see it, and its tokens lie in `slots` [n] int64, on the CPU."""

    begin: int
    end: int
    slots: Tensor

    def pages(self, page_size: int) -> Tensor:
        """Page ids, [ceil(n / S)] int32: a node begins a page of its own."""
        return (self.slots[::page_size] // page_size).int()


class Problem:
    """One layer's attention of the step that decodes a token in each leaf. Page ids are shared, nothing is replicated.

    `q` [T, Hq, D], `k_cache` and `v_cache` [P, S, H, D] hold normal numbers, in slots that nobody sees as well: a peer
    may multiply those by 0. `plan` is the StepPlan on the device, `levels` the nodes level by level.
    """

    def __init__(self, cell: Cell, device: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> None:
        self.cell, self.device, self.dtype = cell, torch.device(device), dtype
        size, rows = cell.page_size, cell.tree.rows
        pages = sum(-(-tokens // size) for level in cell.tree.lengths for tokens in level) + rows * SLACK + 1
        self.chunk = tuning.chunk_tokens(cell.heads // cell.kv_heads, rows, size, cell.kv_heads)
        self.cache = TreeCache(pages, size, self.chunk)
        self.leaves = self._grow()
        self._work = [(leaf, 1) for leaf in self.leaves]
        self.plan = self.cache.plan(self._work).to(self.device)
        self.levels = self._levels()
        shape = LayerShape(cell.kv_heads, cell.head_dim, cell.head_dim)
        self.storage = KVStorage([shape], pages, size, dtype, self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        self.k_cache, self.v_cache = self.storage.k(0), self.storage.v(0)
        for cached in (self.k_cache, self.v_cache):
            cached.normal_(generator=generator)
        self.q = torch.empty(rows, cell.heads, cell.head_dim, dtype=dtype, device=self.device)
        self.q.normal_(generator=generator)

    def _grow(self) -> list[Branch]:
        """Every token but those of the step. A level's nodes grow in turn, a page each, so their pages lie interleaved,
        as they do behind agents that decode at the same time."""
        size, above = self.cell.page_size, list[Branch]()
        for depth, lengths in enumerate(self.cell.tree.lengths):
            leaf = depth == len(self.cell.tree.lengths) - 1
            level = [
                self.cache.fork(above[i * len(above) // len(lengths)]) if above else self.cache.root()
                for i in range(len(lengths))
            ]
            left = [tokens - leaf for tokens in lengths]
            step = max(left) if len(level) == 1 else size
            while any(left):
                self.cache.plan([(branch, min(step, n)) for branch, n in zip(level, left, strict=True) if n])
                left = [n - min(step, n) for n in left]
            above = level
        return above

    def _levels(self) -> list[list[Node]]:
        """Found again from the cache's own slots."""
        rows, starts = self.cell.tree.rows, [0] * self.cell.tree.rows
        levels: list[list[Node]] = []
        for lengths in self.cell.tree.lengths:
            wide, level = rows // len(lengths), list[Node]()
            for i, tokens in enumerate(lengths):
                begin = starts[i * wide]
                slots = self.cache.slots(self.leaves[i * wide], begin, begin + tokens)
                level.append(Node(i * wide, (i + 1) * wide, slots))
            starts = [start + lengths[row // wide] for row, start in enumerate(starts)]
            levels.append(level)
        return levels

    @cached_property
    def contexts(self) -> list[Tensor]:
        """Slots that each row sees, in order, [N] int64 on the CPU."""
        found: list[list[Tensor]] = [[] for _ in self.leaves]
        for level in self.levels:
            for node in level:
                for row in range(node.begin, node.end):
                    found[row].append(node.slots)
        return [torch.cat(parts) for parts in found]

    @property
    def whole_pages(self) -> bool:
        """Whether each node but the leaves fills its pages, so that a block table can describe a branch."""
        inner = self.cell.tree.lengths[:-1]
        return not any(tokens % self.cell.page_size for level in inner for tokens in level)

    @property
    def bytes(self) -> int:
        return self.cell.bytes(self.dtype.itemsize)

    @cached_property
    def expected(self) -> Tensor:
        """The formula, a row at a time, in float64, [T, Hq, D]."""
        H, D = self.k_cache.shape[2:]
        keys, values = self.k_cache.view(-1, H, D), self.v_cache.view(-1, H, D)
        rows = []
        for q, slots in zip(self.q.double(), self.contexts, strict=True):
            here = slots.to(self.device)
            logits = torch.einsum("hgd,nhd->hgn", q.view(H, -1, D), keys[here].double()) * D**-0.5
            out = torch.einsum("hgn,nhd->hgd", logits.softmax(-1), values[here].double())
            rows.append(out.reshape(-1, D))
        return torch.stack(rows)

    def planning(self) -> dict[str, Spread]:
        """Times of our own planning, seconds: afresh, as after a fork, join or release; in place; copied to the device.

        Grows the leaves, so the problem is of no use afterwards.
        """
        stats = self.cache.stats
        found: dict[str, list[float]] = {"fresh": [], "in place": [], "to the device": []}
        for _ in range(PLANS):
            self.cache.release(self.cache.root())
            start = time.perf_counter()
            plan = self.cache.plan(self._work)
            planned = time.perf_counter()
            plan.to(self.device)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            found["fresh"].append(planned - start)
            found["to the device"].append(time.perf_counter() - planned)
        for _ in range(2 * PLANS):
            advanced = stats.plans_advanced
            start = time.perf_counter()
            self.cache.plan(self._work)
            if stats.plans_advanced > advanced:  # a leaf that enters a new chunk is planned afresh
                found["in place"].append(time.perf_counter() - start)
        return {kind: Spread.of(times) for kind, times in found.items() if times}


def indptr(counts: list[int]) -> Tensor:
    """[0, c0, c0 + c1, ...] int32, on the CPU."""
    return torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def page_tables(problem: Problem, level: list[Node]) -> tuple[Tensor, Tensor, Tensor]:
    """Pages of a level's nodes, int32 on the CPU: indptr, ids, tokens of each one's last page."""
    size = problem.cell.page_size
    ids = [node.pages(size) for node in level]
    last = torch.tensor([(len(node.slots) - 1) % size + 1 for node in level], dtype=torch.int32)
    return indptr([len(each) for each in ids]), torch.cat(ids), last


def block_tables(problem: Problem) -> tuple[list[Tensor], Tensor]:
    """Page ids of each row, [ceil(N / S)] int32, and context lengths [T] int32, on the CPU. Needs `whole_pages`."""
    size = problem.cell.page_size
    pages = [(slots[::size] // size).int() for slots in problem.contexts]
    return pages, torch.tensor([len(slots) for slots in problem.contexts], dtype=torch.int32)


def equal_runs(lengths: list[int], most: int) -> list[list[int]]:
    """Rows grouped by equal length, no group of more than `most` tokens in all unless it is one row."""
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    groups = [order[:1]]
    for before, row in pairwise(order):
        fits = lengths[row] * (len(groups[-1]) + 1) <= most
        if lengths[row] == lengths[before] and fits:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
