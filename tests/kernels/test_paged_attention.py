"""paged_attention: every backend against the float64 reference, the reference against torch's own attention."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from asyncthink_kernels import paged_attention, use_backend
from asyncthink_kernels.testing import IMPOSSIBLE, TOLERANCE, compare, far_apart, moved, normal, poisoned, widened
from targets import Target
from tree_cases import attend

LENGTHS = (1, 16, 17, 0, 130, 63)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one row": {"lengths": (33,)},
    "nothing to see": {"lengths": (0, 0)},
    "pages of 1, MQA": {"page_size": 1, "q_heads": 8, "kv_heads": 1},
    "pages of 8, group 7": {"page_size": 8, "q_heads": 7, "kv_heads": 1, "chunk": 24},
    "pages of 64, group 1": {"page_size": 64, "q_heads": 3, "kv_heads": 3, "strided": True},
    "group 40": {"lengths": (33, 0, 16), "q_heads": 40, "kv_heads": 1, "sinks": True},  # more rows than a tile has
    "group 40, split": {"lengths": (33, 0, 16), "q_heads": 40, "kv_heads": 1, "chunk": 16},
    "odd chunk": {"chunk": 37},
    # More partial results than are added at a time:
    "chunks of 1": {"chunk": 1, "scale": 0.5, "lengths": (130,), "q_heads": 8, "kv_heads": 1},
    "D 96 Dv 32": {"dims": (96, 32), "chunk": 64, "strided": True},
    "D 40 Dv 72": {"dims": (40, 72)},
    "D Dv 256": {"dims": (256, 256)},
    "window": {"window": 20, "chunk": 16},
    "window 1": {"window": 1},
    "softcap": {"softcap": 1.5, "scale": 0.4},
    "sinks": {"sinks": True, "chunk": 32},
    "all options": {"window": 70, "softcap": 3.0, "scale": 0.2, "sinks": True, "chunk": 48, "strided": True},
    "long": {"lengths": (1500, 40, 1025), "q_heads": 8, "dims": (128, 128)},
}


def build(
    dtype: torch.dtype,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    page_size: int = 16,
    q_heads: int = 4,
    kv_heads: int = 2,
    dims: tuple[int, int] = (64, 64),
    sinks: bool = False,
    strided: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Pages in no order; NaN in every slot nobody sees, impossible ids in every table place beyond a length."""
    D, Dv = dims
    window = options.get("window") or max(lengths)
    B, blocks = len(lengths), [-(-length // page_size) for length in lengths]
    M = max(blocks) + 2
    num_pages = sum(blocks) + 3
    free = iter(torch.randperm(num_pages, generator=torch.Generator().manual_seed(1)).tolist())
    tables = torch.tensor(IMPOSSIBLE, dtype=torch.int32).repeat(B, M)[:, :M].contiguous()
    for row, count in enumerate(blocks):
        tables[row, :count] = torch.tensor([next(free) for _ in range(count)], dtype=torch.int32)
    slots = [
        tables[row, token // page_size].item() * page_size + token % page_size
        for row, length in enumerate(lengths)
        for token in range(max(0, length - window), length)
    ]
    shape = (num_pages, page_size, kv_heads)
    return {
        "q": normal((B, q_heads, D + 16), dtype, 2)[:, :, :D],
        "k_cache": poisoned((*shape, D), slots, dtype, 3, strided=strided),
        "v_cache": poisoned((*shape, Dv), slots, dtype, 4, strided=strided),
        "block_tables": tables,
        "seq_lens": torch.tensor(lengths, dtype=torch.int32),
        "scale": None,
        "window": None,
        "softcap": None,
        "sinks": normal((q_heads,), torch.float32, 5) if sinks else None,
        "chunk": 512,
        "return_lse": True,
    } | options


@functools.cache
def expected(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    with use_backend("reference"):
        out, lse = paged_attention(**widened(build(dtype, **CASES[name])))
    return out, lse


@pytest.mark.parametrize("name", CASES)
def test_against_the_float64_reference(name: str, target: Target, dtype: torch.dtype) -> None:
    out, lse = paged_attention(**moved(build(dtype, **CASES[name]), target.device))
    assert out.dtype == dtype and lse.dtype == torch.float32
    want_out, want_lse = expected(name, dtype)
    compare(out, want_out, limit=TOLERANCE[dtype].out, cosine=TOLERANCE[dtype].cosine)
    compare(lse, want_lse, limit=TOLERANCE[dtype].lse, what="lse")


@pytest.mark.parametrize("window", [None, 20])
def test_reference_is_torch_attention(window: int | None) -> None:
    arguments = widened(build(torch.float64, window=window, scale=0.3))
    with use_backend("reference"):
        out, _ = paged_attention(**arguments)
    for row, length in enumerate(LENGTHS):
        begin = 0 if window is None else max(0, length - window)
        token = torch.arange(begin, length)
        page, place = arguments["block_tables"][row, token // 16], token % 16
        k, v = (arguments[name][page, place].transpose(0, 1) for name in ("k_cache", "v_cache"))
        want = torch.nn.functional.scaled_dot_product_attention(
            arguments["q"][row][:, None], k.repeat_interleave(2, 0), v.repeat_interleave(2, 0), scale=0.3
        )
        compare(out[row], want[:, 0] if length else torch.zeros(4, 64), limit=TOLERANCE[torch.float64].out)


def test_is_tree_attention_of_one_branch_a_row(target: Target, dtype: torch.dtype) -> None:
    arguments = moved(build(dtype, **CASES["all options"] | {"chunk": 512}), target.device)
    tables, lengths = arguments.pop("block_tables"), arguments.pop("seq_lens").tolist()
    B, M = tables.shape
    plan = {
        "items": [[row * M, 0, length, 0, row, row + 1] for row, length in enumerate(lengths)],
        "pages": tables.flatten().tolist(),
        "entries": [[row, 0, length, 0, row] for row, length in enumerate(lengths)],
        "row_ptr": list(range(B + 1)),
        "positions": [length - 1 for length in lengths],
        "shifts": [0],
    }
    arguments |= {name: torch.tensor(value, dtype=torch.int32, device=target.device) for name, value in plan.items()}
    want = expected("all options", dtype)
    del arguments["chunk"]
    for result, reference in zip(attend(**arguments), want, strict=True):
        compare(result, reference, limit=TOLERANCE[dtype].out)


def test_a_row_is_bitwise_the_same_alone(target: Target, dtype: torch.dtype) -> None:
    arguments = moved(build(dtype, **CASES["all options"]), target.device)
    out, lse = paged_attention(**arguments)
    for row in range(len(LENGTHS)):
        alone = {name: arguments[name][row : row + 1] for name in ("q", "block_tables", "seq_lens")}
        alone_out, alone_lse = paged_attention(**arguments | alone)
        assert torch.equal(alone_out[0], out[row]) and torch.equal(alone_lse[0], lse[row])


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["pages", "slots", "heads"])
def test_offsets_past_32_bits(axis: int, target: Target) -> None:
    shape = {"lengths": (7, 4, 2), "page_size": 3, "q_heads": 6, "kv_heads": 3, "dims": (16, 24), "chunk": 5}
    arguments = moved(build(torch.float16, **shape), target.device)
    out, lse = paged_attention(**arguments)
    for name in ("k_cache", "v_cache", *(["q"] if axis == 0 else [])):
        near = arguments[name]
        arguments[name] = far_apart(near.shape, near.dtype, axis, target.device)
        arguments[name].copy_(near)
    far_out, far_lse = paged_attention(**arguments)
    assert torch.equal(far_out, out) and torch.equal(far_lse, lse)


def test_a_sink_of_minus_infinity_is_none(target: Target) -> None:
    arguments = moved(build(torch.float32, chunk=16), target.device)
    out, lse = paged_attention(**arguments)
    sinks = torch.full((arguments["q"].shape[1],), -math.inf, device=target.device)
    with_out, with_lse = paged_attention(**arguments | {"sinks": sinks})
    compare(with_out, out, limit=TOLERANCE[torch.float32].out)
    compare(with_lse, lse, limit=TOLERANCE[torch.float32].lse, what="lse")


@pytest.mark.parametrize("chunk", [16, 512])
def test_a_query_gone_wrong_shows(chunk: int, target: Target) -> None:
    """Output and LSE: of a state with LSE -inf, merge_states would not look at the output."""
    arguments = moved(build(torch.float32, chunk=chunk), target.device)
    arguments["q"][0, 1] = arguments["q"][4, 2] = math.nan
    out, lse = paged_attention(**arguments)
    for row, head in ((0, 1), (4, 2)):
        assert out[row, head].isnan().all() and lse[row, head].isnan()


def test_no_rows(target: Target) -> None:
    arguments = moved(build(torch.float32), target.device)
    arguments |= {name: arguments[name][:0] for name in ("q", "block_tables", "seq_lens")}
    out, lse = paged_attention(**arguments)
    assert out.shape == (0, 4, 64) and lse.shape == (0, 4)


METADATA = {
    "q of two dimensions": ("q", lambda a: a["q"][0]),
    "q of no heads": ("q", lambda a: a["q"][:, :0]),
    "q heads no multiple": ("q", lambda a: a["q"][:, :3]),
    "q of integers": ("q", lambda a: a["q"].int()),
    "q with a stride": ("q", lambda a: a["q"].repeat(1, 1, 2)[:, :, ::2]),
    "q that requires grad": ("q", lambda a: a["q"].clone().requires_grad_()),
    "k_cache of another dtype": ("k_cache", lambda a: a["k_cache"].half()),
    "k_cache of another head_dim": ("k_cache", lambda a: a["k_cache"][..., :32]),
    "v_cache with fewer pages": ("v_cache", lambda a: a["v_cache"][1:]),
    "v_cache elsewhere": ("v_cache", lambda a: a["v_cache"].to("meta")),
    "block_tables of int64": ("block_tables", lambda a: a["block_tables"].long()),
    "block_tables with a stride": ("block_tables", lambda a: a["block_tables"].t().contiguous().t()),
    "block_tables of fewer rows": ("block_tables", lambda a: a["block_tables"][1:]),
    "seq_lens of fewer rows": ("seq_lens", lambda a: a["seq_lens"][1:]),
    "seq_lens of floats": ("seq_lens", lambda a: a["seq_lens"].float()),
    "sinks of bfloat16": ("sinks", lambda a: torch.zeros(4, dtype=torch.bfloat16)),
    "window of 0": ("window", lambda a: 0),
    "softcap of inf": ("softcap", lambda a: math.inf),
    "scale of inf": ("scale", lambda a: math.inf),
    "chunk of 0": ("chunk", lambda a: 0),
}


@pytest.mark.parametrize("name", METADATA)
def test_bad_metadata_names_the_tensor(name: str) -> None:
    culprit, change = METADATA[name]
    arguments = build(torch.float32)
    with pytest.raises(ValueError, match=rf"paged_attention: .*\b{culprit}\b.*, got "):
        paged_attention(**arguments | {name.split()[0]: change(arguments)})


def test_sizes_of_zero_are_refused() -> None:
    a = build(torch.float32)
    with pytest.raises(ValueError, match="paged_attention: k_cache must have S >= 1 and D >= 1, got S=0 and D=64"):
        paged_attention(**a | {"k_cache": a["k_cache"][:, :0], "v_cache": a["v_cache"][:, :0]})
    with pytest.raises(ValueError, match="paged_attention: k_cache must have S >= 1 and D >= 1, got S=16 and D=0"):
        paged_attention(**a | {"q": a["q"][..., :0], "k_cache": a["k_cache"][..., :0]})


@pytest.mark.parametrize(
    ("tensor", "index", "value"),
    [
        ("seq_lens", 0, -1),
        ("seq_lens", 1, 177),
        ("seq_lens", 1, 2**31 - 1),
        ("block_tables", (4, 8), -1),
        ("block_tables", (4, 0), 20),
        ("block_tables", (0, 0), 2**31 - 1),
    ],
)
def test_bad_values_name_the_tensor(tensor: str, index: Any, value: int, target: Target) -> None:
    arguments = build(torch.float32)
    arguments[tensor][index] = value
    with pytest.raises(ValueError, match=rf"\b{tensor}\b.* got .*{value}"):
        paged_attention(**moved(arguments, target.device))


def test_opcheck(device: str) -> None:
    arguments = moved(build(torch.float32, sinks=True, window=30), device)
    del arguments["return_lse"]
    arguments |= {name: arguments[name].nan_to_num() for name in ("k_cache", "v_cache")}
    torch.library.opcheck(torch.ops.asyncthink.paged_attention.default, tuple(arguments.values()))
