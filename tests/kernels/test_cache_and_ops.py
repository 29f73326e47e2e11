"""The cache's plans, the scatter of a join and the ops together, against plain lists of tokens.

A token's K is its content turned by its position, as a rotary embedding does it. So after any forks, joins and releases
a branch must attend exactly as one that computed all its tokens itself, at the positions where they now stand.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from asyncthink_kernels import append_kv, join_append, tree_attention, use_backend
from asyncthink_kernels.cache import Branch, KVStorage, LayerShape, TreeCache
from asyncthink_kernels.testing import TOLERANCE, compare, normal

HEADS, GROUP, D, R = 2, 3, 32, 12
CONTENT_K, CONTENT_V = normal((4096, HEADS, D), torch.float64, 1), normal((4096, HEADS, D), torch.float64, 2)
FREQUENCY = 10000.0 ** -(torch.arange(R, dtype=torch.float64) / R)


def placed(content: Tensor, positions: Tensor) -> Tensor:
    """Content [N, heads, D] with its first R pairs (i, i + R) turned by position * frequency."""
    turn = torch.polar(torch.ones(len(positions), 1, R, dtype=torch.float64), positions[:, None, None] * FREQUENCY)
    pair = torch.complex(content[..., :R], content[..., R : 2 * R]) * turn
    return torch.cat((pair.real, pair.imag, content[..., 2 * R :]), dim=-1)


@dataclass
class World:
    """Branches of a real cache, and beside each the ids of its tokens in order."""

    device: str
    dtype: torch.dtype
    join: str
    window: int | None
    cache: TreeCache = field(default_factory=lambda: TreeCache(num_pages=300, page_size=4, chunk=16))
    tokens: dict[int, list[int]] = field(default_factory=dict)
    fresh: int = 0

    def __post_init__(self) -> None:
        self.storage = KVStorage([LayerShape(HEADS, D, D)], 300, 4, self.dtype, self.device)
        self.storage.poison()

    def step(self, work: list[tuple[Branch, int]]) -> None:
        plan = self.cache.plan(work)
        ids: list[int] = []
        seen: list[list[int]] = []
        for branch, new in work:
            for _ in range(new):
                self.tokens[branch.id].append(self.fresh)
                ids.append(self.fresh)
                seen.append(list(self.tokens[branch.id]))
                self.fresh += 1
        k = placed(CONTENT_K[ids], plan.positions)
        q = placed(normal((len(ids), HEADS * GROUP, D), torch.float64, self.fresh), plan.positions)
        to = {"dtype": self.dtype, "device": self.device}
        caches, slots = (self.storage.k(0), self.storage.v(0)), plan.slots.to(self.device)
        append_kv(k.to(**to), CONTENT_V[ids].to(**to), *caches, slots)
        cos, sin = self.tables(plan.shifts)
        out = tree_attention(q.to(**to), *caches, plan.to(self.device), cos=cos, sin=sin, window=self.window)
        limit = TOLERANCE[self.dtype].out
        compare(out, torch.stack([self.dense(*each) for each in zip(q, seen, strict=True)]), limit=limit)

    def tables(self, shifts: Tensor) -> tuple[Tensor, Tensor]:
        angle = shifts[:, None] * FREQUENCY
        return angle.cos().to(self.device, self.dtype), angle.sin().to(self.device, self.dtype)

    def dense(self, q: Tensor, seen: list[int]) -> Tensor:
        k, v = placed(CONTENT_K[seen], torch.arange(len(seen))), CONTENT_V[seen]
        if self.window is not None:
            k, v = k[-self.window :], v[-self.window :]
        logits = q.view(HEADS, GROUP, D) @ k.permute(1, 2, 0) * D**-0.5
        return (torch.softmax(logits, dim=-1) @ v.transpose(0, 1)).flatten(0, 1)

    def joined(self, dst: Branch, src: Branch, start: int, stop: int) -> None:
        self.tokens[dst.id] += self.tokens[src.id][start:stop]
        scatter = self.cache.join(dst, src, start, stop, self.join)
        if scatter is not None:
            (group,) = self.storage.groups
            slots = (scatter.src_slots.to(self.device), scatter.dst_slots.to(self.device))
            join_append(group.k, group.v, *slots, *self.tables(torch.tensor([scatter.shift])))


@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize("join", ["append", "link"])
@pytest.mark.parametrize("seed", range(3))
def test_any_history_attends_like_a_plain_list(seed: int, join: str, window: int | None, device: str) -> None:
    history(World(device, torch.float32, join, window), random.Random(seed))


@pytest.mark.parametrize("join", ["append", "link"])
def test_the_reference_does_so_exactly(join: str) -> None:
    with use_backend("reference"):
        history(World("cpu", torch.float64, join, None), random.Random(7))


def history(world: World, rng: random.Random) -> None:
    """40 random moves (fork, join, release), each with a step of most branches, then all pages given back."""
    branches = [world.cache.root(), world.cache.root()]
    world.tokens |= {branch.id: [] for branch in branches}
    world.step([(branch, 9) for branch in branches])
    for _ in range(40):
        branch, other = rng.choice(branches), rng.choice(branches)
        move = rng.random()
        if move < 0.2:
            at = rng.randrange(1, branch.length + 1)
            branches.append(world.cache.fork(branch, at))
            world.tokens[branches[-1].id] = world.tokens[branch.id][:at]
        elif move < 0.4 and branch is not other:
            start = rng.randrange(other.length)
            world.joined(branch, other, start, rng.randrange(start, min(other.length, start + 20)) + 1)
        elif move < 0.5 and len(branches) > 2:
            world.cache.release(branch)
            branches.remove(branch)
        rows = [(each, 1 if rng.random() < 0.8 else rng.randrange(1, 12)) for each in branches if rng.random() < 0.8]
        if rows:
            world.step(rows)
    for branch in branches:
        world.cache.release(branch)
    assert world.cache.used_pages == 0
