"""RemoteSampler: the episodes of a ForkJoinSampler, drawn by servers over HTTP. No torch, no transformers."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from asyncthink.engine.prompting import Prompter, default_prompts
from asyncthink.engine.remote.driver import Order
from asyncthink.engine.remote.fleet import Fleet
from asyncthink.engine.remote.replicas import RemoteStats
from asyncthink.engine.remote.retries import Retries
from asyncthink.engine.remote.stream import RemoteStream
from asyncthink.engine.remote.tokenizer import FolderTokenizer, model_folder
from asyncthink.engine.requests import Request, check_params, check_positions, check_templates, params_for
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.options import Aggregate, AnswerForm, Context, Guide, JoinMode, Mode, Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.recorder import Listener
from asyncthink.episode.records import Episode, Event, TokenEvent
from asyncthink.protocol.chat import prompts_for
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.messages import Question, turns
from asyncthink.protocol.prompts import FILE_NAME, PromptFormat


class RemoteSampler:
    """Decode episodes on ``asyncthink serve``, vLLM or SGLang, which exchange token ids with us.

    The arguments and the records are those of :class:`asyncthink.ForkJoinSampler`. Against ``asyncthink serve`` the
    episodes are, too: the same seed gives the same draws. Other servers draw with random numbers of their own, from
    seeds that follow from the episode's; greedily they give the same, up to the rounding of their kernels.

    Args:
        servers: addresses of servers with the same model, such as ``["http://10.0.0.1:8000"]``. An episode keeps to one
            of them, whose prefix cache makes its forks cheap; if that one dies, it goes on at another one. Or a
            :class:`.fleet.Fleet`, which samplers can share, and which has the arguments of the connection.
        tokenizer: the folder or hub id of the model (its ``tokenizer.json`` and the small files beside it are read, no
            weights); or a transformers fast tokenizer.
        model: the model's name on the servers; None: the first one that each has.
        prompts: the prompt templates, as for :class:`asyncthink.ForkJoinSampler`.
        mode, pool, context, join, aggregate, answer, guide, forks, depth: see
            :class:`asyncthink.episode.options.Options`. Joins are "exact". Guides need ``asyncthink serve``.
        kind: "asyncthink", "vllm" or "sglang"; None: as each server says.
        api_key: sent as ``Authorization: Bearer ...``.
        stop_ids: with a tokenizer object, token ids at which an agent ends beside its end of text.
        order: "steps" or "arrival" (:class:`asyncthink.engine.remote.driver.Order`).
        max_episodes, max_requests: the most that are under way at once; others wait.
        timeout: seconds for which a server may be silent within a request.
        retries: how failed requests are tried again.
        revision: of a hub id.

    Raises:
        ValueError: a tokenizer that cannot be loaded; options outside their range, or that the servers cannot serve.
        UnreachableError: no server answers now. RefusedError: one that answers is of no kind that is known.

    Example:
        >>> sampler = RemoteSampler(["http://localhost:8000"], "path/to/checkpoint", pool=4)     # doctest: +SKIP
        >>> sampler.generate(["3 5 7 9 = 24"], SamplingParams(temperature=0.0))[0].answer       # doctest: +SKIP
    """

    def __init__(
        self,
        servers: Sequence[str] | Fleet,
        tokenizer: Any,
        *,
        model: str | None = None,
        prompts: PromptFormat | None = None,
        mode: str = Mode.ASYNCTHINK,
        pool: int = 4,
        context: str = Context.SHARED,
        join: str = JoinMode.EXACT,
        aggregate: str = Aggregate.VOTE,
        answer: str = AnswerForm.TAGS,
        guide: str = Guide.OFF,
        forks: int | None = None,
        depth: int = 1,
        kind: str | None = None,
        api_key: str | None = None,
        stop_ids: Sequence[int] = (),
        order: str = Order.STEPS,
        max_episodes: int = 64,
        max_requests: int = 256,
        timeout: float = 120.0,
        retries: Retries | None = None,
        revision: str | None = None,
    ) -> None:
        self.options = Options(mode, pool, context, join, aggregate, answer, guide, forks, depth)
        self.order = Order(order)
        saved: PromptFormat | None = None
        if isinstance(tokenizer, str | Path):
            folder = model_folder(tokenizer, revision)
            tokenizer, saved = FolderTokenizer(folder), PromptFormat.find(folder)
            stop_ids = tokenizer.stop_ids
        self.tokenizer, self.codec = tokenizer, Codec(tokenizer, stop_ids)
        self.own_prompts = prompts if prompts is not None else saved
        self.prompts = self.own_prompts or prompts_for(tokenizer, default=default_prompts(self.options.guide))
        own = self.own_prompts is not None
        self._prompts_from = "given" if prompts is not None else FILE_NAME if own else "default"
        self._prompter = Prompter(tokenizer, self.codec, self.prompts, own=own, guide=self.options.guide)
        limits: dict[str, Any] = {"max_episodes": max_episodes, "max_requests": max_requests, "timeout": timeout}
        named: dict[str, Any] = {"model": model, "kind": kind, "api_key": api_key, "retries": retries}
        self.fleet = servers if isinstance(servers, Fleet) else Fleet(servers, **named, **limits)
        try:
            self._check_options(self.options)
        except BaseException:
            if self.fleet is not servers:
                self.fleet.close()
            raise

    # -- the ways to use it -----------------------------------------------------------------------------------------

    def generate(
        self,
        questions: Sequence[Question],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_event: Callable[[int, Event | TokenEvent], None] | None = None,
    ) -> list[Episode]:
        """Answer every question; episodes in the order of the questions.

        Arguments as in :meth:`asyncthink.ForkJoinSampler.generate`; ``on_event`` is called in the sampler's own thread.
        An episode that a server refuses ends as "failed", with a warning.

        Raises:
            ValueError: as there. Nothing has run then.
            UnreachableError: no server answered for as long as :class:`Retries` allows. All episodes are cancelled.
            Exception: the first one that ``on_event`` raised, after the other episodes have ended.
        """
        cores = self._cores(questions, params, on_event)
        work = self.fleet.start(cores, self.order)
        try:
            work.result()
        finally:
            work.cancel()  # Ctrl-C leaves nothing under way
        return _finished(cores)

    async def agenerate(
        self,
        questions: Sequence[Question],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_event: Callable[[int, Event | TokenEvent], None] | None = None,
    ) -> list[Episode]:
        """As :meth:`generate`, for coroutines. A task that is cancelled cancels its episodes and their requests."""
        cores = self._cores(questions, params, on_event)
        await asyncio.wrap_future(self.fleet.start(cores, self.order))
        return _finished(cores)

    def stream(self, question: Question, params: SamplingParams | None = None) -> RemoteStream:
        """An iterator over the events of one question. Closing it, or dropping it, cancels the episode."""
        request = self.request(question, params, name="questions[0]")

        def start(listener: Listener) -> tuple[Episode, Future[None]]:
            core = self._core(request, listener)
            return core.episode, self.fleet.start([core], self.order)

        return RemoteStream(start)

    def request(
        self,
        question: Question,
        params: SamplingParams | None = None,
        options: Options | None = None,
        *,
        name: str = "question",
    ) -> Request:
        """A question, checked and encoded. ``options`` are the episode's own; None: the sampler's.

        Raises ValueError as :meth:`generate` does, and for options that the servers do not support.
        """
        params = params if params is not None else SamplingParams()
        options = options if options is not None else self.options
        check_params(params, "params")
        self._check_options(options)
        tokens = self._prompter.tokens(question, name, options)
        check_positions(tokens, name, self.fleet.max_length)
        return Request(question, tokens, params, options)

    @property
    def stats(self) -> RemoteStats:
        """What was asked of the servers so far."""
        return dataclasses.replace(self.fleet.stats)

    def explain(self) -> dict[str, str]:
        """Where and how this sampler runs."""
        servers = {url: f"{about.kind}, {about.model}" for url, about in self.fleet.about.items()}
        return servers | {
            "positions": str(self.fleet.max_length),
            "order": str(self.order),
            "prompts": self._prompts_from,
        }

    def close(self) -> None:
        """Cancel what runs, and close the connections. A fleet of several samplers is closed for all of them."""
        self.fleet.close()

    def __enter__(self) -> RemoteSampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- helpers ------------------------------------------------------------------------------------------------

    def _check_options(self, options: Options) -> None:
        self.fleet.check(options)
        check_templates(self._prompter.format(options), options)

    def _cores(
        self,
        questions: Sequence[Question],
        params: SamplingParams | Sequence[SamplingParams] | None,
        on_event: Callable[[int, Event | TokenEvent], None] | None,
    ) -> list[EpisodeCore]:
        asked = zip(questions, params_for(questions, params), strict=True)
        requests = [self.request(question, own, name=f"questions[{k}]") for k, (question, own) in enumerate(asked)]
        return [
            self._core(request, functools.partial(on_event, number) if on_event else None)
            for number, request in enumerate(requests)
        ]

    def _core(self, request: Request, listener: Listener | None) -> EpisodeCore:
        core = EpisodeCore(
            turns(request.question)[-1][1],
            request.prompt,
            request.params,
            request.options,
            self._prompter.texts(request.options),
            max_length=self.fleet.max_length,
            listener=listener,
        )
        if not isinstance(request.question, str):
            core.episode.meta["messages"] = [dict(message) for message in request.question]
        return core


def _finished(cores: Sequence[EpisodeCore]) -> list[Episode]:
    for core in cores:
        if core.record.listener_error is not None:
            raise core.record.listener_error
    return [core.episode for core in cores]
