"""ForkJoinSampler: many episodes at once, each an organizer and its workers, one forward pass a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asyncthink.agent import Agent
from asyncthink.codec import Codec
from asyncthink.messages import turns
from asyncthink.model import Decoder
from asyncthink.model_open import open_model
from asyncthink.options import Options
from asyncthink.protocol import PromptFormat
from asyncthink.records import Episode, Event, TokenEvent
from asyncthink.role_heads import RoleHeads
from asyncthink.run import EpisodeRun, Listener
from asyncthink.sampling import SamplingParams, draw
from asyncthink.scheduler import Scheduler, Work
from asyncthink_kernels.cache import OutOfPages

__all__ = ["EpisodeStream", "ForkJoinSampler", "SamplingParams", "TokenEvent"]


class ForkJoinSampler:
    """Decode episodes with any transformers decoder on the paged tree cache.

    Args:
        model: a path or hub id, or a live ``nn.Module`` that belongs to your program (weights are shared, never
            copied; after an optimizer step call :meth:`refresh`), or a :class:`asyncthink.model.Decoder` that other
            samplers use too (one K/V cache for all).
        tokenizer: the model's fast tokenizer; loaded from the path when ``model`` is one.
        prompts: the four prompt templates; by default those of the model's ``asyncthink.json``, else
            :data:`asyncthink.protocol.DEFAULT_PROMPTS` in the tokenizer's chat template, or plain where it has none.
        mode, pool, context, join, aggregate: see :class:`asyncthink.options.Options`.
        device, dtype, revision: of a model that is loaded here. "auto": the GPU where there is one; the stored dtype,
            or float32 where this CPU multiplies much faster in it (:meth:`explain` says which and why).
        page_size: tokens a page: 1, 8, 16 (None), 32, 64 or 128.
        num_pages: pages of the K/V cache; None picks a share of the memory that is free.
        max_rows: new tokens in one step; longer prompts are prefilled in chunks.
        max_episodes: episodes that run at once; more wait.
        graphs: capture decode steps as CUDA graphs; None: on a GPU (see :class:`asyncthink.model.Decoder`).
        compile: run steps through torch.compile, whole: compiled once (most of a minute), then faster.
        pack: on a CPU, linear layers on packed copies of their weights; None: in models of 32 MiB and more (see there).
        progress: called with a phrase before each stage of loading a model.

    Raises:
        ValueError: a model that cannot be loaded or served (:class:`asyncthink.model.DecoderError` says why), a join
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
                f"{self.decoder.why_not.get(join, 'unknown mode')}"
            )
        self.codec = Codec(self.tokenizer, _stop_ids(self.decoder.model))
        self.cache = self.decoder.cache
        self.scheduler = Scheduler(self.cache, max_rows=max_rows, max_episodes=max_episodes)
        self.heads = RoleHeads(self.prompts, self.codec, self.decoder)

    # -- the three ways to use it -------------------------------------------------------------------------------

    def generate(
        self,
        questions: Sequence[str],
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
            ValueError: no list of strings, another number of params, or a prompt longer than the whole cache.
        """
        if isinstance(questions, str):
            raise ValueError("questions: expected a list of strings, got one string")
        params = params if params is not None else SamplingParams()
        self.heads.prepare(self._roles)
        each = [params] * len(questions) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(questions):
            raise ValueError(f"params: expected one or {len(questions)} (one a question), got {len(each)}")
        self._check_fit(questions)
        runs = []
        for number, (question, p) in enumerate(zip(questions, each, strict=True)):
            runs.append(self._new(question, p, _numbered(number, on_event) if on_event else None))
        self.scheduler.waiting.extend(runs)
        try:
            while not all(run.done for run in runs):
                self.step()
        finally:
            for run in runs:
                self.scheduler.drop(run, "cancelled")
        return [run.episode for run in runs]

    def stream(self, question: str, params: SamplingParams | None = None) -> EpisodeStream:
        """One question; iterate over its events as they happen. Closing the iterator cancels the episode."""
        self._check_fit([question])
        self.heads.prepare(self._roles)
        return EpisodeStream(self, question, params or SamplingParams())

    def step(self) -> int:
        """One forward pass that advances every runnable agent; returns the number of new tokens computed.

        Raises:
            Exception: whatever the model raises; every running episode is then ended as "cancelled" and released.
        """
        scheduler = self.scheduler
        try:
            scheduler.admit()
            before = (len(scheduler.running), scheduler.preemptions)
            work = self._gather()
            if work:
                self._advance(work)
            elif scheduler.running and before == (len(scheduler.running), scheduler.preemptions):
                raise RuntimeError("no agent can step and none made room: the scheduler lost one")
            for run in scheduler.running:
                run.after_step()
        except BaseException:
            for run in list(scheduler.running):
                scheduler.drop(run, "cancelled")
            raise
        scheduler.retire()
        return sum(count for _, count in work)

    def refresh(self) -> None:
        """The model's weights changed: forget everything cached from the old ones.

        Raises:
            RuntimeError: an episode is running.
        """
        if not self.scheduler.idle:
            raise RuntimeError("refresh: expected no running episode; finish or close them first")
        self.heads.clear()
        self.decoder.refresh()

    def explain(self) -> dict[str, str]:
        """How this sampler runs, and why: :meth:`asyncthink.model.Decoder.explain`, and where the prompts are from."""
        return self.decoder.explain() | {"prompts": self._prompts_from}

    # -- one step -----------------------------------------------------------------------------------------------

    def _gather(self) -> Work:
        """Joins whose K/V can enter now do so; then the agents that step."""
        for run in list(self.scheduler.running):
            run.prepare()
            for agent in run.agents:
                while (splice := agent.splice) is not None:
                    try:
                        self.decoder.join(agent.place, splice.worker.place, splice.start, splice.stop, splice.mode)
                    except OutOfPages:
                        self.scheduler.make_room()
                        return []
                    agent.queue.popleft()
                    run.spliced(splice)
        return self.scheduler.select()

    def _advance(self, work: Work) -> None:
        plan = self.cache.plan([(agent.place, count) for agent, count in work])
        drawing: list[Agent] = []
        rows: list[int] = []  # of the last token of each agent that draws
        tokens: list[int] = []
        for agent, count in work:
            draws = agent.draws(count)
            tokens += agent.take(count)
            if draws:
                drawing.append(agent)
                rows.append(len(tokens) - 1)
        logits = self.decoder.forward(torch.tensor(tokens, device="cpu"), plan, rows)
        if drawing:
            owner = {id(agent): run for run in self.scheduler.running for agent in run.agents}
            runs = [owner[id(agent)] for agent in drawing]
            for run, agent, (token, logprob) in zip(runs, drawing, self._draw(logits, runs, drawing), strict=True):
                run.accept(agent, token, logprob)

    def _draw(self, logits: Tensor, runs: Sequence[EpisodeRun], agents: Sequence[Agent]) -> list[tuple[int, float]]:
        """(token, log-probability) for each row of logits [N, V]; runs and agents are the rows' owners."""
        numbers = [agent.trace.agent for agent in agents], [agent.trace.decoded for agent in agents]
        return list(zip(*draw(logits, [run.params for run in runs], *numbers), strict=True))

    # -- helpers ------------------------------------------------------------------------------------------------

    def _new(self, question: str, params: SamplingParams, listener: Listener | None) -> EpisodeRun:
        return EpisodeRun(
            question,
            params,
            self.options,
            codec=self.codec,
            cache=self.cache,
            prompts=self.heads,
            bytes_per_token=self.decoder.storage.bytes_per_token,
            listener=listener,
        )

    @property
    def _roles(self) -> list[str]:
        """Templates whose heads agents branch from; the one that opens an episode comes first."""
        if self.options.mode != "asyncthink":
            return ["solo"]
        return ["organizer"] + (["worker_isolated"] if self.options.context == "isolated" else [])

    def _check_fit(self, questions: Sequence[str]) -> None:
        for number, question in enumerate(questions):
            turns(question, f"questions[{number}]")
            length = len(self.heads.encode(self._roles[0], question=question))
            capacity = self.cache.num_pages * self.cache.page_size
            if not length:
                raise ValueError(f"questions[{number}]: expected a prompt of at least one token, got none")
            if length >= capacity:
                raise ValueError(
                    f"questions[{number}]: expected fewer than {capacity} tokens (the K/V cache's "
                    f"{self.cache.num_pages} pages of {self.cache.page_size}), got {length}"
                )


class EpisodeStream(Iterator[Event | TokenEvent]):
    """Events of one running episode; :attr:`episode` grows as it goes and is whole when the iterator ends."""

    def __init__(self, sampler: ForkJoinSampler, question: str, params: SamplingParams) -> None:
        self._sampler = sampler
        self._events: list[Event | TokenEvent] = []
        self._run = sampler._new(question, params, self._events.append)
        self.episode = self._run.episode
        sampler.scheduler.waiting.append(self._run)

    def __next__(self) -> Event | TokenEvent:
        while not self._events:
            if self._run.done:
                raise StopIteration
            self._sampler.step()
        return self._events.pop(0)

    def close(self) -> None:
        """Cancel the episode, if it still runs, and release its pages."""
        self._sampler.scheduler.drop(self._run, "cancelled")

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
