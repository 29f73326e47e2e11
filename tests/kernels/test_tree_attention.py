"""tree_attention: every backend against the float64 reference, the reference against the definition token by token."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from asyncthink_kernels import TreePlan, append_kv, tree_attention, use_backend
from asyncthink_kernels.testing import (
    TOLERANCE,
    Tree,
    angles,
    compare,
    far_apart,
    moved,
    normal,
    random_tree,
    widened,
)
from targets import Target
from tree_cases import CASES, PLAN, Case, attend, build, chain, forest, padded


@functools.cache
def expected(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    with use_backend("reference"):
        out, lse = attend(**widened(build(CASES[name], dtype)[0]))
    return out, lse


def by_definition(a: dict[str, Any], seen: list[list[tuple[int, int, int]]]) -> tuple[Tensor, Tensor]:
    """The formula of the docstring, one row, head and token at a time, rotation in complex numbers."""
    T, Hq, D = a["q"].shape
    k, v = a["k_cache"].flatten(0, 1), a["v_cache"].flatten(0, 1)
    group = Hq // k.shape[1]
    scale = D**-0.5 if a["scale"] is None else a["scale"]
    out = torch.zeros(T, Hq, v.shape[2], dtype=torch.float64)
    lse = torch.full((T, Hq), -math.inf, dtype=torch.float64)
    for t in range(T):
        position = a["positions"][t].item()
        tokens = [each for each in seen[t] if a["window"] is None or 0 <= position - each[1] < a["window"]]
        for h in range(Hq):
            logits = [
                scale * (a["q"][t, h] @ turned(k[slot, h // group], shift, a)).item() for slot, _, shift in tokens
            ]
            if a["softcap"] is not None:
                logits = [a["softcap"] * math.tanh(each / a["softcap"]) for each in logits]
            sink = [] if a["sinks"] is None else [a["sinks"][h].item()]
            if logits or sink:
                lse[t, h] = math.log(math.fsum(math.exp(each) for each in logits + sink))
            for each, (slot, _, _) in zip(logits, tokens, strict=True):
                out[t, h] += math.exp(each - lse[t, h]) * v[slot, h // group]
    return out, lse


def turned(key: Tensor, shift: int, a: dict[str, Any]) -> Tensor:
    """The key moved by ``shift`` positions: each rotary pair as a complex number times e^(i angle)."""
    if a["cos"] is None:
        return key
    index = a["shifts"].tolist().index(shift)
    R = a["cos"].shape[1]
    first, second = (slice(0, 2 * R, 2), slice(1, 2 * R, 2)) if a["interleaved"] else (slice(0, R), slice(R, 2 * R))
    pair = torch.complex(key[first], key[second]) * torch.complex(a["cos"][index], a["sin"][index])
    key = key.clone()
    key[first], key[second] = pair.real, pair.imag
    return key


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("long", "many", "prefill, "))])
def test_reference_is_the_definition(name: str) -> None:
    arguments, plan = build(CASES[name], torch.float64)
    arguments = widened(arguments)
    with use_backend("reference"):
        out, lse = attend(**arguments)
    want_out, want_lse = by_definition(arguments, plan.seen)
    compare(out, want_out, limit=TOLERANCE[torch.float64].out)
    compare(lse, want_lse, limit=TOLERANCE[torch.float64].lse, what="lse")


@pytest.mark.parametrize("name", CASES)
def test_against_the_float64_reference(name: str, target: Target, dtype: torch.dtype) -> None:
    arguments, _ = build(CASES[name], dtype)
    out, lse = attend(**moved(arguments, target.device))
    assert out.dtype == dtype and lse.dtype == torch.float32
    want_out, want_lse = expected(name, dtype)
    tolerance = TOLERANCE[dtype]
    compare(out, want_out, limit=tolerance.out, cosine=tolerance.cosine)
    compare(lse, want_lse, limit=tolerance.lse, what="lse")


@pytest.mark.parametrize(("softcap", "scale"), [(50.0, None), (1e4, None), (50.0, 1.0), (4.0, 0.3)], ids=str)
def test_softcap_keeps_float32_where_its_argument_is_small(softcap: float, scale: float | None, target: Target) -> None:
    """Logits of a few units, as models have them: 1 - 2 / (1 + e^2x) cancels for arguments of tanh from 1e-4."""
    arguments, _ = build(Case(chain, chunk=40, softcap=softcap, scale=scale, dims=(32, 32)), torch.float32)
    out, lse = attend(**moved(arguments, target.device))
    with use_backend("reference"):
        want_out, want_lse = attend(**widened(arguments))
    compare(out, want_out, limit=TOLERANCE[torch.float32].out, cosine=TOLERANCE[torch.float32].cosine)
    compare(lse, want_lse, limit=TOLERANCE[torch.float32].lse, what="lse")


@pytest.mark.parametrize("seed", range(6))
def test_random_trees(seed: int, target: Target) -> None:
    tree, branches = random_tree(seed, page_size=(1, 8, 16, 64)[seed % 4], moves=18)
    work = [(branch, tree.random.randrange(1, min(4, branch.segments[-1].stop) + 1)) for branch in branches]
    case = Case(forest, chunk=64, pairs=(0, 16)[seed % 2], window=(None, 64)[seed // 2 % 2], strided=seed % 3 == 0)
    arguments, _ = build(case, torch.float32, (tree, work))
    out, lse = attend(**moved(arguments, target.device))
    with use_backend("reference"):
        want_out, want_lse = attend(**widened(arguments))
    tolerance = TOLERANCE[torch.float32]
    compare(out, want_out, limit=tolerance.out, cosine=tolerance.cosine)
    compare(lse, want_lse, limit=tolerance.lse, what="lse")


@pytest.mark.parametrize("name", ["three levels", "forest, all options", "prefill and decode", "links, half-split"])
def test_a_branch_is_bitwise_the_same_without_its_siblings(name: str, target: Target, dtype: torch.dtype) -> None:
    case = CASES[name]
    tree, work = case.make(case.page_size)
    arguments, _ = build(case, dtype, (tree, work))
    arguments = moved(arguments, target.device)
    out, lse = attend(**arguments)
    row = 0
    for branch, new in work:
        alone = tree.plan([(branch, new)], chunk=case.chunk).args
        cos, sin = angles(alone["shifts"], case.pairs) if case.pairs else (None, None)
        q = arguments["q"][row : row + new]
        alone_out, alone_lse = attend(**arguments | moved({**alone, "q": q, "cos": cos, "sin": sin}, target.device))
        assert torch.equal(alone_out, out[row : row + new])
        assert torch.equal(alone_lse, lse[row : row + new])
        row += new


@pytest.mark.parametrize(
    "name", ["three levels", "forest, all options", "prefill, empty rows, sinks", "links, half-split"]
)
def test_capacity_beyond_the_plan_changes_nothing(name: str, target: Target, dtype: torch.dtype) -> None:
    arguments, _ = build(CASES[name], dtype)
    out, lse = attend(**moved(arguments, target.device))
    wide = padded(arguments)
    wide_out, wide_lse = attend(**moved(wide, target.device))
    T = len(out)
    assert torch.equal(wide_out[:T], out) and torch.equal(wide_lse[:T], lse)
    assert not wide_out[T:].any()
    nothing = torch.full_like(lse[0], -math.inf) if wide["sinks"] is None else wide["sinks"].to(lse.device)
    assert torch.equal(wide_lse[T:], nothing.expand(len(wide_lse) - T, -1))


def test_bitwise_the_same_beside_many_siblings(target: Target, dtype: torch.dtype) -> None:
    case = CASES["many siblings"]
    tree, work = case.make(case.page_size)
    arguments, _ = build(case, dtype, (tree, work))
    arguments = moved(arguments, target.device)
    out = attend(**arguments)[0]
    for count in (1, 2, 3, 7, 16, 17, 33):
        few = moved(tree.plan(work[:count], chunk=case.chunk).args, target.device)
        assert torch.equal(attend(**arguments | few | {"q": arguments["q"][:count]})[0], out[:count])


def test_bitwise_the_same_on_any_number_of_threads(target: Target) -> None:
    arguments = moved(build(CASES["forest, all options"], torch.float32)[0], target.device)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(attend(**arguments)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.usefixtures("unwritten_is_nan")
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_branch_gone_wrong_harms_no_sibling(poison: float, target: Target, dtype: torch.dtype) -> None:
    case = replace(CASES["prefill and decode"], q_heads=7, kv_heads=1)  # entries lie across the edges of tiles
    tree, work = case.make(case.page_size)
    arguments, plan = build(case, dtype, (tree, work))
    arguments = moved(arguments, target.device)
    out, lse = attend(**arguments)
    victim = plan.seen[10][-1][0]  # the newest token of a row in the middle of a prefill
    for name in ("k_cache", "v_cache"):
        arguments[name][victim // tree.page_size, victim % tree.page_size] = poison
    again, again_lse = attend(**arguments)
    untouched = torch.tensor([all(slot != victim for slot, _, _ in row) for row in plan.seen])
    assert 10 <= untouched.sum() < len(untouched)
    assert torch.equal(again[untouched], out[untouched]) and torch.equal(again_lse[untouched], lse[untouched])
    assert not again[~untouched].isfinite().any()


@pytest.mark.usefixtures("unwritten_is_nan")
def test_a_row_split_over_two_tiles_beside_one_gone_wrong(target: Target) -> None:
    """Seven heads and tiles of 16: two heads of the third row are in the tile of the first two."""
    tree = Tree()
    root = tree.root(40)
    work = [(tree.fork(root, at, 1), 1) for at in (40, 40, 5)]
    arguments, plan = build(Case(chain, q_heads=7, kv_heads=1), torch.bfloat16, (tree, work))
    arguments = moved(arguments, target.device)
    out, lse = attend(**arguments)
    victim = plan.seen[0][39][0]
    arguments["v_cache"][victim // tree.page_size, victim % tree.page_size] = math.nan
    again, again_lse = attend(**arguments)
    assert again[:2].isnan().all()
    assert torch.equal(again[2], out[2]) and torch.equal(again_lse[2], lse[2])


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["pages", "slots", "heads"])
def test_offsets_past_32_bits(axis: int, target: Target) -> None:
    tree = Tree(page_size=3, num_pages=9)
    root = tree.root(19)
    case = Case(chain, page_size=3, chunk=6, q_heads=6, kv_heads=3, dims=(16, 24))
    arguments, _ = build(case, torch.float16, (tree, [(tree.fork(root, 11, 2), 2), (root, 1)]))
    arguments = moved(arguments, target.device)
    out, lse = attend(**arguments)
    for name in ("k_cache", "v_cache", *(["q"] if axis == 0 else [])):
        near = arguments[name]
        arguments[name] = far_apart(near.shape, near.dtype, axis, target.device)
        arguments[name].copy_(near)
    far_out, far_lse = attend(**arguments)
    assert torch.equal(far_out, out) and torch.equal(far_lse, lse)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_one_key_gone_wrong_shows(softcap: float | None, target: Target, dtype: torch.dtype) -> None:
    """Its value is sound: only the logit is not a number. Both rows see other chunks, too."""
    tree = Tree()
    root = tree.root(50)
    case = Case(chain, chunk=16, softcap=softcap)
    arguments, plan = build(case, dtype, (tree, [(tree.fork(root, 30, 2), 1), (root, 1)]))
    page, offset = divmod(plan.seen[0][3][0], tree.page_size)
    arguments["k_cache"][page, offset] = math.nan
    out, lse = attend(**moved(arguments, target.device))
    assert out.isnan().all() and lse.isnan().all()


def test_lse_is_returned_on_demand_only(target: Target) -> None:
    arguments = moved(build(CASES["fork mid-page"], torch.float32)[0], target.device)
    out, _ = attend(**arguments)
    assert torch.equal(attend(**arguments | {"return_lse": False}), out)


def test_no_rows(target: Target) -> None:
    empty = {"q": torch.empty(0, 4, 64), "items": torch.empty(0, 6, dtype=torch.int32)}
    empty |= {"entries": torch.empty(0, 5, dtype=torch.int32), "row_ptr": torch.zeros(1, dtype=torch.int32)}
    empty |= {name: torch.empty(0, dtype=torch.int32) for name in ("pages", "positions")}
    arguments = build(CASES["fork mid-page"], torch.float32)[0] | empty
    out, lse = attend(**moved(arguments, target.device))
    assert out.shape == (0, 4, 64) and lse.shape == (0, 4)


def test_opcheck(device: str) -> None:
    arguments, _ = build(CASES["links, half-split"], torch.float32)
    arguments = moved({**arguments, "sinks": torch.zeros(4), "window": 30}, device)
    del arguments["return_lse"]
    arguments |= {name: arguments[name].nan_to_num() for name in ("k_cache", "v_cache")}
    torch.library.opcheck(torch.ops.asyncthink.tree_attention.default, tuple(arguments.values()))


def test_compiles_into_one_graph(device: str) -> None:
    tree = Tree()
    branch = tree.root(20)
    arguments, plan = build(Case(chain), torch.float32, (tree, [(branch, 1)]))
    arguments = moved(arguments, device)
    del arguments["return_lse"]
    sizes = {"num_pages": tree.num_pages, "page_size": tree.page_size}
    arguments["plan"] = TreePlan(**{name: arguments.pop(name) for name in PLAN}, **sizes)
    slots = torch.tensor([plan.seen[0][-1][0]], device=device)
    new = moved({"k": normal((1, 2, 64), torch.float32, 8), "v": normal((1, 2, 64), torch.float32, 9)}, device)

    def layer(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        append_kv(new["k"], new["v"], k_cache, v_cache, slots)
        return tree_attention(**arguments | {"q": 2 * q, "k_cache": k_cache, "v_cache": v_cache}) + 1

    def run(function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        k_cache, v_cache = arguments["k_cache"].clone(), arguments["v_cache"].clone()
        return function(arguments["q"], k_cache, v_cache), k_cache.nan_to_num()

    torch.compiler.reset()
    compiled = run(torch.compile(layer, fullgraph=True, backend="aot_eager"))
    plain = run(layer)
    assert torch.equal(compiled[0], plain[0]) and torch.equal(compiled[1], plain[1])
