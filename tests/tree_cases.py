"""Steps and shapes that tree_attention is tested with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from asyncthink_kernels import TreePlan, tree_attention
from asyncthink_kernels.testing import IMPOSSIBLE, Branch, Plan, Tree, angles, normal, poisoned, random_tree

Work = tuple[Tree, list[tuple[Branch, int]]]


def one_token(S: int) -> Work:
    tree = Tree(page_size=S)
    return tree, [(tree.root(1), 1)]


def chain(S: int) -> Work:
    tree = Tree(page_size=S, num_pages=200)
    return tree, [(tree.root(131), 1)]


def fork_mid_page(S: int) -> Work:
    tree = Tree(page_size=S, num_pages=200)
    root = tree.root(37)
    children = [tree.fork(root, at, own) for at, own in ((21, 1), (37, 6), (1, 30))]
    tree.grow(root, 5)
    return tree, [(branch, 1) for branch in (root, *children)]


def three_levels(S: int) -> Work:
    tree = Tree(page_size=S, num_pages=400)
    root = tree.root(75)
    child = tree.fork(root, 50, 20)
    grandchild = tree.fork(child, 61, 3)
    sibling = tree.fork(child, 45, 2)  # its fork point lies in the root's tokens
    return tree, [(branch, 1) for branch in (grandchild, root, sibling, child, tree.fork(grandchild, None, 1))]


def forest(S: int) -> Work:
    tree, branches = random_tree(5, page_size=S, forests=4, moves=14)
    return tree, [(branch, 1) for branch in branches]


def prefill_and_decode(S: int) -> Work:
    tree, branches = random_tree(7, page_size=S)
    tree.grow(branches[0], 45)
    tree.grow(branches[-1], 3)
    return tree, [(branch, {0: 45, len(branches) - 1: 3}.get(i, 1)) for i, branch in enumerate(branches)]


def links(S: int) -> Work:
    """Two workers linked into the organizer, one twice; then somebody forks from the joined context."""
    tree = Tree(page_size=S, num_pages=400)
    organizer = tree.root(40)
    first, second = tree.fork(organizer, 33, 25), tree.fork(organizer, 40, 18)
    tree.grow(organizer, 9)
    tree.link(organizer, first, 36, 55)
    tree.grow(organizer, 4)
    tree.link(organizer, second, 41, 42)
    tree.link(organizer, first, 36, 55)
    tree.grow(organizer, 7)
    return tree, [(organizer, 6), (first, 1), (tree.fork(organizer, 60, 2), 2), (second, 2)]


def long_prefix(S: int) -> Work:
    tree = Tree(page_size=S, num_pages=2400 // S + 20)
    root = tree.root(1100)
    children = [tree.fork(root, at, 9) for at in (1100, 1025, 512, 1024)]
    return tree, [(branch, 1) for branch in (root, *children)]


def many_siblings(S: int) -> Work:
    tree = Tree(page_size=S, num_pages=2000 // S + 120)
    root = tree.root(300)
    return tree, [(tree.fork(root, 300 - i % 5, 1 + i % 7), 1) for i in range(40)]


def long_prefill(S: int) -> Work:
    """Two branches read 150 tokens each in one step, behind a prefix they share."""
    tree = Tree(page_size=S, num_pages=100)
    root = tree.root(60)
    return tree, [(tree.fork(root, 60, 150), 150), (root, 1), (tree.fork(root, 41, 150), 150)]


@dataclass(frozen=True)
class Case:
    """A step and the shapes and options it runs with; ``pairs`` is R, ``q_heads / kv_heads`` the group."""

    make: Callable[[int], Work]
    page_size: int = 16
    chunk: int = 512
    q_heads: int = 4
    kv_heads: int = 2
    dims: tuple[int, int] = (64, 64)
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    sinks: bool = False
    pairs: int = 0
    interleaved: bool = False
    strided: bool = False
    all_rows_see: bool = True


CASES = {
    "one token": Case(one_token),
    "one token, MQA": Case(one_token, q_heads=8, kv_heads=1, dims=(16, 16)),
    "chain, odd chunk": Case(chain, chunk=40, q_heads=2, kv_heads=2),
    "chain, pages of 1": Case(chain, page_size=1, chunk=32),
    # More partial results than are added at a time:
    "chain, chunks of 1": Case(chain, chunk=1, scale=0.5, q_heads=8, kv_heads=1),
    "chain, window": Case(chain, chunk=32, window=50),
    "chain, window 1": Case(chain, chunk=32, window=1),
    "fork mid-page": Case(fork_mid_page, strided=True),
    "fork, pages of 8, group 7": Case(fork_mid_page, page_size=8, chunk=16, q_heads=7, kv_heads=1),
    "fork, pages of 64, group 1": Case(fork_mid_page, page_size=64, chunk=64, q_heads=3, kv_heads=3, sinks=True),
    "fork, group 40": Case(fork_mid_page, q_heads=40, kv_heads=1, chunk=32, sinks=True),  # more rows than a tile has
    "fork, chunk inside a page": Case(fork_mid_page, page_size=64, chunk=24),
    "three levels": Case(three_levels, chunk=16, q_heads=8, kv_heads=2),
    "three levels, D 96 Dv 32": Case(three_levels, dims=(96, 32), strided=True),
    "three levels, D 40 Dv 72": Case(three_levels, dims=(40, 72), chunk=32),
    "three levels, D Dv 256": Case(three_levels, dims=(256, 256), q_heads=2, kv_heads=1, softcap=30.0),
    "forest": Case(forest, chunk=32, q_heads=8, kv_heads=2, dims=(128, 128)),
    "forest, all options": Case(forest, chunk=32, window=33, softcap=2.0, sinks=True, scale=0.3, pairs=32),
    "forest, links without rotary": Case(forest, chunk=64, page_size=8),
    "prefill and decode": Case(prefill_and_decode, chunk=32, q_heads=4, kv_heads=4),
    "prefill, window": Case(prefill_and_decode, chunk=32, window=20, sinks=True, q_heads=7, kv_heads=1),
    "prefill, empty rows": Case(prefill_and_decode, all_rows_see=False),
    "prefill, empty rows, sinks": Case(prefill_and_decode, all_rows_see=False, sinks=True, chunk=64),
    "links, half-split": Case(links, pairs=32),
    "links, interleaved": Case(links, pairs=32, interleaved=True, chunk=16, q_heads=8, kv_heads=1),
    "links, partial rotary": Case(links, pairs=8, dims=(80, 48), strided=True),
    "links, partial interleaved, window": Case(links, pairs=5, interleaved=True, window=25, softcap=5.0),
    "D 33 Dv 17, odd everything": Case(three_levels, dims=(33, 17), chunk=19, page_size=8, pairs=7, strided=True),
    "many siblings": Case(many_siblings, chunk=128, q_heads=8, kv_heads=2, dims=(128, 128)),
    "many siblings, group 7": Case(many_siblings, q_heads=7, kv_heads=1, dims=(80, 64), sinks=True),
    "long prefill": Case(long_prefill, chunk=128, q_heads=4, kv_heads=1, window=100),
    "long prefix": Case(long_prefix, q_heads=8, kv_heads=2, dims=(128, 128)),
}


def build(case: Case, dtype: torch.dtype, work: Work | None = None) -> tuple[dict[str, Any], Plan]:
    """Arguments of :func:`attend` with everything that no row sees poisoned, and the plan they hold."""
    tree, rows = work or case.make(case.page_size)
    plan = tree.plan(rows, chunk=case.chunk, all_rows_see=case.all_rows_see)
    slots = [
        slot
        for at, row in zip(plan.args["positions"].tolist(), plan.seen, strict=True)
        for slot, position, _ in row
        if case.window is None or 0 <= at - position < case.window
    ]
    D, Dv = case.dims
    T = len(plan.seen)
    cache = functools.partial(poisoned, slots=slots, dtype=dtype, strided=case.strided)
    q = normal((T, case.q_heads, D + 16), dtype, 3)[:, :, :D]
    cos, sin = angles(plan.args["shifts"], case.pairs) if case.pairs else (None, None)
    arguments = {
        "q": q if case.strided else q.contiguous(),
        "k_cache": cache((tree.num_pages, tree.page_size, case.kv_heads, D), seed=1),
        "v_cache": cache((tree.num_pages, tree.page_size, case.kv_heads, Dv), seed=2),
        **plan.args,
        "scale": case.scale,
        "window": case.window,
        "softcap": case.softcap,
        "sinks": normal((case.q_heads,), torch.float32, 4) if case.sinks else None,
        "cos": cos,
        "sin": sin,
        "interleaved": case.interleaved,
        "return_lse": True,
    }
    return arguments, plan


#: The tensors of a plan, which :func:`attend` takes one by one.
PLAN = ("items", "pages", "entries", "row_ptr", "positions", "shifts")


def attend(**arguments: Any) -> Any:
    """tree_attention with a plan made by hand of ``arguments``: it is checked here and now."""
    P, S = arguments["k_cache"].shape[:2]
    plan = TreePlan(**{name: arguments.pop(name) for name in PLAN}, num_pages=P, page_size=S)
    return tree_attention(**arguments, plan=plan)


def padded(arguments: dict[str, Any], rows: int = 3, items: int = 4, entries: int = 7) -> dict[str, Any]:
    """The same step in a larger capacity: rows without entries, items without tokens, numbers that nobody may read."""
    a = dict(arguments)
    used = int(a["row_ptr"][-1])
    spare = torch.tensor([0, 0, 0, 0, used, used], dtype=torch.int32)
    a["q"] = torch.cat([a["q"], torch.full((rows, *a["q"].shape[1:]), math.nan, dtype=a["q"].dtype)])
    a["items"] = torch.cat([a["items"], spare.expand(items, 6)])
    for name, count in (("pages", 5), ("entries", entries)):
        wrong = torch.tensor(IMPOSSIBLE, dtype=torch.int32).repeat(5 * count)
        a[name] = torch.cat([a[name], wrong[: count * a[name][:1].numel()].view(count, *a[name].shape[1:])])
    a["row_ptr"] = torch.cat([a["row_ptr"], a["row_ptr"][-1:].expand(rows)])
    a["positions"] = torch.cat([a["positions"], torch.zeros(rows, dtype=torch.int32)])
    a["shifts"] = torch.cat([a["shifts"], torch.zeros(2, dtype=torch.int32)])
    for name in ("cos", "sin"):
        if a[name] is not None:
            a[name] = torch.cat([a[name], torch.full_like(a[name][:1], math.nan).expand(2, -1)])
    return a
