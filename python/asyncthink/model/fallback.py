"""The exact, slower decoder of models that cannot run on our attention: one transformers cache for each branch.

Letters: T rows (tokens) of a step, N rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from asyncthink.model.auto_dtype import dtype_name
from asyncthink.model.checks import check_servable, probe_tokens, text_config, vocabulary
from asyncthink.model.contract import Copied, ForkBytes
from asyncthink.model.copied_branch import CopiedBranch, CopiedPlan
from asyncthink.model.copied_cache import CopiedCache
from asyncthink.model.copied_step import run_step
from asyncthink.model.fallback_check import Sizes, choose_feed
from asyncthink.model.files import Network
from asyncthink.model.hook import DecoderError, HookedModel
from asyncthink.model.joins import CACHE_JOINS
from asyncthink.model.linear import packed_linears
from asyncthink.model.linear_copies import LinearCopies
from asyncthink.model.memory import DEFAULT_SHARE, DEFAULT_TOKENS, free_memory
from asyncthink.model.own_cache import CHUNKS, FEEDS, WHOLE
from asyncthink.model.quantized import count_parameters, quantized_before
from asyncthink.model.rotary import length_dependent
from asyncthink.model.served import ServedModel
from asyncthink.model.watch import WatchedTables

_STATES = 64  # caches whose fixed part the default memory has room for
_PROBED = 6  # tokens


@dataclass(frozen=True, slots=True)
class CopiedStorage:
    """What the cache of one branch takes: bytes for each token, and ``state_bytes`` whatever its length."""

    bytes_per_token: int
    state_bytes: int
    dtype: torch.dtype


class FallbackDecoder(ServedModel):
    """A causal language model that decodes branches one at a time, each with a cache object of the model's own.

    It computes what ``model(input_ids, past_key_values=cache, use_cache=True)`` computes, with the attention that the
    model has been given. A fork copies the parent's cache: the bytes of ``storage``, once the branch or its parent goes
    on. What is shared is stored once for each branch, and read once for each branch. :class:`asyncthink.Decoder` serves
    most models without a copy; this one is for those that it refuses (:func:`.choice.decoder_for`).

    Building one runs some small forward passes, which check that forks, siblings and joins give the logits of
    ``model(input_ids)``. DecoderError says why a model cannot be served.

    Attributes:
        cache: the :class:`.copied_cache.CopiedCache` that makes branches and plans.
        storage: the bytes of a branch's cache.
        join_modes: ``("exact",)``. ``unavailable`` says why there are no others.
        feed: how tokens enter a context: one of :data:`.own_cache.FEEDS`.
        max_length: the longest context: the rows of the model's position table, the length at which its RoPE changes,
            or what its config says, if that is less. None: no limit.
        reason: why the model is on this decoder; "" where the caller chose it.

    Args:
        model: a transformers causal LM, on one device.
        page_size: tokens of a page, in which memory is counted.
        num_pages, memory_bytes: size of all caches together, by either; default: 65,536 tokens and 64 states, or a
            quarter of the free memory if that is less. A state takes pages too (``cache.state_pages``).
        pack: as for :class:`asyncthink.Decoder`.
        progress: called with a short phrase before each part of the building.
        refused: arguments of :class:`asyncthink.Decoder` that this one has not: DecoderError names the first that is
            not None or False.

    >>> decoder = FallbackDecoder(model)                                               # doctest: +SKIP
    >>> organizer = decoder.cache.root()                                               # doctest: +SKIP
    >>> plan = decoder.cache.plan([(organizer, 3)])                                    # doctest: +SKIP
    >>> decoder.forward(torch.tensor([11, 12, 13]), plan, [2]).shape                   # doctest: +SKIP
    torch.Size([1, 250880])
    """

    graphs = None
    states = None
    compiled = False
    join_modes = ("exact",)
    reason = ""

    def __init__(
        self,
        model: nn.Module,
        *,
        page_size: int = 16,
        num_pages: int | None = None,
        memory_bytes: int | None = None,
        pack: bool | None = None,
        progress: Callable[[str], None] | None = None,
        **refused: Any,
    ) -> None:
        for name, value in refused.items():
            if value is not None and value is not False and (name, value) != ("lm_head", "auto"):
                raise DecoderError(f"{name}: expected none on the fallback decoder, got {value!r}")
        say = progress or (lambda what: None)
        model = getattr(model, "_orig_mod", model)
        CopiedCache(None, 1, page_size)  # raises on invalid sizes before the model is run
        say("checking the model")
        self._keep(HookedModel(model), check_servable(model), [model])
        self.max_length = _longest(self._hooked)
        say("packing linear layers")
        self.linears: LinearCopies | None
        self.linears, unpacked = packed_linears(model, pack)
        say("comparing with the model's own logits")
        self._calls, sizes = choose_feed(self._hooked, self.kind, self.max_length)
        self._hooked.linears = self.linears
        self.feed = self._calls.feed
        dtype = next(model.parameters()).dtype
        self.storage = CopiedStorage(sizes.token, sizes.state, dtype)
        unit = sizes.unit(page_size)
        self.cache = CopiedCache(
            self._calls,
            _pages(num_pages, memory_bytes, page_size, unit, sizes, self.device),
            page_size,
            state_pages=-(-sizes.state // (page_size * unit)),
        )
        own = f"{self.kind} can only join exactly: each of its branches has a cache of the model's own"
        self.unavailable = dict.fromkeys(CACHE_JOINS, own)
        if self.linears is None and pack is None:
            self.unavailable["pack"] = unpacked
        self._vocabulary = vocabulary(model)

    @classmethod
    def of(cls, network: Network, **options: Any) -> Self:
        """A decoder for a model that was loaded; arguments and errors are those of :meth:`load`."""
        if network.quantized:
            raise DecoderError("weights: expected unquantized ones on the fallback decoder, got those of a GGUF file")
        decoder = cls(network.model, **options)
        decoder.why_device, decoder.why_dtype = network.why_device, network.why_dtype
        return decoder

    @property
    def fork_bytes(self) -> ForkBytes:
        """What a fork copies; it reads nothing in place."""
        return ForkBytes(token=self.storage.bytes_per_token, state=self.storage.state_bytes)

    @property
    def cost(self) -> str:
        """What the fallback costs, in one sentence."""
        if self.feed == WHOLE:
            return f"each step computes {FEEDS[WHOLE]}"
        parts = [f"{self.storage.bytes_per_token:,} bytes a token"] if self.storage.bytes_per_token else []
        parts += [f"{self.storage.state_bytes:,} bytes of state"] if self.storage.state_bytes else []
        fed = "" if self.feed == CHUNKS else f", {FEEDS[self.feed]}"
        return f"a fork copies its context's cache ({' and '.join(parts)}), and branches run one after the other{fed}"

    def weights_version(self) -> int:
        """A number that changes by :meth:`refresh`, and when weights are changed in place or moved."""
        return self._calls.version()

    def forward(self, tokens: Tensor, plan: CopiedPlan, logits_rows: list[int] | Tensor) -> Tensor:
        """One step: tokens [T] int64 in the order of the plan's rows -> logits [N,V] of ``logits_rows`` [N].

        Logits are in the model's dtype, without a gradient. ValueError where tokens, plan and rows do not fit together,
        before anything is computed.
        """
        rows = torch.as_tensor(logits_rows, dtype=torch.int64).tolist()
        self._check_weights()
        self._check_step(tokens, plan, rows)
        return run_step(self.cache, self._calls, plan, tokens.tolist(), rows)

    def copied(self, plan: CopiedPlan) -> list[Copied]:
        """The caches that this plan copied."""
        return self.fork_bytes.copied(plan.copied)

    def counts(self) -> dict[str, int]:
        """Calls of the model, and the bytes of all copies."""
        stats = self.cache.stats
        return {"passes": self._calls.count, **self.fork_bytes.counts(stats.copies, stats.tokens_copied)}

    def refresh(self, weights_only: bool = False) -> None:
        """After a change of the model, or of its weights: forget all packed weights. Release the branches before it.

        DecoderError if the weights have another dtype or device now.
        """
        self._check_weights()
        self._calls.refreshes += 1
        if self.linears is not None:
            self.linears.forget()

    def join(self, dst: CopiedBranch, src: CopiedBranch, start: int, stop: int, mode: str) -> None:
        """DecoderError: joins are exact, and pass the tokens to the next step."""
        raise DecoderError(self.unavailable.get(mode, f"mode must be 'exact' for this model, got {mode!r}"))

    def copy(self, dst: CopiedBranch, src: CopiedBranch, start: int, stop: int) -> None:
        """ValueError: a fork copies the whole context."""
        self.cache.check_copy(dst, src, start, stop)

    def explain(self) -> dict[str, str]:
        """How this decoder runs, and why: one sentence each under "decoder", "device", "dtype", "joins" and others."""
        joins = [f"{mode}: {self.unavailable[mode]}" for mode in CACHE_JOINS]
        packed = "no: " + self.unavailable.get("pack", "switched off")
        if self.linears is not None:
            packed = f"linear layers run on packed copies of their weights, {self.linears.nbytes:,} bytes"
        before = quantized_before(self.model)
        return {
            "model": f"{type(self.model).__name__}, {count_parameters(self.model):,} parameters",
            "decoder": f"fallback: {self.reason or 'it was asked for'}; {self.cost}",
            "device": f"{self.device}: {self.why_device}",
            "dtype": self.why_dtype or f"{dtype_name(self.storage.dtype)}, as the live model has it",
            "weights": "as they are stored" if before is None else f"as they were quantized before, by {before}",
            "pack": packed,
            "graphs": "no: the fallback decoder has none",
            "compile": "no: the fallback decoder has none",
            "joins": "; ".join(["exact", *joins]),
            "positions": f"at most {self.max_length:,}" if self.max_length is not None else "no hard limit",
            "cache": f"{self.cache.num_pages:,} pages of {self.cache.page_size} tokens, "
            f"{self.storage.bytes_per_token:,} bytes a token; each cache takes {self.cache.state_pages:,} pages more",
        }

    def _check_step(self, tokens: Tensor, plan: CopiedPlan, rows: list[int]) -> None:
        T = plan.rows
        if tokens.dtype != torch.int64 or tuple(tokens.shape) != (T,):
            raise ValueError(
                f"tokens must be [{T}] int64, as the plan has rows, got {list(tokens.shape)} {tokens.dtype}"
            )
        if rows and not 0 <= min(rows) <= max(rows) < T:
            raise ValueError(f"logits_rows must be row numbers in [0, {T}), got {rows}")
        lowest, highest = int(tokens.min()), int(tokens.max())
        if not 0 <= lowest <= highest < self._vocabulary:
            raise ValueError(f"tokens must be ids in [0, {self._vocabulary}), got {lowest}..{highest}")
        for branch, count in plan.work:
            if branch.planned != count:
                raise ValueError(f"plan: expected one that was not run or undone, got {branch} with {count} new tokens")
            if self.max_length is not None and branch.length > self.max_length:
                raise ValueError(f"this model takes {self.max_length} positions, got position {branch.length - 1}")


def _longest(hooked: HookedModel) -> int | None:
    """The longest context of a model: its position tables, where its RoPE changes, what its config says."""
    tokens = torch.tensor(probe_tokens(hooked.model, _PROBED), device=next(hooked.model.parameters()).device)
    with WatchedTables(_PROBED) as tables:
        try:
            hooked.call(tokens, None)
        except Exception:
            return None  # the check that follows says why the model cannot be called
    limits = [rows - first for rows, first in tables.positions(range(_PROBED))]
    changing = length_dependent(hooked.model)
    if changing is not None:
        limits.append(changing[1])
    config = text_config(hooked.model)
    limits += [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def _pages(
    num_pages: int | None, memory_bytes: int | None, page_size: int, unit: int, sizes: Sizes, device: torch.device
) -> int:
    """Pages of all caches together: ``num_pages``, what fits ``memory_bytes``, or the default. ValueError for both."""
    if num_pages is not None and memory_bytes is not None:
        raise ValueError("give num_pages or memory_bytes, got both")
    if num_pages is not None:
        return num_pages
    if memory_bytes is None:
        memory_bytes = min(int(DEFAULT_SHARE * free_memory(device)), DEFAULT_TOKENS * unit + _STATES * sizes.state)
    fitting = memory_bytes // (page_size * unit)
    if fitting < 1:
        raise ValueError(f"memory_bytes must hold a page of {page_size * unit} bytes, got {memory_bytes}")
    return fitting
