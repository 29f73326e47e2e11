"""flash-attn where it serves: steps of new branches. A stand-in with its signature takes its place here."""

from __future__ import annotations

import re
import runpy
import sys
import types
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import asyncthink
import asyncthink_kernels
from asyncthink.model.decoder import Decoder
from asyncthink_kernels import dispatch, explain, tree_attention, use_backend
from asyncthink_kernels.backends import flash
from asyncthink_kernels.cache import KVStorage, LayerShape, TreeCache
from asyncthink_kernels.testing import TOLERANCE, compare, normal
from tiny_models import WINDOW, feed, tiny, tokens

CALLS: list[dict[str, Any]] = []


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """flash-attn 2.8's, from its documentation: a query sees keys [i - window_size[0], i + window_size[1]]."""
    CALLS.append(dict(locals()))
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and causal
    out = torch.empty(*q.shape[:2], v.shape[2], dtype=q.dtype)
    for begin, end in pairwise(cu_seqlens_q.tolist()):
        assert 0 < end - begin <= min(max_seqlen_q, max_seqlen_k)
        ours, keys, values = (each[begin:end].double().transpose(0, 1) for each in (q, k, v))
        group = ours.shape[0] // keys.shape[0]
        logits = ours @ keys.repeat_interleave(group, 0).mT * (softmax_scale or q.shape[2] ** -0.5)
        if softcap > 0:
            logits = softcap * (logits / softcap).tanh()
        back = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
        hidden = back < 0 if window_size[0] < 0 else (back < 0) | (back > window_size[0])
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        out[begin:end] = (weights @ values.repeat_interleave(group, 0)).transpose(0, 1).to(q.dtype)
    return out


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """flash-attn as if it were installed, and served the CPU."""
    module = types.ModuleType("flash_attn")
    module.__version__, module.flash_attn_varlen_func = "2.8.3", flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(flash, "_device_reason", lambda device: None)
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    flash._load.cache_clear()
    CALLS.clear()
    yield module
    flash._load.cache_clear()


@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_is_asked_for_what_tree_attention_computes(
    standin: types.ModuleType, window: int | None, softcap: float | None, scale: float | None
) -> None:
    counts, options = (9, 1, 30), {"window": window, "softcap": softcap, "scale": scale}
    cache = TreeCache(num_pages=40, page_size=4, chunk=8)
    plan = cache.plan([(cache.root(), count) for count in counts])
    storage = KVStorage([LayerShape(2, 16, 16)], 40, 4, torch.bfloat16)
    storage.poison()
    q = normal((40, 6, 16), torch.bfloat16, 1)
    k, v = normal((40, 2, 16), torch.bfloat16, 2), normal((40, 2, 16), torch.bfloat16, 3)
    asyncthink_kernels.append_kv(k, v, storage.k(0), storage.v(0), plan.slots)
    expected = tree_attention(q, storage.k(0), storage.v(0), plan, **options)
    assert plan.fresh == counts
    prefill = dispatch.find_prefill(q, v, None)
    assert prefill is flash.prefill
    got = prefill(q, k, v, torch.tensor([0, 9, 10, 40], dtype=torch.int32), 30, **options)
    compare(got, expected.double(), limit=TOLERANCE[torch.bfloat16].out, cosine=TOLERANCE[torch.bfloat16].cosine)


def test_a_plan_says_whether_all_its_branches_are_new() -> None:
    cache = TreeCache(num_pages=60, page_size=4, chunk=8)
    one, two = cache.root(), cache.root()
    plan = cache.plan([(one, 5), (two, 1)])
    assert plan.fresh == (5, 1)
    assert plan.to("meta").fresh == (5, 1)
    assert cache.plan([(one, 4)]).fresh is None  # the second part of its prompt
    assert cache.plan([(cache.root(), 3), (two, 2)]).fresh is None  # beside one that is not
    assert cache.plan([(cache.fork(one), 3)]).fresh is None
    assert cache.plan([(cache.fork(one, at=0), 3)]).fresh == (3,)
    linked = cache.root()
    cache.join(linked, one, 2, 5, "link")
    assert cache.plan([(linked, 3)]).fresh is None
    copied = cache.root()
    cache.join(copied, one, 2, 5, "append")
    assert cache.plan([(copied, 3)]).fresh is None
    again = cache.root()
    cache.plan([(again, 3)])
    cache.truncate(again, 0)
    assert cache.plan([(again, 2)]).fresh == (2,)


def test_a_plan_that_may_be_advanced_in_place_is_never_one_of_new_branches() -> None:
    cache = TreeCache(num_pages=60, page_size=4, chunk=8)
    work = [(cache.root(), 1), (cache.root(), 1)]
    plan = cache.plan(work)
    assert plan.fresh is None
    assert cache.plan(work) is plan and plan.fresh is None


def decoded(family: str) -> tuple[list[Tensor], Decoder]:
    """Two prompts in one step, a decode step, a fork's prefill, a new branch beside a decoding one: all logits."""
    decoder = Decoder(tiny(family, dtype=torch.float16), page_size=4, num_pages=60, chunk=8)
    decoder.storage.poison()
    CALLS.clear()
    one, two = decoder.cache.root(), decoder.cache.root()
    logits = feed(decoder, (one, tokens(19, 1)), (two, tokens(4, 2)))
    logits += feed(decoder, (two, tokens(1, 3)), (one, tokens(1, 4)))
    logits += feed(decoder, (decoder.cache.fork(one, at=11), tokens(5, 5)))
    logits += feed(decoder, (decoder.cache.root(), tokens(5, 6)), (one, tokens(1, 7)))
    return logits, decoder


def cached(decoder: Decoder, layer: int) -> tuple[Tensor, Tensor]:
    return decoder.storage.k(layer), decoder.storage.v(layer)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_a_decoder_prefills_new_branches_by_it_and_nothing_else(
    family: str, standin: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as absent:
        absent.setattr(flash, "_device_reason", lambda device: "absent")
        expected, plain = decoded(family)
        assert not CALLS
    got, decoder = decoded(family)
    assert [call["cu_seqlens_q"].tolist() for call in CALLS] == [[0, 19, 23]] * 3
    assert all(call["cu_seqlens_k"].tolist() == [0, 19, 23] for call in CALLS)
    assert {(call["max_seqlen_q"], call["max_seqlen_k"], call["dropout_p"]) for call in CALLS} == {(19, 19, 0.0)}
    windows = [(-1, -1)] * 3 if family == "qwen3" else [(WINDOW - 1, 0), (-1, -1), (WINDOW - 1, 0)]
    assert [call["window_size"] for call in CALLS] == windows
    assert {call["softcap"] for call in CALLS} == {0.0 if family == "qwen3" else 50.0}
    for ours, theirs in zip(got, expected, strict=True):
        assert ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max() < 2e-2  # float16, three layers
    # K and V of what it computed lie in the cache all the same.
    for layer in range(3):
        for ours, theirs in zip(cached(decoder, layer), cached(plain, layer), strict=True):
            assert torch.equal(ours.isnan(), theirs.isnan()) and not ours.isnan().all()
            ours, theirs = ours.nan_to_num(), theirs.nan_to_num()
            assert (ours - theirs).abs().max() < 2e-2 * theirs.abs().max()


def test_sinks_and_other_reasons_leave_it_to_tree_attention(
    standin: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded("gpt_oss")
    assert not CALLS
    with use_backend("reference"):
        decoded("qwen3")
    assert not CALLS
    monkeypatch.setenv(dispatch.ENVIRONMENT, "cpu")
    decoded("qwen3")
    assert not CALLS
    monkeypatch.delenv(dispatch.ENVIRONMENT)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    decoded("qwen3")
    assert not CALLS


@pytest.mark.parametrize(
    ("made_of", "dims", "sinks", "reason"),
    [
        (torch.float32, (64, 64), False, "needs float16 or bfloat16, got torch.float32"),
        (torch.float16, (24, 16), False, "needs K and V of one head_dim, got 24 and 16"),
        (torch.float16, (264, 264), False, "needs a head_dim that is a multiple of 8 and at most 256, got 264"),
        (torch.bfloat16, (12, 12), False, "needs a head_dim that is a multiple of 8 and at most 256, got 12"),
        (torch.bfloat16, (64, 64), True, "has no sinks"),
        (torch.bfloat16, (256, 256), False, None),
        (torch.float16, (8, 8), False, None),
    ],
)
def test_which_tensors_it_takes(
    standin: types.ModuleType, made_of: torch.dtype, dims: tuple[int, int], sinks: bool, reason: str | None
) -> None:
    q, v = torch.zeros(3, 4, dims[0], dtype=made_of), torch.zeros(3, 2, dims[1], dtype=made_of)
    sink = torch.zeros(4) if sinks else None
    assert flash.unsupported_reason(q, v, sink) == reason
    assert (dispatch.find_prefill(q, v, sink) is None) == (reason is not None)


def test_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flash.unavailable_reason("cpu") == "serves cuda only"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert flash.unavailable_reason("cuda") == "no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert flash.unavailable_reason("cuda") == "needs compute capability 8.0, got 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert flash._device_reason("cuda") is None


def test_which_installations_it_takes(
    standin: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert flash.unavailable_reason("cuda") is None
    assert flash.note().startswith("flash-attn 2.8.3, ")
    versions = {
        "2.7.4.post1": "needs flash-attn 2.8 or newer, got 2.7.4.post1",
        "unknown": "needs flash-attn 2.8 or newer, got unknown",
        "2.8rc1": None,
        "2.10.0": None,
    }
    for version, reason in versions.items():
        standin.__version__ = version
        flash._load.cache_clear()
        assert flash.unavailable_reason("cuda") == reason
    monkeypatch.delitem(sys.modules, "flash_attn")
    (tmp_path / "flash_attn.py").write_text("import no_such_extension\n")
    monkeypatch.syspath_prepend(tmp_path)
    flash._load.cache_clear()
    assert flash.unavailable_reason("cuda") == "ModuleNotFoundError: No module named 'no_such_extension'"
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    flash._load.cache_clear()
    assert flash.unavailable_reason("cuda") == "flash_attn has no flash_attn_varlen_func"
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    flash._load.cache_clear()
    assert flash.unavailable_reason("cuda") == "flash-attn is not installed"


def test_explain(standin: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = explain("prefill")[::-1]
    assert (theirs.op, theirs.backend, theirs.available, theirs.default) == ("prefill", "flash-attn", True, True)
    assert (ours.op, ours.backend, ours.available, ours.default) == ("prefill", "tree_attention", True, False)
    with use_backend("reference"):
        named, ours = explain("prefill")
        assert named.available and not named.default and ours.default
        assert named.reason.endswith("; not used, as backend 'reference' is named")
    monkeypatch.setattr(flash, "_device_reason", lambda device: "serves cuda only")
    absent, ours = explain("prefill")
    assert (absent.available, absent.reason, absent.default, ours.default) == (False, "serves cuda only", False, True)
    assert explain()[-2:] == explain("prefill")


def test_the_table_says_who_prefills(standin: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("asyncthink_kernels", run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1].startswith("prefill: flash-attn (flash-attn: flash-attn 2.8.3, ")
    with use_backend("reference"):
        runpy.run_module("asyncthink_kernels", run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1].startswith("prefill: tree_attention (flash-attn: ")


def test_one_module_imports_it() -> None:
    folders = [Path(package.__file__).parent for package in (asyncthink, asyncthink_kernels)]
    mention = re.compile(r"""import flash_attn|from flash_attn|["']flash_attn""")
    found = [path.name for folder in folders for path in folder.rglob("*.py") if mention.search(path.read_text())]
    assert found == ["flash.py"]
