"""ForkJoinSampler: many episodes at once, each an organizer and its workers, one forward pass a step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from asyncthink.engine.assembly import assemble
from asyncthink.engine.jobs import Job, Participant
from asyncthink.engine.local import draw_tokens
from asyncthink.engine.requests import Origin, Request, params_for, templates
from asyncthink.engine.rows import Draw
from asyncthink.engine.run import EpisodeRun
from asyncthink.engine.stats import EngineStats
from asyncthink.engine.stream import EpisodeStream
from asyncthink.engine.threads import Thread, Threads
from asyncthink.engine.tools import Tool
from asyncthink.episode.modes import opening
from asyncthink.episode.options import Aggregate, AnswerForm, Context, Guide, JoinMode, Mode, Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.recorder import Listener
from asyncthink.episode.records import Episode, Event, TokenEvent
from asyncthink.model.choice import ModelSource
from asyncthink.protocol.messages import Question
from asyncthink.protocol.prompts import PromptFormat

__all__ = ["EpisodeStream", "ForkJoinSampler", "SamplingParams", "Thread", "TokenEvent", "Tool"]


class ForkJoinSampler:
    """Decode episodes with any transformers decoder on the paged tree cache.

    Args:
        model: a path or hub id; or a live ``nn.Module`` of your program (weights are shared, never copied; after an
            optimizer step call :meth:`refresh`); or a :class:`asyncthink.Decoder`, which samplers can share with its
            K/V cache.
        tokenizer: the model's fast tokenizer; loaded from the path if ``model`` is one.
        prompts: the prompt templates; by default those of the model's ``asyncthink.json``, else
            ``asyncthink.DEFAULT_PROMPTS`` (with the guide "plan", ``PLAN_PROMPTS``) in the tokenizer's chat template,
            or plain where it has none.
        mode, pool, context, join, aggregate, answer, guide, forks, depth: see
            :class:`asyncthink.episode.options.Options`.
        tools: functions that agents may call, in the model's own format of calls (:mod:`asyncthink.engine.tools`).
            Nothing else is ever called.
        device, dtype, revision: of a model that is loaded here. "auto": the GPU where there is one; the stored dtype,
            or float32 where this CPU multiplies much faster in it (:meth:`explain` gives the choice and its reason).
        page_size: tokens of a page: 1, 8, 16 (None), 32, 64 or 128.
        num_pages: pages of the K/V cache; None: a share of the free memory.
        num_states: recurrent states that the cache holds, for a model with such layers: one for each running agent, and
            snapshots. None: an eighth of the free memory, at most 256.
        max_rows: the most new tokens in one step; longer prompts are prefilled in chunks.
        max_episodes: the most episodes that run at once; others wait.
        prefix_pages: the most pages that heads of earlier contexts may hold (:class:`.prefix_cache.PrefixCache`); None:
            all that nobody else needs, the least recently used go first; 0: none are kept.
        graphs: capture decode steps as CUDA graphs; None: on a GPU (see :class:`asyncthink.model.decoder.Decoder`).
        compile: run whole steps through torch.compile: compiled once (up to a minute), then faster.
        pack: on a CPU, run linear layers on packed copies of their weights; None: for 32 MiB of weights and more.
        weights, lm_head: "int8" or "int4": on a CPU, run linear layers on weights in 8 or 4 bits, the last one in 8
            (see :class:`asyncthink.model.decoder.Decoder`).
        fallback: None: a model that cannot run on the paged cache runs on its own caches, with a RuntimeWarning that
            says what forks copy (:func:`asyncthink.model.choice.decoder_for`); False: it is refused; True: on its own.
        progress: called with a phrase before each stage of loading a model.

    Raises:
        ValueError: a model that cannot be loaded or served (DecoderError gives the reason), a join mode that the model
            does not support, options outside their range, a depth above 1 with prompts that have no templates for
            workers that may fork. Also arguments without effect: ``device``, ``dtype``, ``revision`` with a live
            module; these and ``page_size``, ``num_pages``, ``num_states``, ``graphs``, ``compile``, ``pack``,
            ``weights``, ``lm_head``, ``fallback`` with a Decoder; ``num_states`` without recurrent layers.

    A seed makes an episode reproducible in any batch, whatever the cache holds: every agent has its own random stream,
    the attention of a branch is bitwise independent of the other branches, and a prompt whose head was computed before
    lies in the cache as if it had not been (:class:`.prefix_cache.PrefixCache` has the exact guarantee). The matrix
    products of the linear layers are the platform's, and may round differently when the number of rows changes
    (measured on a CPU in float32: 4e-7 relative for one product, 2e-6 for the logits of a small model). That changes a
    token only if the draw is that close to the border between two tokens. The same holds for flash-attn on a GPU: it
    prefills prompts without a shared prefix, while our kernel prefills them when other branches are in the step; for
    an episode of workers that was paused; and for :meth:`pin`, which decides how prompts that begin so are laid out.

    Python's garbage collector sometimes visits the objects of all imported libraries (170 ms were measured within a
    step). A server should call ``gc.freeze()`` after its models are loaded.

    Example:
        >>> from asyncthink import ForkJoinSampler, SamplingParams                              # doctest: +SKIP
        >>> sampler = ForkJoinSampler("path/to/checkpoint", pool=4)                             # doctest: +SKIP
        >>> episodes = sampler.generate(["3 5 7 9 = 24"], SamplingParams(temperature=0.0))      # doctest: +SKIP
        >>> episodes[0].answer, episodes[0].critical_path_tokens                                # doctest: +SKIP
    """

    def __init__(
        self,
        model: ModelSource,
        tokenizer: Any = None,
        *,
        prompts: PromptFormat | None = None,
        mode: str = Mode.ASYNCTHINK,
        pool: int = 4,
        context: str = Context.SHARED,
        join: str = JoinMode.EXACT,
        aggregate: str = Aggregate.VOTE,
        answer: str = AnswerForm.TAGS,
        tools: Sequence[Callable[..., Any] | Tool] = (),
        guide: str = Guide.OFF,
        forks: int | None = None,
        depth: int = 1,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        page_size: int | None = None,
        num_pages: int | None = None,
        num_states: int | None = None,
        max_rows: int = 1024,
        max_episodes: int = 64,
        prefix_pages: int | None = None,
        graphs: bool | None = None,
        compile: bool | str | None = None,
        pack: bool | None = None,
        weights: str | None = None,
        lm_head: str | None = None,
        fallback: bool | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.options = Options(mode, pool, context, join, aggregate, answer, guide, forks, depth)
        sizes: dict[str, Any] = {"page_size": page_size, "num_pages": num_pages, "num_states": num_states}
        sizes |= {"graphs": graphs, "compile": compile, "pack": pack, "weights": weights}
        sizes |= {"lm_head": lm_head, "fallback": fallback}
        limits: dict[str, Any] = {"max_rows": max_rows, "max_episodes": max_episodes, "prefix_pages": prefix_pages}
        source: dict[str, Any] = {"device": device, "dtype": dtype, "revision": revision}
        source |= {"sizes": sizes, "progress": progress}
        draw: Draw = lambda *rows: self._draw(*rows)  # noqa: E731  looked up at each step, as a test may replace it
        parts = assemble(model, tokenizer, prompts, self.options, tools, draw, **limits, **source)
        self.decoder, self.tokenizer, self.codec = parts.decoder, parts.tokenizer, parts.codec
        self.prompts, self.own_prompts, self._prompts_from = parts.prompts, parts.own_prompts, parts.prompts_from
        self.cache, self.prefixes, self.toolbox = parts.decoder.cache, parts.prefixes, parts.toolbox
        self.engine, self.scheduler, self._maker = parts.engine, parts.engine.scheduler, parts.maker
        self.threads = Threads(self.engine, self.tokenizer, self.codec)
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
            questions: N questions; each fills the "organizer" (or "solo") template.
            params: one set for all, or N. With one set all episodes share its seed, so the same question twice gives
                the same episode twice: for a group of different rollouts pass ``params.with_seed(k)`` for each.
            on_event: called with (number of the question, event) for each event.

        Raises:
            ValueError: no list of questions, another number of params, or a prompt that is too long for the cache or
                the model. Nothing has run then.
            RuntimeError: called by a listener of one of this decoder's samplers, within their step.
            Exception: the first one that ``on_event`` raised, after the other episodes have ended; or what the model
                raised. All pages are released.
        """
        sets = params_for(questions, params)
        with self._gate.enter():
            requests = [
                self.request(question, own, name=f"questions[{number}]")
                for number, (question, own) in enumerate(zip(questions, sets, strict=True))
            ]
            self.engine.prepare_prefixes(templates(self.options))
            runs = [
                self._maker.run(request, _numbered(number, on_event) if on_event else None)
                for number, request in enumerate(requests)
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
        """An iterator over the events of one question. Closing it, or dropping it, cancels the episode.

        Raises ValueError as :meth:`generate` does.
        """
        with self._gate.enter():
            request = self.request(question, params, name="questions[0]")
            self.engine.prepare_prefixes(templates(request.options))
            return EpisodeStream(self.engine, functools.partial(self._maker.run, request))

    # -- requests with their own options ------------------------------------------------------------------------

    def request(
        self,
        question: Question,
        params: SamplingParams | None = None,
        options: Options | None = None,
        *,
        name: str = "question",
    ) -> Request:
        """A question, checked and encoded, for :meth:`start`. Any thread may call this at any time.

        ``options`` are the episode's own; None: the sampler's. Raises ValueError as :meth:`generate` does, and for
        options that the model does not support.
        """
        return self._maker.request(question, params, options, name)

    def continuation(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, origin: Origin | None = None
    ) -> Request:
        """A request to continue a text, or token ids, by one agent: no template, and tags are text.

        With an ``origin`` it draws what that agent of an episode would draw here. A text is encoded with the tokens
        that the tokenizer adds to one. Raises ValueError for a prompt without tokens, one that is too long, and an id
        that is not the tokenizer's.
        """
        return self._maker.continuation(prompt, params, origin)

    def start(self, request: Request, listener: Listener | None = None) -> EpisodeRun:
        """Queue the request's episode beside all others. The caller holds the decoder's gate, and calls the steps."""
        self.engine.prepare_prefixes(templates(request.options))
        run = self._maker.run(request, listener)
        self.scheduler.waiting.append(run)
        return run

    def thread(self, prompt: Question) -> Thread:
        """A branch that a program holds (:class:`asyncthink.engine.thread.Thread`).

        ``prompt`` is text as it stands, or chat messages, which the model's own chat template renders. Raises
        ValueError for a prompt that cannot be encoded, has no tokens, or is too long.
        """
        return self.threads.open(prompt)

    def think(
        self, threads: Sequence[Thread], params: SamplingParams | Sequence[SamplingParams] | None = None, **how: Any
    ) -> None:
        """Let threads think in the same steps; arguments as in :meth:`Thread.think`, ``params`` one set or one each."""
        self.threads.think(threads, params, **how)

    async def athink(
        self, threads: Sequence[Thread], params: SamplingParams | Sequence[SamplingParams] | None = None, **how: Any
    ) -> None:
        """As :meth:`think`, for coroutines."""
        await self.threads.athink(threads, params, **how)

    def step(self) -> int:
        """One forward pass that advances every runnable agent; returns the number of new tokens computed.

        An exception in one episode ends that episode as "failed". An agent whose logits are not finite ends; the others
        continue.

        Raises:
            Exception: what the model raised. Every running episode is ended as "cancelled" and released first.
        """
        with self._gate.enter():
            return self.engine.step()

    def refresh(self) -> None:
        """After a change of the weights: drop all that was computed from the old ones, in all samplers of the decoder.

        Raises:
            RuntimeError: an episode is running in a sampler of this decoder.
        """
        with self._gate.enter():
            if not all(user.idle for user in self._gate.users):
                raise RuntimeError(
                    "refresh: expected no running episode in any sampler of this decoder; finish or close them first"
                )
            self.decoder.refresh(weights_only=True)
            self.prefixes.drop_stale()

    def pin(self, question: Question) -> None:
        """Keep the prompt of a question (a document, the messages that a conversation begins with) computed.

        Questions that begin alike begin with it, and read it in place. It stays while pages run out; after a change of
        the weights it is computed again, until :meth:`unpin` or the end of the sampler.

        Raises:
            ValueError: a question that :meth:`generate` would refuse.
            OutOfPages: it does not fit beside what runs and what is pinned. Nothing is pinned then.
        """
        with self._gate.enter():
            self.prefixes.prepare(templates(self.options))
            self.prefixes.pin(opening(self.options), self._maker.prompt(question, "question"))

    def unpin(self, question: Question) -> None:
        """Let go of a pinned question. Raises ValueError if it is not pinned."""
        with self._gate.enter():
            self.prefixes.unpin(self._maker.prompt(question, "question"))

    @property
    def stats(self) -> EngineStats:
        """What this sampler did so far, and what the cache holds now.

        RuntimeError: asked by a listener of one of this decoder's samplers, within their step.
        """
        with self._gate.enter():
            return self.engine.stats

    def explain(self) -> dict[str, str]:
        """How this sampler runs, and why: :meth:`asyncthink.Decoder.explain`, and the origin of the prompts."""
        return self.decoder.explain() | {"prompts": self._prompts_from}

    # -- helpers ------------------------------------------------------------------------------------------------

    def _draw(self, logits: Tensor, runs: Sequence[Job], agents: Sequence[Participant]) -> Sequence[tuple[int, float]]:
        """(token, log-probability) for each row of logits [N, V]; a subclass may override it."""
        return draw_tokens(logits, runs, agents)


def _numbered(number: int, on_event: Callable[[int, Event | TokenEvent], None]) -> Listener:
    return lambda event: on_event(number, event)
