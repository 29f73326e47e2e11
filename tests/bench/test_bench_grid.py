"""The grid of trees where there is no GPU: its arithmetic, and who takes part in it."""

from __future__ import annotations

import dataclasses
import doctest
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncthink_kernels import tree_attention, tuning, use_backend
from asyncthink_kernels.testing import widened

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))

import bench_tree_grid  # noqa: E402
import clock  # noqa: E402
import contest  # noqa: E402
from grid import cells, flashinfer_peers, ours, peers  # noqa: E402
from grid.contestant import Contestant  # noqa: E402
from grid.problem import Problem, equal_runs  # noqa: E402

#: A prefix, three levels, a forest, no sharing, leaves of unequal length, a node above the leaves that ends mid-page.
TREES = ("1,3|64,20", "1,2,4|32,16,7", "2,4|32,16", "3|21", "1,4|32,~9", "2,4|33,5")


def small(tree: str, heads: int = 4, kv_heads: int = 2, dtype: torch.dtype = torch.float32) -> Problem:
    return Problem(cells.Cell(cells.parse_tree(tree), heads, kv_heads, head_dim=16), "cpu", dtype)


# The grid


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,10", "nodes,nodes"),
        ("1,10|4000", "as many"),
        ("1,0|4,4", "at least 1"),
        ("2,3|4,4", "multiple"),
        ("1,2|~4,4", "nodes,nodes"),
        ("1,2|4,-4", "nodes,nodes"),
    ],
)
def test_a_text_that_is_no_tree(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cells.parse_tree(text)


@pytest.mark.parametrize("name", ["32 1|4", "32/0 1|4", "5/2 1|4", "a/b 1|4", "32/8"])
def test_a_text_that_is_no_cell(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        cells.parse_cell(name)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=3), st.booleans())
def test_a_tree_counts_as_its_sets_of_tokens_do(levels: list[tuple[int, int]], ragged: bool) -> None:
    """Brute force: every token by name, every leaf's ancestors by walking up."""
    nodes = [math.prod(factor for factor, _ in levels[: depth + 1]) for depth in range(len(levels))]
    tokens = [count for _, count in levels]
    text = f"{','.join(map(str, nodes))}|{','.join(map(str, tokens[:-1]))}{',' * (len(tokens) > 1)}"
    tree = cells.parse_tree(f"{text}{'~' * ragged}{tokens[-1]}")
    assert ragged or tree.lengths == tuple((count,) * n for n, count in zip(nodes, tokens, strict=True))
    assert all(1 <= length < 2 * tokens[-1] + 1 for length in tree.lengths[-1])
    seen: list[set[tuple[int, int, int]]] = []
    for leaf in range(nodes[-1]):
        mine, node = set[tuple[int, int, int]](), leaf
        for depth in reversed(range(len(levels))):
            mine |= {(depth, node, token) for token in range(tree.lengths[depth][node])}
            node //= levels[depth][0]
        seen.append(mine)
    assert tree.contexts == tuple(map(len, seen))
    assert tree.unique_tokens == len(set.union(*seen))
    cell = cells.Cell(tree, heads=6, kv_heads=2, head_dim=8)
    assert cell.operations == sum(2 * 2 * 6 * 8 for mine in seen for _ in mine)
    assert cell.bytes(2) == 2 * (sum(2 * 2 * 8 for _ in set.union(*seen)) + 2 * len(seen) * 6 * 8)


@pytest.mark.parametrize("module", [cells, clock], ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0 < doctest.testmod(module).attempted


def test_the_grid_is_what_was_asked_for() -> None:
    names, all_names = cells.quick(), cells.everything()
    assert len(set(names)) == len(names) and set(names) <= set(all_names)
    found = [cells.parse_cell(name) for name in names]
    heads = {(32, 8), (64, 8), (16, 1), (8, 1), (32, 32)}
    for tree in ("1,10|4000,400", "1,256|256,32", "1,16,64|1024,256,32", "1,4,16,512|1024,256,128,32",
                 "4,16,256|512,32,128", "256|1024"):  # fmt: skip
        assert {(c.heads, c.kv_heads) for c in found if c.tree.text == tree} == heads
    behind_prefix = [cell.tree for cell in found if len(cell.tree.nodes) == 2 and cell.tree.nodes[0] == 1]
    assert {512, 32768} <= {tree.tokens[0] for tree in behind_prefix}
    assert {1, 64} <= {tree.nodes[1] for tree in behind_prefix}
    assert {32, 128, 512, 2048} <= {tree.tokens[1] for tree in behind_prefix}
    assert any(tree.ragged for tree in behind_prefix)
    assert len(all_names) == 5 * (6 + 7 * 7 * 5)
    assert [cell.name for cell in cells.chosen("^8/1 256")] == ["8/1 256|1024"]
    with pytest.raises(ValueError, match="finds a cell"):
        cells.chosen("no such cell")


# The problem


@pytest.mark.parametrize("tree", TREES)
def test_a_problem_is_its_tree_on_shared_pages(tree: str) -> None:
    x = small(tree)
    slots = [x.cache.slots(leaf) for leaf in x.leaves]
    assert [each.tolist() for each in x.contexts] == [each.tolist() for each in slots]
    assert tuple(map(len, slots)) == x.cell.tree.contexts
    assert len({slot for each in slots for slot in each.tolist()}) == x.cell.tree.unique_tokens
    assert x.plan.slots.tolist() == [each[-1].item() for each in slots]
    assert x.bytes == x.cell.bytes(4) == 4 * 16 * (2 * 2 * x.cell.tree.unique_tokens + 2 * 4 * len(slots))


def test_leaves_lie_interleaved_as_decoding_leaves_them() -> None:
    first, second = (node.pages(16).tolist() for node in small("1,2|32,48").levels[1])
    assert first != sorted({*range(first[0], first[0] + len(first))}) and set(first).isdisjoint(second)


@pytest.mark.parametrize("tree", TREES)
def test_expected_is_the_reference(tree: str) -> None:
    x = small(tree)
    with use_backend("reference"):
        arguments = widened({"q": x.q, "k_cache": x.k_cache, "v_cache": x.v_cache})
        out = tree_attention(**arguments, plan=x.plan)
    torch.testing.assert_close(x.expected, out, rtol=1e-12, atol=1e-12)


def test_planning_is_timed_by_kind_and_leaves_a_sound_cache() -> None:
    x = small("1,2|32,20")
    found = x.planning()
    assert set(found) == {"fresh", "in place", "to the device"} and found["fresh"].median > 0
    assert found["in place"].repeats <= 24
    x.cache.check()


@pytest.mark.parametrize(("lengths", "most"), [([5], 1), ([3, 5, 3, 3, 5], 6), ([2] * 7, 100), ([4, 1, 4], 4)])
def test_equal_runs(lengths: list[int], most: int) -> None:
    groups = equal_runs(lengths, most)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len({lengths[row] for row in group}) == 1
        assert len(group) == 1 or sum(lengths[row] for row in group) <= most


# Who takes part


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("who", [ours.Tree, ours.Paged, peers.Sdpa, peers.Flex], ids=lambda who: who.name)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_everybody_is_right(who: type[Contestant], tree: str, kind: str) -> None:
    x = small(tree, dtype=getattr(torch, kind))
    if who is ours.Paged and tree == "2,4|33,5":
        assert "ends within a page" in str(who.why_not(x))
        return
    assert who.why_not(x) is None
    made = who(x)
    made.plan()
    assert made.run().shape == x.q.shape
    assert made.check() < 1e-2


@pytest.mark.parametrize("wrong", ["zeros", "nan", "one page unseen"])
def test_a_wrong_result_is_refused(wrong: str) -> None:
    x = small("1,3|64,20")
    made = ours.Tree(x)
    out = made.run()
    if wrong == "one page unseen":
        x.plan.entries[0, 1] = 16
        out = made.run()
    else:
        out[-1, -1] = 0 if wrong == "zeros" else math.nan
    with pytest.raises(ValueError, match="wrong result"):
        made.verify(out)


def test_tiles_are_watched_and_forced() -> None:
    before = tuning.attention_tile
    with ours.tiles() as seen, ours.tiles(forced=1):
        tile = tuning.attention_tile("sm_90", 2, 128, 128, rows=1000)
    assert tile == before("sm_90", 2, 128, 128, 1) != before("sm_90", 2, 128, 128, 1000)
    assert seen == [f"tile {tile.rows}x{tile.tokens}"]
    assert tuning.attention_tile is before


class _Tables:
    """What a FlashInfer wrapper computes, from what its plan is told: page tables, and rows of each sequence."""

    def __init__(self, *_: Any, use_tensor_cores: bool = False, backend: str = "auto") -> None:
        self._backend = backend

    def plan(self, rows: Tensor, indptr: Tensor, ids: Tensor, last: Tensor, *, page_size: int, **_: Any) -> None:
        for table in (rows, indptr, ids, last):
            assert table.dtype == torch.int32
        self.rows, self.indptr, self.ids = rows, indptr, ids
        self.lengths = (indptr[1:] - indptr[:-1] - 1) * page_size + last

    def run(self, q: Tensor, caches: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        H, D = caches[0].shape[2:]
        out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.zeros(q.shape[:2], dtype=torch.float64)
        for number, length in enumerate(self.lengths.tolist()):
            pages = self.ids[self.indptr[number] : self.indptr[number + 1]].long()
            k, v = (cache[pages].reshape(-1, H, D)[:length].double() for cache in caches)
            for row in range(int(self.rows[number]), int(self.rows[number + 1])):
                logits = torch.einsum("hgd,nhd->hgn", q[row].double().view(H, -1, D), k) * D**-0.5
                out[row] = torch.einsum("hgn,nhd->hgd", logits.softmax(-1), v).reshape(-1, D)
                lse[row] = logits.logsumexp(-1).flatten()
        return out, lse


class _Decode(_Tables):
    def plan(self, indptr: Tensor, ids: Tensor, last: Tensor, **sizes: Any) -> None:  # type: ignore[override]
        super().plan(torch.arange(len(last) + 1, dtype=torch.int32), indptr, ids, last, **sizes)

    def run(self, *arguments: Any) -> Tensor:  # type: ignore[override]
        return super().run(*arguments)[0]


class _Attention(_Tables):
    def plan(self, rows: Tensor, indptr: Tensor, ids: Tensor, lengths: Tensor, *, page_size: int, **_: Any) -> None:
        super().plan(rows, indptr, ids, (lengths - 1) % page_size + 1, page_size=page_size)
        assert self.lengths.tolist() == lengths.tolist()


class _Cascade:
    def __init__(self, levels: int, *arguments: Any) -> None:
        self._batch_prefill_wrappers = [_Tables(*arguments) for _ in range(levels)]

    def plan(self, *tables: list[Tensor], **sizes: Any) -> None:
        for wrapper, *mine in zip(self._batch_prefill_wrappers, *tables, strict=True):
            wrapper.plan(*mine, **sizes)

    def run(self, *arguments: Any) -> Tensor:
        outs, lses = zip(*(wrapper.run(*arguments) for wrapper in self._batch_prefill_wrappers), strict=True)
        return (torch.stack(lses).softmax(0)[..., None] * torch.stack(outs)).sum(0)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("variant", ["BatchDecode", "BatchAttention", "Cascade", "CascadeFa2"])
def test_flashinfer_gets_tables_that_say_the_same(variant: str, tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that computes from the tables alone, as FlashInfer documents them."""
    stand_in = SimpleNamespace(
        BatchDecodeWithPagedKVCacheWrapper=_Decode,
        BatchAttention=_Attention,
        MultiLevelCascadeAttentionWrapper=_Cascade,
        BatchPrefillWithPagedKVCacheWrapper=_Tables,
    )
    monkeypatch.setattr(flashinfer_peers, "library", lambda: stand_in)
    monkeypatch.setattr(flashinfer_peers, "WORKSPACE", 1)
    who, x = getattr(flashinfer_peers, variant), small(tree)
    if not x.whole_pages:
        assert "ends within a page" in who.why_not(x)
        return
    made = who(x)
    made.plan()
    assert made.check() < 1e-6
    assert made.detail == {"Cascade": "auto", "CascadeFa2": "fa2"}.get(variant, "")


def test_a_cell_is_checked_timed_and_has_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "ROUNDS", (2, 2))
    x, failures = small("1,3|64,20", dtype=torch.bfloat16), contest.Failures(tolerant=True)
    monkeypatch.setattr(peers.Flex, "plan", lambda self: 1 / 0)
    found, notes = bench_tree_grid.enter(x, ["sdpa", "flex"], failures)
    assert list(found) == ["tree_attention", "paged_attention", "torch SDPA (gathered)"]
    assert "FlashInfer BatchAttention did not run: not asked for" in notes
    assert "tree_attention, CUDA C++ did not run: only a GPU has them" in notes
    assert failures == {"FlexAttention (packed unique K/V)": "ZeroDivisionError: division by zero"}
    cell = bench_tree_grid.grid_cell(x, found)
    contest.check(cell, failures)
    times, _ = contest.timed(cell, clock.CpuClock(), 0.0, failures)
    row = contest.row(cell, times, contest.Limits(1e9, 1e9, math.inf, math.inf))
    row |= bench_tree_grid.apart(x, found)
    assert row["shape"] == "4/2 1,3\\|64,20" and row["x torch SDPA (gathered)"] > 0 < row["paged_attention us"]
    assert {"MB", "chunk", "plan fresh us", "plan in place us", "plan torch SDPA (gathered) us"} <= row.keys()


def test_a_wrong_peer_is_named_and_our_own_fault_is_raised() -> None:
    x, failures = small("1,3|64,20"), contest.Failures(tolerant=True)
    found, _ = bench_tree_grid.enter(x, ["sdpa"], failures)
    cell = bench_tree_grid.grid_cell(x, found)
    zeros = torch.zeros_like(x.q)
    contest.check(dataclasses.replace(cell, peers={"wrong": lambda part: zeros}), failures)
    assert failures == {"wrong": "ValueError: wrong result: relative error 1, allowed 0.0001"}
    with pytest.raises(ValueError, match="wrong result"):
        contest.check(dataclasses.replace(cell, ours=lambda part: zeros), failures)
    with pytest.raises(ValueError, match="wrong result"):
        contest.check(dataclasses.replace(cell, peers={"wrong": lambda part: zeros}), contest.Failures(tolerant=False))


def test_flashinfer_says_why_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flashinfer_peers.Cascade.missing("cpu") == "runs on CUDA only"
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    flashinfer_peers.library.cache_clear()
    assert "not importable: ModuleNotFoundError" in str(flashinfer_peers.Cascade.missing("cuda"))
    flashinfer_peers.library.cache_clear()
