"""Any transformers decoder on our cache and ops: the :class:`Decoder`.

Letters: T rows (tokens) of a step, N rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asyncthink.model.attention import PagedAttention, Step
from asyncthink.model.checks import check_kind, padding_token, vocabulary
from asyncthink.model.compiled import CompiledModel
from asyncthink.model.contract import Copied
from asyncthink.model.cuda_graphs import CaptureError, CudaRecorder, Rerun, StepGraphs
from asyncthink.model.explain import explain
from asyncthink.model.files import Network, load_network
from asyncthink.model.fork_check import check_packed_fork
from asyncthink.model.gate import Gate
from asyncthink.model.hook import DecoderError, HookedModel
from asyncthink.model.joins import CACHE_JOINS, JOIN_MODES, find_movable_keys, only_exact
from asyncthink.model.layers import record_layers, record_rows
from asyncthink.model.linear import packed_linears
from asyncthink.model.linear_copies import LinearCopies
from asyncthink.model.memory import chunk_for, num_pages_for, num_states_for
from asyncthink.model.quantized import QuantizedLinears, check_choice, refuse
from asyncthink.model.recorded import RecordedSteps
from asyncthink.model.recurrent import StateLayout, StateStorage, has_states
from asyncthink.model.rotary import Rotary, length_dependent
from asyncthink.model.row_passes import RowPasses, check_row_fork
from asyncthink.model.step_checks import StepChecks
from asyncthink.model.weights import described, version
from asyncthink_kernels.cache import Branch, KVStorage, StatefulCache, StatefulPlan, StepPlan, TreeCache

__all__ = ["Decoder", "DecoderError"]


class Decoder:
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
            of the free memory, at most 256. Ignored for a model without such layers.
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

    graphs: StepGraphs | None = None
    recorded: RecordedSteps | None = None
    max_length: int | None = None
    states: StateStorage | None = None
    forks_copy = False
    cache: TreeCache
    _refreshes = 0
    why_device: str = "where the live model is"
    why_dtype: str | None = None

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
        TreeCache(1, page_size, chunk or page_size)  # raises on invalid sizes before the model is run
        say("checking the model")
        stateful = has_states(model)
        kind = check_kind(model, states=stateful)
        if compile and stateful:
            raise DecoderError(f"{kind} has recurrent layers, whose steps cannot run through torch.compile")
        self._hooked = HookedModel(model)
        self.device = next(model.parameters()).device
        changing = length_dependent(model)
        changes_at = None if changing is None else changing[1]
        layout = StateLayout(self._hooked, kind) if stateful else None
        if layout is None:
            layers = record_layers(self._hooked, kind, changes_at=changes_at)
        else:
            layers = record_rows(self._hooked, kind, layout.attention_layers, changes_at=changes_at)
        self.max_length = layers.max_length
        self._ends = layers.ends or (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
        self._made_for = described(self._ends)
        if weights is not None:
            refuse(model, f"weights={weights!r}")  # before more is computed
        say("packing linear layers")
        self.linears: LinearCopies | None
        self.linears, unpacked = packed_linears(model, pack if weights is None else False)
        self._hooked.linears = self.linears
        say("comparing with the model's own logits")
        rotaries: tuple[Rotary, ...] | None
        if layout is None:
            check_packed_fork(self._hooked, layers, kind, page_size)
            rotaries, self.unavailable = find_movable_keys(model, kind, layers, changing)
        else:
            by_token = check_row_fork(self._hooked, layers, layout, kind, page_size)
            rotaries, self.unavailable = None, only_exact(kind)
        self.join_modes = tuple(mode for mode in JOIN_MODES if mode not in self.unavailable)

        if weights is not None:  # last, because the checks compare with the weights as they are
            say("quantizing linear layers")
            self.linears = self._hooked.linears = QuantizedLinears(model, weights, lm_head)
        say("reserving the cache")
        token_bytes = sum(s.kv_heads * (s.head_dim + s.v_head_dim) for s in layers.shapes) * layers.dtype.itemsize
        num_pages = num_pages_for(num_pages, memory_bytes, page_size, token_bytes, self.device)
        self.storage = KVStorage(layers.shapes, num_pages, page_size, layers.dtype, self.device)
        self._attention = PagedAttention([call.module for call in layers.calls], self.storage, rotaries)
        chunk = chunk or chunk_for(model, layers, page_size, self.device)
        if layout is None:
            self.cache = TreeCache(num_pages, page_size, chunk)
        else:
            num_states = num_states_for(num_states, layout.bytes_per_state, self.device)
            self.cache = StatefulCache(num_pages, page_size, chunk, num_states=num_states, by_token=by_token)
            self.states = StateStorage(layout, num_states, self.device)
            self._rows = RowPasses(self._hooked, self._attention, self.states)
        if self.linears is None and pack is None:
            self.unavailable["pack"] = unpacked
        padding = padding_token(model) if self._hooked.first_position else None
        self._checks = StepChecks(vocabulary(model), padding, self.max_length)
        self._kind = kind
        if self.device.type == "cpu" and layout is None and not compile and record:
            self.recorded = RecordedSteps(self._hooked, self._attention)
        if compile:
            self._hooked.compiled = CompiledModel(model, "inductor" if compile is True else compile)
        if graphs or (graphs is None and self.device.type == "cuda"):
            impossible = None if changing is None else f"its {changing[0]} RoPE depends on the positions"
            self._set_up_graphs(impossible if layout is None else "it has recurrent layers")

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        weights: str | None = None,
        lm_head: str = "auto",
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Decoder:
        """A Decoder for the model at a local folder, in a GGUF file, or at a hub id.

        ``device``, ``dtype`` and ``revision`` are those of :func:`asyncthink.model.files.load_network`; ``progress``
        is called with a phrase before each stage; ``options`` are those of the constructor. With ``weights`` the model
        has the quantized layers in the place of its own, so that they are in memory once. Layers that a GGUF file holds
        in 8 or 4 bits keep them on a CPU, whether or not others are quantized. DecoderError, one line, for a path
        without a model, weights that are missing or broken, and a model that cannot be served.
        """
        check_choice(weights, lm_head)
        network = load_network(path, revision=revision, device=device, dtype=dtype, progress=progress)
        return cls.of(network, weights=weights, lm_head=lm_head, progress=progress, **options)

    @classmethod
    def of(
        cls,
        network: Network,
        *,
        weights: str | None = None,
        lm_head: str = "auto",
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Decoder:
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
    def model(self) -> nn.Module:
        """The model itself."""
        return self._hooked.model

    @functools.cached_property
    def gate(self) -> Gate:
        """Lets one thread at a time use this decoder's cache."""
        return Gate()

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
            assert isinstance(self.cache, StatefulCache)
            logits = self._rows.forward(tokens, plan, rows.cpu())
            self.cache.commit(plan)
            return logits
        if self.graphs is not None and self.graphs.takes(plan, rows):
            try:
                return self.graphs.step(plan, tokens)
            except CaptureError as error:
                self.graphs = None
                self.unavailable["graphs"] = f"{self._kind} cannot be captured: {error}"
                warnings.warn(f"{self.unavailable['graphs']}; every step runs eagerly", RuntimeWarning, stacklevel=2)
        step = self._attention.step(plan, tokens)
        if self.recorded is not None and self.recorded.takes(step):
            return self.recorded.step(step, rows, self._pass)
        return self._pass(step, rows.to(self.device))

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
        if self.graphs is not None:
            self.graphs.refresh()
        if self.linears is not None:
            self.linears.forget()
        if self.recorded is not None and not weights_only:
            self.recorded.clear()

    def copied(self, plan: StepPlan | StatefulPlan) -> list[Copied]:
        """What this plan copies: recurrent states, of forks that go on."""
        if self.states is None or not isinstance(plan, StatefulPlan):
            return []
        return [Copied(place, 0, self.states.bytes_per_state) for place in plan.copied]

    def counts(self) -> dict[str, int]:
        """Of a model with recurrent layers: forward passes, copied bytes, and slots of states."""
        if self.states is None:
            return {}
        stats, size = self.cache.stats, self.states.bytes_per_state
        held = {"free_states": self.cache.free_states, "num_states": self.states.num_states}
        return {"passes": stats.passes, "state_bytes_copied": stats.states_copied * size, **held}

    def join(self, dst: Branch, src: Branch, start: int, stop: int, mode: str) -> None:
        """Continue ``dst`` with tokens [start, stop) of ``src``'s context without computing them again.

        ``append`` copies K, rotated to its new positions, and V; ``link`` reads them in place. ValueError for a mode
        that is not in ``join_modes``, and for ``exact``, which is no join of the cache: pass the tokens to the next
        step. OutOfPages, with nothing changed, where ``append`` finds no room.
        """
        if mode not in CACHE_JOINS:
            raise ValueError(f"mode must be 'append' or 'link' (for 'exact' plan the tokens as rows), got {mode!r}")
        if mode in self.unavailable:
            raise DecoderError(self.unavailable[mode])
        before = dst.length
        scatter = self.cache.join(dst, src, start, stop, "append" if mode == "append" else "link")
        if scatter is not None:
            try:
                self._attention.append(scatter)
            except BaseException:
                self.cache.truncate(dst, before)  # so that slots which were never written are not read
                raise

    def copy(self, dst: Branch, src: Branch, start: int, stop: int) -> None:
        """Continue ``dst``, a fork of ``start`` tokens, with a bitwise copy of ``src``'s tokens [start, stop).

        The copy has pages of its own, so ``dst`` goes on writing behind it as if it had computed it; a fork reads
        ``src`` in place. ValueError unless ``dst`` has ``start`` tokens and wrote none of them, and token ``start``
        begins a node or a chunk in which ``src`` has the others; OutOfPages where there is no room. Nothing has
        changed then.
        """
        self.cache.check_copy(dst, src, start, stop)
        scatter = self.cache.join(dst, src, start, stop, "append")
        assert scatter is not None
        try:
            self._attention.copy(scatter)
        except BaseException:
            self.cache.truncate(dst, start)  # so that slots which were never written are not read
            raise

    def _replace_linears(self, linears: QuantizedLinears) -> None:
        """Put the layers into the model, whose own weights are given up."""
        self.linears = self._hooked.linears = linears
        linears.replace(self.model)
        if self.recorded is not None:
            self.recorded.clear()
        self._made_for = described(self._ends)

    def _set_up_graphs(self, impossible: str | None) -> None:
        """Run decode steps from static buffers, unless there is a reason why that is ``impossible``."""
        if impossible is not None:
            self.unavailable["graphs"] = f"{self._kind} cannot be captured: {impossible}"
            return
        recorder = CudaRecorder(self.device) if self.device.type == "cuda" else Rerun()
        self.graphs = StepGraphs(self._attention, self.model, self._pass, recorder)

    def _pass(self, step: Step, rows: Tensor) -> Tensor:
        """One forward pass -> logits [N,V] of rows [N]."""
        logits = self._hooked.run(step, step.tokens, step.positions, rows)
        if step.calls != len(self._attention.layers):
            raise RuntimeError(
                f"expected {len(self._attention.layers)} attention calls, got {step.calls}: "
                "the model was changed, or used by another thread, during the step"
            )
        return logits

    def _check_weights(self) -> None:
        """DecoderError after ``model.to(...)``. Only two layers are checked, because this runs in every step."""
        current = described(self._ends)
        if current != self._made_for:
            raise DecoderError(
                f"{self._kind}: the weights are {current} now, but this Decoder was made for {self._made_for}; "
                "move the model back, or make a new Decoder (refresh() is for weights that changed their values)"
            )
