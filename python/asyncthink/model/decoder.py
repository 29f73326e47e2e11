"""Any transformers decoder on our cache and ops: the :class:`Decoder`.

Letters: T rows (tokens) of a step, N rows to draw from or tokens of a span, V vocabulary.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asyncthink.model.attention import PagedAttention, Step
from asyncthink.model.checks import check_kind, padding_token, vocabulary
from asyncthink.model.compiled import CompiledModel
from asyncthink.model.cuda_graphs import CaptureError, CudaRecorder, Rerun, StepGraphs
from asyncthink.model.explain import explain
from asyncthink.model.files import load_network
from asyncthink.model.fork_check import check_packed_fork
from asyncthink.model.gate import Gate
from asyncthink.model.hook import BorrowedModel, DecoderError
from asyncthink.model.layers import record_layers
from asyncthink.model.linear import packed_linears
from asyncthink.model.memory import chunk_for, num_pages_for
from asyncthink.model.rotary import NotRotaryError, Rotary, find_rotaries, length_dependent
from asyncthink_kernels.cache import Branch, KVStorage, StepPlan, TreeCache

__all__ = ["Decoder", "DecoderError"]

JOIN_MODES = ("exact", "append", "link")


class Decoder:
    """A causal language model that decodes the branches of a tree, all of them in one forward pass a step.

    The model is used where it lies: weights shared, never copied; its training mode, attention implementation and
    gradients are the same after a call as before. A model in training mode runs in evaluation mode for the length of a
    call, so that dropout is off. Building a Decoder runs six small forward passes that prove that the model gives the
    logits of ``model(input_ids)`` this way; DecoderError says why one cannot be served.

    Passes compute in the dtype of the weights on the model's device, whatever autocast, default dtype or default device
    the caller has set. A module that torch.compile wrapped is unwrapped: ``compile`` alone says whether steps are
    compiled.

    Attributes:
        cache: the :class:`TreeCache` that makes branches and plans.
        storage: the K and V of all its pages.
        join_modes: what :meth:`join` offers, and ``"exact"``, which every model has.
        why_not: for each mode not offered, the reason; under ``"graphs"`` why decode steps are not captured, where
            that was asked for and cannot be; under ``"pack"`` why linear layers run on their weights as they lie.
        linears: the packed linear layers (:class:`asyncthink.model.linear.PackedLinears`), or None.
        graphs: the captured decode steps (:class:`.cuda_graphs.StepGraphs`); None: every step runs eagerly.
        max_length: positions this model can take, the length that a context may have: the rows of a table of positions,
            or the length at which RoPE changes (dynamic, longrope). None where nothing ends them: RoPE is computed
            beyond ``max_position_embeddings``, too.

    Args:
        model: a transformers causal LM, on one device.
        page_size: tokens of a page.
        num_pages, memory_bytes: size of the cache, by either; default: 65,536 tokens, or what fits into a quarter of
            the free memory.
        chunk: tokens of a node that make one attention item; default 512, on a GPU by the heads of the model
            (:func:`asyncthink_kernels.tuning.chunk_tokens`).
        progress: called with a short phrase when a part of the building begins, which may take seconds.
        graphs: capture decode steps as CUDA graphs; None: on a GPU. True on the CPU captures nothing, but runs decode
            steps from the same static buffers: for tests. A model whose steps cannot be captured runs eagerly, with
            one RuntimeWarning that says why. After a change of the model call :meth:`refresh`.
        compile: run steps through torch.compile, whole; True for its default backend, or a backend's name. The first
            step compiles (seconds to minutes), and so does the first of another kind: with linked keys, from static
            buffers. Sizes make no kinds. Where torch cannot compile a model, the first step raises torch's own error.
            Logits may differ from uncompiled ones in rounding, and flash-attn is not used.
        pack: on a CPU, run linear layers on packed copies of their weights, which takes their memory again and reads
            them at the memory's full bandwidth (:mod:`asyncthink.model.linear`). None: where they take 32 MiB and more,
            and the copies fit into half of the free memory. Decoders of one model share the copies. Weights changed in
            place are packed again by themselves; what writes through ``.data`` needs :meth:`refresh`. DecoderError for
            True where that cannot be.

    >>> decoder = Decoder(model, num_pages=64)                                         # doctest: +SKIP
    >>> organizer = decoder.cache.root()                                               # doctest: +SKIP
    >>> plan = decoder.cache.plan([(organizer, 3)])                                    # doctest: +SKIP
    >>> decoder.forward(torch.tensor([11, 12, 13]), plan, [2]).shape                   # doctest: +SKIP
    torch.Size([1, 151936])
    """

    graphs: StepGraphs | None = None
    max_length: int | None = None
    _refreshes = 0
    why_device: str = "where the live model lies"
    why_dtype: str | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        page_size: int = 16,
        num_pages: int | None = None,
        memory_bytes: int | None = None,
        chunk: int | None = None,
        graphs: bool | None = None,
        compile: bool | str = False,
        pack: bool | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        say = progress or (lambda what: None)
        model = getattr(model, "_orig_mod", model)
        TreeCache(1, page_size, chunk or page_size)  # refuses sizes that cannot be, before the model is run
        say("checking the model")
        kind = check_kind(model)
        self._borrowed = BorrowedModel(model)
        self.device = next(model.parameters()).device
        changing = length_dependent(model)
        layers = record_layers(self._borrowed, kind, changes_at=None if changing is None else changing[1])
        self.max_length = layers.max_length
        self._ends = layers.calls[0].module, layers.calls[-1].module
        self._made_for = _weights(self._ends)
        say("packing linear layers")
        self.linears, unpacked = packed_linears(model, pack)
        self._borrowed.linears = self.linears
        say("comparing with the model's own logits")
        check_packed_fork(self._borrowed, layers, kind, page_size)

        rotaries: tuple[Rotary, ...] | None = None
        self.why_not: dict[str, str] = {}
        try:
            if changing is not None:
                raise NotRotaryError(f"its {changing[0]} RoPE changes in texts longer than {changing[1]} tokens")
            keys, values = [call.key for call in layers.calls], [call.value for call in layers.calls]
            rotaries = find_rotaries(model, keys, values, layers.positions)
        except NotRotaryError as error:
            self.why_not = dict.fromkeys(("append", "link"), f"{kind} can only join exactly: {error}")
        self.join_modes = tuple(mode for mode in JOIN_MODES if mode not in self.why_not)

        say("reserving the cache")
        token_bytes = sum(s.kv_heads * (s.head_dim + s.v_head_dim) for s in layers.shapes) * layers.dtype.itemsize
        num_pages = num_pages_for(num_pages, memory_bytes, page_size, token_bytes, self.device)
        self.cache = TreeCache(num_pages, page_size, chunk or chunk_for(model, layers, page_size, self.device))
        self.storage = KVStorage(layers.shapes, num_pages, page_size, layers.dtype, self.device)
        self._attention = PagedAttention([call.module for call in layers.calls], self.storage, rotaries)
        if self.linears is None and pack is None:
            self.why_not["pack"] = unpacked
        self._vocabulary = vocabulary(model)
        self._unplaced = padding_token(model) if self._borrowed.first_position else None
        self._kind = kind
        if compile:
            self._borrowed.compiled = CompiledModel(model, "inductor" if compile is True else compile)
        if graphs or (graphs is None and self.device.type == "cuda"):
            if changing is None:
                recorder = CudaRecorder(self.device) if self.device.type == "cuda" else Rerun()
                self.graphs = StepGraphs(self._attention, model, self._pass, recorder)
            else:
                self.why_not["graphs"] = f"{kind} cannot be captured: its {changing[0]} RoPE depends on the positions"

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Decoder:
        """A Decoder for the model at a local folder or hub id; ``options`` are those of the constructor.

        ``device``, ``dtype`` and ``revision`` are those of :func:`asyncthink.model.files.load_network`; ``progress``
        is called with a phrase before each stage. DecoderError, one line, for a path that holds no model, weights that
        are missing or broken, and a model that cannot be served.
        """
        network = load_network(path, revision=revision, device=device, dtype=dtype, progress=progress)
        decoder = cls(network.model, progress=progress, **options)
        decoder.why_device, decoder.why_dtype = network.why_device, network.why_dtype
        return decoder

    def explain(self) -> dict[str, str]:
        """How this decoder runs, and why: a sentence each under "device", "dtype", "pack", "graphs" and others.

        >>> from asyncthink import checkpoint_path
        >>> Decoder.load(checkpoint_path("countdown"), device="cpu", num_pages=64).explain()["dtype"]
        'float32, as the weights are stored'
        """
        return explain(self)

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        return self._borrowed.model

    @functools.cached_property
    def gate(self) -> Gate:
        """One thread at a time: whoever uses the cache of this decoder holds it."""
        return Gate()

    def weights_version(self) -> int:
        """A number that changes with the weights: by :meth:`refresh`, and when they are changed in place or moved.

        What was computed from other weights than those of now has another one. Writing through ``.data`` or to
        inference tensors escapes torch's count of changes and needs :meth:`refresh`.
        """
        weights = [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in self.model.parameters()]
        return hash((self._refreshes, *weights))

    @property
    def compiled(self) -> bool:
        """Whether steps run through torch.compile."""
        return self._borrowed.compiled is not None

    def forward(self, tokens: Tensor, plan: StepPlan, logits_rows: list[int] | Tensor) -> Tensor:
        """One step: tokens [T] int64 in the order of the plan's rows -> logits [N,V] of ``logits_rows`` [N].

        Logits are in the model's dtype: a wider copy takes longer to write than tokens to draw. K and V of the tokens
        are written to the plan's slots. The logits carry no gradient (they are an inference tensor). ValueError where
        tokens, plan and rows do not fit together, before anything is written.
        """
        T = plan.slots.shape[0]
        rows = logits_rows if isinstance(logits_rows, Tensor) else torch.tensor(logits_rows, device="cpu")
        rows = rows.to(torch.int64)  # of no rows torch makes floats
        self._check_weights()
        self._check_step(tokens, plan, rows, T)
        if self.graphs is not None and self.graphs.takes(plan, rows):
            try:
                return self.graphs.step(plan, tokens)
            except CaptureError as error:
                self.graphs = None
                self.why_not["graphs"] = f"{self._kind} cannot be captured: {error}"
                warnings.warn(f"{self.why_not['graphs']}; every step runs eagerly", RuntimeWarning, stacklevel=2)
        return self._pass(self._attention.step(plan, tokens), rows.to(self.device))

    def refresh(self) -> None:
        """The model was changed: captured steps are forgotten where its weights lie elsewhere now, packed weights all.

        DecoderError where the weights have another dtype or device now: the cache has those of before, so that takes a
        new Decoder. Weights that changed where they lie are seen anyway. For other changes of the model see
        :attr:`graphs`. K and V in the cache are those of the old weights: release their branches.
        """
        self._check_weights()
        self._refreshes += 1
        if self.graphs is not None:
            self.graphs.refresh()
        if self.linears is not None:
            self.linears.forget()

    def join(self, dst: Branch, src: Branch, start: int, stop: int, mode: Literal["append", "link"]) -> None:
        """Let ``dst`` go on with tokens [start, stop) of ``src``'s context without computing them again.

        ``append`` copies K, rotated to its new positions, and V; ``link`` reads them where they lie. ValueError for a
        mode that is not in ``join_modes`` (``exact`` is no join of the cache: give the tokens to the next step);
        OutOfPages, with nothing changed, where ``append`` finds no room.
        """
        if mode not in ("append", "link"):
            raise ValueError(f"mode must be 'append' or 'link' (for 'exact' plan the tokens as rows), got {mode!r}")
        if mode in self.why_not:
            raise DecoderError(self.why_not[mode])
        before = dst.length
        scatter = self.cache.join(dst, src, start, stop, mode)
        if scatter is not None:
            try:
                self._attention.append(scatter)
            except BaseException:
                self.cache.truncate(dst, before)  # slots that were never written must not be read
                raise

    def _pass(self, step: Step, rows: Tensor) -> Tensor:
        """One forward pass -> logits [N,V] of rows [N]."""
        logits = self._borrowed.run(step, step.tokens, step.positions, rows)
        if step.calls != len(self._attention.places):
            raise RuntimeError(
                f"expected {len(self._attention.places)} attention calls, got {step.calls}: "
                "the model was changed, or used by another thread, during the step"
            )
        return logits

    def _check_weights(self) -> None:
        """DecoderError after ``model.to(...)``. Two layers are looked at, since a look at all would cost every step."""
        now = _weights(self._ends)
        if now != self._made_for:
            raise DecoderError(
                f"{self._kind}: the weights are {now} now, but this Decoder was made for {self._made_for}; move the "
                "model back, or make a new Decoder (refresh() is for weights that changed their values)"
            )

    def _check_step(self, tokens: Tensor, plan: StepPlan, rows: Tensor, T: int) -> None:
        if tokens.dtype != torch.int64 or tuple(tokens.shape) != (T,):
            raise ValueError(
                f"tokens must be [{T}] int64, as the plan has rows, got {list(tokens.shape)} {tokens.dtype}"
            )
        if rows.ndim != 1 or (rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < T):
            raise ValueError(f"logits_rows must be row numbers in [0, {T}), got {rows.tolist()}")
        # On another device the look would make the host wait; there the embedding itself stops on a bad id.
        if tokens.device.type == "cpu" and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._vocabulary:
            raise ValueError(
                f"tokens must be ids in [0, {self._vocabulary}), got {int(tokens.min())}..{int(tokens.max())}"
            )
        if self._unplaced is not None and tokens.device.type == "cpu" and self._unplaced in tokens:
            raise ValueError(
                f"tokens: expected no padding, to which this model gives no position of its own, got {self._unplaced}"
            )
        if self.max_length is not None and int(plan.positions.max()) >= self.max_length:
            raise ValueError(f"this model takes {self.max_length} positions, got position {int(plan.positions.max())}")


def _weights(modules: Iterable[nn.Module]) -> str:
    """Dtype and device of the first weight of each module that has one."""
    weights = [next(module.parameters(), None) for module in modules]
    return " and ".join(dict.fromkeys(f"{one.dtype} on {one.device}" for one in weights if one is not None))
