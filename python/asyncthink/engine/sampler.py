"""ForkJoinSampler: many episodes at once, each an organizer and its workers, one forward pass a step."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asyncthink.engine.agent import Agent
from asyncthink.engine.detokenize import ModelTexts
from asyncthink.engine.local import LocalEngine, draw_tokens
from asyncthink.engine.open import open_model
from asyncthink.engine.prefix_cache import PrefixCache
from asyncthink.engine.run import EpisodeRun
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.modes import STRATEGIES
from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.recorder import Listener
from asyncthink.episode.records import Episode, Event, TokenEvent
from asyncthink.model.decoder import Decoder
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.messages import Question, turns
from asyncthink.protocol.tags import PromptFormat

__all__ = ["EpisodeStream", "ForkJoinSampler", "SamplingParams", "TokenEvent"]


class ForkJoinSampler:
    """Decode episodes with any transformers decoder on the paged tree cache.

    Args:
        model: a path or hub id, or a live ``nn.Module`` that belongs to your program (weights are shared, never
            copied; after an optimizer step call :meth:`refresh`), or a :class:`asyncthink.Decoder` that other samplers
            use too (one K/V cache for all).
        tokenizer: the model's fast tokenizer; loaded from the path when ``model`` is one.
        prompts: the four prompt templates; by default those of the model's ``asyncthink.json``, else
            ``asyncthink.DEFAULT_PROMPTS`` in the tokenizer's chat template, or plain where it has none.
        mode, pool, context, join, aggregate: see :class:`asyncthink.episode.options.Options`.
        device, dtype, revision: of a model that is loaded here. "auto": the GPU where there is one; the stored dtype,
            or float32 where this CPU multiplies much faster in it (:meth:`explain` says which and why).
        page_size: tokens a page: 1, 8, 16 (None), 32, 64 or 128.
        num_pages: pages of the K/V cache; None picks a share of the memory that is free.
        max_rows: new tokens in one step; longer prompts are prefilled in chunks.
        max_episodes: episodes that run at once; more wait.
        graphs: capture decode steps as CUDA graphs; None: on a GPU (see :class:`asyncthink.model.decoder.Decoder`).
        compile: run steps through torch.compile, whole: compiled once (most of a minute), then faster.
        pack: on a CPU, linear layers on packed copies of their weights; None: in models of 32 MiB and more (see there).
        progress: called with a phrase before each stage of loading a model.

    Raises:
        ValueError: a model that cannot be loaded or served (DecoderError says why), a join
            mode that this model does not support, options outside their range. Arguments that would not count:
            ``device``, ``dtype``, ``revision`` beside a live module; these and ``page_size``, ``num_pages``,
            ``graphs``, ``compile``, ``pack`` beside a Decoder.

    A seed makes an episode reproducible whatever else is in the batch: every agent has its own random stream, and the
    attention of a branch is bitwise independent of what decodes beside it. The linear layers are the platform's: a
    matrix product may round differently when the number of rows changes (measured on a CPU in float32: 4e-7 relative
    for one product, 2e-6 for the logits of a small model), which can only matter where a draw falls that close to the
    border between two tokens. The same goes for flash-attn on a GPU, where prompts that begin without a common head
    may be prefilled by it or, beside others, by our kernel.

    Python's garbage collector now and then walks the objects of all imported libraries (170 ms were seen amid a step);
    a server calls ``gc.freeze()`` once its models are loaded.

    Example:
        >>> from asyncthink import ForkJoinSampler, SamplingParams                              # doctest: +SKIP
        >>> sampler = ForkJoinSampler("path/to/checkpoint", pool=4)                             # doctest: +SKIP
        >>> episodes = sampler.generate(["3 5 7 9 = 24"], SamplingParams(temperature=0.0))      # doctest: +SKIP
        >>> episodes[0].answer, episodes[0].critical_path_tokens                                # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path | nn.Module | Decoder,
        tokenizer: Any = None,
        *,
        prompts: PromptFormat | None = None,
        mode: str = "asyncthink",
        pool: int = 4,
        context: str = "shared",
        join: Literal["exact", "append", "link"] = "exact",
        aggregate: str = "vote",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        page_size: int | None = None,
        num_pages: int | None = None,
        max_rows: int = 1024,
        max_episodes: int = 64,
        graphs: bool | None = None,
        compile: bool | str | None = None,
        pack: bool | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.options = Options(mode, pool, context, join, aggregate)
        sizes: dict[str, Any] = {"page_size": page_size, "num_pages": num_pages}
        sizes |= {"graphs": graphs, "compile": compile, "pack": pack}
        place: dict[str, Any] = {"device": device, "dtype": dtype, "revision": revision}
        opened = open_model(model, tokenizer, prompts, sizes=sizes, **place, progress=progress)
        self.decoder, self.tokenizer, self.prompts, self._prompts_from = opened
        if join not in self.decoder.join_modes:
            raise ValueError(
                f"join: this model offers {', '.join(self.decoder.join_modes)}, got {join!r}: "
                f"{self.decoder.unavailable.get(join, 'unknown mode')}"
            )
        self.codec = Codec(self.tokenizer, _stop_ids(self.decoder.model))
        self.cache = self.decoder.cache
        self.heads = PrefixCache(self.prompts, self.codec, self.decoder)
        self._texts = ModelTexts(self.codec, self.heads.encode)
        self.engine = LocalEngine(
            self.decoder, self.heads, lambda *rows: self._draw(*rows), max_rows=max_rows, max_episodes=max_episodes
        )
        self.scheduler = self.engine.scheduler
        self._gate = self.decoder.gate

    # -- the three ways to use it -------------------------------------------------------------------------------

    def generate(
        self,
        questions: Sequence[Question],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_event: Callable[[int, Event | TokenEvent], None] | None = None,
    ) -> list[Episode]:
        """Answer every question; episodes in the order of the questions.

        Args:
            questions: N questions; each is put into the "organizer" (or "solo") template.
            params: one set for all, or N. With one set all episodes share its seed, so the same question twice gives
                the same episode twice: for a group of different rollouts pass ``params.with_seed(k)`` for each.
            on_event: called with (number of the question, event) as things happen.

        Raises:
            ValueError: no list of strings, another number of params, or a prompt longer than the cache or the model
                takes; nothing has run then.
            RuntimeError: called by a listener of this decoder's samplers, from within their step.
            Exception: the first one that ``on_event`` raised, after the other episodes have ended; or what the model
                raised. All pages are released.
        """
        if isinstance(questions, str) or not isinstance(questions, Sequence):
            got = "one string" if isinstance(questions, str) else type(questions).__name__
            raise ValueError(f"questions: expected a list of strings, got {got}")
        params = params if params is not None else SamplingParams()
        each = [params] * len(questions) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(questions):
            raise ValueError(f"params: expected one or {len(questions)} (one a question), got {len(each)}")
        for number, one in enumerate(each):
            if not isinstance(one, SamplingParams):
                raise ValueError(f"params[{number}]: expected SamplingParams, got {type(one).__name__}")
        with self._gate.enter():
            prompts = [self._prompt(question, f"questions[{number}]") for number, question in enumerate(questions)]
            self.engine.prepare_heads(self._templates)
            runs = [
                self._new(question, prompt, p, _numbered(number, on_event) if on_event else None)
                for number, (question, prompt, p) in enumerate(zip(questions, prompts, each, strict=True))
            ]
            self.scheduler.waiting.extend(runs)
            try:
                while not all(run.done for run in runs):
                    self.engine.step()
                    self._gate.catch_up()
            finally:
                self.engine.abandon(runs)
        for run in runs:
            if run.core.record.listener_error is not None:
                raise run.core.record.listener_error
        return [run.core.episode for run in runs]

    def stream(self, question: Question, params: SamplingParams | None = None) -> EpisodeStream:
        """One question; iterate over its events as they happen. Closing or forgetting the iterator cancels the episode.

        Raises ValueError as :meth:`generate` does.
        """
        params = params if params is not None else SamplingParams()
        if not isinstance(params, SamplingParams):
            raise ValueError(f"params: expected SamplingParams, got {type(params).__name__}")
        with self._gate.enter():
            prompt = self._prompt(question, "questions[0]")
            self.engine.prepare_heads(self._templates)
            return EpisodeStream(self, question, prompt, params)

    def step(self) -> int:
        """One forward pass that advances every runnable agent; returns the number of new tokens computed.

        An episode on which the program fails ends alone, as "failed". An agent whose logits are not finite ends alone.

        Raises:
            Exception: whatever the model raises; every running episode is then ended as "cancelled" and released.
        """
        with self._gate.enter():
            return self.engine.step()

    def refresh(self) -> None:
        """The model's weights changed: forget everything cached from the old ones, in all samplers of the decoder.

        Raises:
            RuntimeError: an episode is running, in this sampler or in another one of the same decoder.
        """
        with self._gate.enter():
            if not all(user.idle for user in self._gate.users):
                raise RuntimeError(
                    "refresh: expected no running episode in any sampler of this decoder; finish or close them first"
                )
            self.decoder.refresh()
            self.engine.drop_stale_heads()

    def explain(self) -> dict[str, str]:
        """How this sampler runs, and why: :meth:`asyncthink.Decoder.explain`, and where the prompts are from."""
        return self.decoder.explain() | {"prompts": self._prompts_from}

    # -- helpers ------------------------------------------------------------------------------------------------

    def _draw(self, logits: Tensor, runs: Sequence[EpisodeRun], agents: Sequence[Agent]) -> Sequence[tuple[int, float]]:
        """(token, log-probability) for each row of logits [N, V]; a subclass may draw in its own way."""
        return draw_tokens(logits, runs, agents)

    def _new(
        self, question: Question, prompt: Sequence[int], params: SamplingParams, listener: Listener | None
    ) -> EpisodeRun:
        core = EpisodeCore(
            turns(question)[-1][1],
            prompt,
            params,
            self.options,
            self._texts,
            max_length=self.decoder.max_length,
            listener=listener,
        )
        if not isinstance(question, str):
            core.episode.meta["messages"] = [dict(message) for message in question]
        return EpisodeRun(core, self.cache, self.heads, self.decoder.storage.bytes_per_token)

    @property
    def _templates(self) -> list[str]:
        """Templates whose heads agents branch from; the one that opens an episode comes first."""
        isolated = self.options.mode == "asyncthink" and self.options.context == "isolated"
        return [STRATEGIES[self.options.mode].opening, *(["worker_isolated"] if isolated else [])]

    def _prompt(self, question: Question, name: str) -> list[int]:
        """The tokens that open an episode. Raises ValueError where the cache or the model cannot hold them."""
        turns(question, name)
        try:
            tokens = self.heads.encode(self._templates[0], question=question)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        capacity, limit = self.cache.num_pages * self.cache.page_size, self.decoder.max_length
        if len(tokens) >= capacity:
            raise ValueError(
                f"{name}: expected fewer than {capacity} tokens (the K/V cache's "
                f"{self.cache.num_pages} pages of {self.cache.page_size}), got {len(tokens)}"
            )
        if limit is not None and len(tokens) >= limit:
            raise ValueError(
                f"{name}: expected fewer than {limit} tokens (the positions of this model), got {len(tokens)}"
            )
        return tokens


class EpisodeStream(Iterator[Event | TokenEvent]):
    """Events of one running episode; :attr:`episode` grows as it goes and is whole when the iterator ends.

    A stream that is closed, or that nobody holds any more, cancels its episode and releases its pages: at once, or,
    when another call is at work on the decoder, as soon as that one is through.
    """

    def __init__(
        self, sampler: ForkJoinSampler, question: Question, prompt: Sequence[int], params: SamplingParams
    ) -> None:
        self._sampler = sampler
        self._events: deque[Event | TokenEvent] = deque()
        # The run knows the events, never the stream: a stream that is forgotten can be collected while it runs.
        self._run = sampler._new(question, prompt, params, self._events.append)
        self.episode = self._run.core.episode
        sampler.scheduler.waiting.append(self._run)
        drop = functools.partial(sampler.engine.drop, self._run)
        self._cancel = weakref.finalize(self, sampler._gate.later, drop)
        self._cancel.atexit = False

    def __next__(self) -> Event | TokenEvent:
        while not self._events:
            if self._run.done:
                raise StopIteration
            with self._sampler._gate.enter():
                if not self._events and not self._run.done:
                    self._sampler.engine.step()
        return self._events.popleft()

    def close(self) -> None:
        """Cancel the episode, if it still runs, and release its pages."""
        self._cancel()

    def __enter__(self) -> EpisodeStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _numbered(number: int, on_event: Callable[[int, Event | TokenEvent], None]) -> Listener:
    return lambda event: on_event(number, event)


def _stop_ids(model: nn.Module) -> list[int]:
    config = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
