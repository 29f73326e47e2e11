"""Any transformers decoder on our cache and ops: the :class:`Decoder`.

Letters: T rows (tokens) of a step, N rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from asyncthink.model.building import examine, reserve, steps_for
from asyncthink.model.checks import padding_token, vocabulary
from asyncthink.model.contract import Copied, ForkBytes
from asyncthink.model.cuda_graphs import StepGraphs
from asyncthink.model.explain import explain
from asyncthink.model.files import Network
from asyncthink.model.hook import DecoderError
from asyncthink.model.joins import JOIN_MODES, CacheJoins
from asyncthink.model.packed_steps import PackedSteps
from asyncthink.model.quantized import QuantizedLinears, check_choice, refuse
from asyncthink.model.recorded import RecordedSteps
from asyncthink.model.recurrent import StateStorage
from asyncthink.model.row_passes import RowPasses
from asyncthink.model.served import ServedModel
from asyncthink.model.step_checks import StepChecks
from asyncthink.model.weights import version
from asyncthink_kernels.cache import Branch, StatefulCache, StatefulPlan, StepPlan, TreeCache

__all__ = ["Decoder", "DecoderError"]


class Decoder(ServedModel):
    """A causal language model that decodes the branches of a tree, all of them in one forward pass a step.

    The model's weights are shared, never copied. A call leaves its training mode, attention implementation and
    gradients as they were. A model in training mode runs in evaluation mode during a call, so that dropout is off.
    Building a Decoder runs six small forward passes, which check that packed steps give the logits of
    ``model(input_ids)``; DecoderError says why a model cannot be served.

    Passes compute in the dtype of the weights on the model's device, whatever autocast, default dtype or default device
    the caller has set. A module wrapped by torch.compile is unwrapped: ``compile`` alone decides.

    Attributes:
        cache: the :class:`TreeCache` that makes branches and plans.
        storage: the K and V of all its pages.
        states: the recurrent states of its branches (:class:`.recurrent.StateStorage`), where the model has such
            layers: then a step is one row an agent, one pass for all agents with as many new tokens; None: it has none.
        join_modes: what :meth:`join` supports, and ``"exact"``, which every model supports.
        unavailable: why a feature is off: for each join mode not in ``join_modes``; ``"graphs"``: decode steps were to
            be captured and cannot be; ``"pack"``: linear layers run on their own weights.
        linears: the packed linear layers (:class:`asyncthink.model.linear.PackedLinears`), the quantized ones
            (:class:`asyncthink.model.quantized.QuantizedLinears`), or None.
        graphs: the captured decode steps (:class:`.cuda_graphs.StepGraphs`); None: every step runs eagerly.
        recorded: the recorded steps (:class:`.recorded.RecordedSteps`), which say why if there are none; None on a GPU
            and where they are not wanted.
        max_length: the longest context: the rows of the model's position table, or the length at which its RoPE changes
            (dynamic, longrope). None: no limit, as RoPE is computed beyond ``max_position_embeddings`` too.

    Args:
        model: a transformers causal LM, on one device.
        page_size: tokens of a page.
        num_pages, memory_bytes: size of the cache, by either; default: 65,536 tokens, or a quarter of the free memory
            if that is less.
        num_states: recurrent states that the cache holds, one for each running agent, and snapshots; default: an eighth
            of the free memory, at most 256. ValueError for a model without such layers.
        chunk: tokens of a node in one attention item; default 512, on a GPU by the heads of the model
            (:func:`asyncthink_kernels.tuning.chunk_tokens`).
        progress: called with a short phrase before each part of the building, which may take seconds.
        graphs: capture decode steps as CUDA graphs; None: on a GPU. True on a CPU captures nothing, but runs decode
            steps from the same static buffers, for tests. A model that cannot be captured runs eagerly, with one
            RuntimeWarning that gives the reason. After a change of the model call :meth:`refresh`.
        compile: run whole steps through torch.compile; True for its default backend, or a backend's name. The first
            step compiles (seconds to minutes). So does the first step with linked keys, and the first from static
            buffers; other sizes never do. If torch cannot compile the model, the first step raises torch's own error.
            Logits may differ from uncompiled ones by rounding, and flash-attn is not used.
        record: on a CPU, run decode steps of sizes that come again without the model's Python, with the same bits
            (:mod:`asyncthink.model.recorded`). Not beside ``compile``.
        pack: on a CPU, run linear layers on packed copies of their weights, which doubles their memory and reads them
            at full bandwidth (:mod:`asyncthink.model.linear`). None: for 32 MiB of weights and more, if the copies fit
            into half of the free memory. Decoders of one model share the copies. Weights changed in place are packed
            again automatically, except through ``.data``, which needs :meth:`refresh`. True raises DecoderError where
            packing is impossible.
        weights: "int8" or "int4": on a CPU, run linear layers on weights in 8 or 4 bits, in groups of 32, with
            activations in 8 bits (:mod:`asyncthink.model.quantized`). The model's own weights stay, and are quantized
            again when they change; :meth:`load` gives them up. DecoderError where that is impossible.
        lm_head: how the last layer is held beside ``weights``: "int8" ("auto"), "int4", or "stored", as it is.

    >>> decoder = Decoder(model, num_pages=64)                                         # doctest: +SKIP
    >>> organizer = decoder.cache.root()                                               # doctest: +SKIP
    >>> plan = decoder.cache.plan([(organizer, 3)])                                    # doctest: +SKIP
    >>> decoder.forward(torch.tensor([11, 12, 13]), plan, [2]).shape                   # doctest: +SKIP
    torch.Size([1, 151936])
    """

    cache: TreeCache
    max_length: int | None = None
    states: StateStorage | None = None
    _packed: PackedSteps | None = None
    _rows: RowPasses | None = None
    _refreshes = 0

    def __init__(
        self,
        model: nn.Module,
        *,
        page_size: int = 16,
        num_pages: int | None = None,
        memory_bytes: int | None = None,
        num_states: int | None = None,
        chunk: int | None = None,
        graphs: bool | None = None,
        compile: bool | str = False,
        record: bool = True,
        pack: bool | None = None,
        weights: str | None = None,
        lm_head: str = "auto",
        progress: Callable[[str], None] | None = None,
    ) -> None:
        check_choice(weights, lm_head)
        if weights is not None and pack:
            raise ValueError(f"pack: expected None or False beside weights={weights!r}, got True")
        say = progress or (lambda what: None)
        model = getattr(model, "_orig_mod", model)
        least = 1 if num_states is None else num_states
        StatefulCache(
            1, page_size, chunk or page_size, num_states=least
        )  # raises on invalid sizes before anything runs
        examined = examine(model, page_size, say, compiled=bool(compile), pack=pack, weights=weights, lm_head=lm_head)
        self._keep(examined.hooked, examined.kind, examined.ends)
        self.linears, self.max_length = examined.linears, examined.layers.max_length
        self.unavailable = dict(examined.unavailable)
        self.join_modes = tuple(mode for mode in JOIN_MODES if mode not in self.unavailable)
        say("reserving the cache")
        held = reserve(
            examined, page_size, num_pages=num_pages, memory_bytes=memory_bytes, num_states=num_states, chunk=chunk
        )
        self.cache, self.storage, self.states = held.cache, held.storage, held.states
        self._joins = CacheJoins(held.cache, held.attention, self.unavailable)
        if self.linears is None and pack is None:
            self.unavailable["pack"] = examined.unpacked
        padding = padding_token(model) if self._hooked.first_position else None
        self._checks = StepChecks(vocabulary(model), padding, self.max_length)
        options: dict[str, Any] = {"graphs": graphs, "compile": compile, "record": record}
        self._packed, self._rows = steps_for(examined, held, self.unavailable, **options)

    @classmethod
    def of(
        cls,
        network: Network,
        *,
        weights: str | None = None,
        lm_head: str = "auto",
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Self:
        """A Decoder for a model that was loaded; arguments and errors are those of :meth:`load`."""
        if weights is None and not network.quantized:
            decoder = cls(network.model, progress=progress, **options)
        else:
            if options.get("pack"):
                raise ValueError("pack: expected None or False beside quantized weights, got True")
            refuse(network.model, f"weights={weights!r}")
            decoder = cls(network.model, progress=progress, **options | {"pack": False})
            (progress or (lambda what: None))("quantizing linear layers")
            decoder._replace_linears(QuantizedLinears(network.model, weights, lm_head, network.quantized))
        decoder.why_device, decoder.why_dtype = network.why_device, network.why_dtype
        return decoder

    def explain(self) -> dict[str, str]:
        """How this decoder runs, and why: one sentence each under "device", "dtype", "pack", "graphs" and others.

        >>> from asyncthink import checkpoint_path
        >>> Decoder.load(checkpoint_path("countdown"), device="cpu", num_pages=64).explain()["dtype"]
        'float32, as the weights are stored'
        """
        return explain(self)

    @property
    def graphs(self) -> StepGraphs | None:
        """The captured decode steps; None: every step runs eagerly."""
        return None if self._packed is None else self._packed.graphs

    @property
    def recorded(self) -> RecordedSteps | None:
        """The recorded decode steps; None on a GPU and where they are not wanted."""
        steps = self._packed or self._rows
        return None if steps is None else steps.recorded

    @property
    def fork_bytes(self) -> ForkBytes:
        """What a fork reads in place and what it copies."""
        state = 0 if self.states is None else self.states.bytes_per_state
        return ForkBytes(shared=self.storage.bytes_per_token, state=state)

    def weights_version(self) -> int:
        """A number that changes by :meth:`refresh`, and when weights are changed in place or moved.

        Results computed under another number are outdated. Writing through ``.data`` or to inference tensors escapes
        torch's change count and needs :meth:`refresh`.
        """
        return hash((self._refreshes, *map(version, self.model.parameters())))

    @property
    def compiled(self) -> bool:
        """Whether steps run through torch.compile."""
        return self._hooked.compiled is not None

    def forward(self, tokens: Tensor, plan: StepPlan | StatefulPlan, logits_rows: list[int] | Tensor) -> Tensor:
        """One step: tokens [T] int64 in the order of the plan's rows -> logits [N,V] of ``logits_rows`` [N].

        Logits are in the model's dtype: writing a wider copy would take longer than drawing the tokens. K and V of the
        tokens are written to the plan's slots. The logits carry no gradient (they are an inference tensor). ValueError
        where tokens, plan and rows do not fit together, before anything is written.
        """
        rows = logits_rows if isinstance(logits_rows, Tensor) else torch.tensor(logits_rows, device="cpu")
        rows = rows.to(torch.int64)  # an empty list becomes a float tensor
        self._check_weights()
        self._checks.check(tokens, plan, rows)
        if isinstance(plan, StatefulPlan):
            assert isinstance(self.cache, StatefulCache) and self._rows is not None
            logits = self._rows.forward(tokens, plan, rows.cpu())
            self.cache.commit(plan)
            return logits
        assert self._packed is not None
        return self._packed.forward(tokens, plan, rows)

    def refresh(self, weights_only: bool = False) -> None:
        """After a change of the model: forget all packed weights, and the captured steps if weights were moved.

        Recorded steps are forgotten, too; with ``weights_only``, where nothing but weights changed, only those whose
        weights were moved: to record them again takes longer than to run them. Weights changed in place need no call.
        For other changes of the model see :attr:`graphs`. K and V in the cache stay those of the old weights: release
        their branches. DecoderError if the weights have another dtype or device now, which the cache does not have:
        make a new Decoder.
        """
        self._check_weights()
        self._refreshes += 1
        if self.linears is not None:
            self.linears.forget()
        for steps in (self._packed, self._rows):
            if steps is not None:
                steps.refresh(weights_only)

    def copied(self, plan: StepPlan | StatefulPlan) -> list[Copied]:
        """What this plan copies: recurrent states, of forks that go on."""
        return self.fork_bytes.copied([(place, 0) for place in plan.copied] if isinstance(plan, StatefulPlan) else [])

    def counts(self) -> dict[str, int]:
        """Of a model with recurrent layers: forward passes, copied bytes, and slots of states."""
        if self.states is None:
            return {}
        stats = self.cache.stats
        held = {"free_states": self.cache.free_states, "num_states": self.states.num_states}
        return {"passes": stats.passes, **self.fork_bytes.counts(stats.states_copied, 0), **held}

    def join(self, dst: Branch, src: Branch, start: int, stop: int, mode: str) -> None:
        """Continue ``dst`` with tokens [start, stop) of ``src``'s context without computing them again.

        ``append`` copies K, rotated to its new positions, and V; ``link`` reads them in place. ValueError for a mode
        that is not in ``join_modes``, and for ``exact``, which is no join of the cache: pass the tokens to the next
        step. OutOfPages, with nothing changed, where ``append`` finds no room.
        """
        self._joins.join(dst, src, start, stop, mode)

    def copy(self, dst: Branch, src: Branch, start: int, stop: int) -> None:
        """Continue ``dst``, a fork of ``start`` tokens, with a bitwise copy of ``src``'s tokens [start, stop).

        The copy has pages of its own, so ``dst`` goes on writing behind it as if it had computed it; a fork reads
        ``src`` in place. ValueError unless ``dst`` has ``start`` tokens and wrote none of them, and token ``start``
        begins a node or a chunk in which ``src`` has the others; OutOfPages where there is no room. Nothing has
        changed then.
        """
        self._joins.copy(dst, src, start, stop)

    def _replace_linears(self, linears: QuantizedLinears) -> None:
        """Put the layers into the model, whose own weights are given up."""
        self.linears = self._hooked.linears = linears
        linears.replace(self.model)
        for steps in (self._packed, self._rows):
            if steps is not None:
                steps.refresh()
        self._keep(self._hooked, self.kind, self._weighted)
