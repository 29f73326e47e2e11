"""Threads: branches of one model's context that a program holds. They write, fork, think, join, score, and are closed.

All threads of a sampler share its K/V cache and its steps with each other and with its episodes.
"""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from asyncthink.engine.grammar import Grammars, Matcher
from asyncthink.engine.local import LocalEngine
from asyncthink.engine.requests import check_length, check_params
from asyncthink.engine.stepper import Stepper
from asyncthink.engine.stretch import WHOLE, Stretch
from asyncthink.engine.stretches import Stretches
from asyncthink.engine.thoughts import Scoring, Think
from asyncthink.engine.thread import Thread
from asyncthink.engine.thread_jobs import Reader, ThreadJob
from asyncthink.engine.thread_state import Score, Thought, ThreadState
from asyncthink.episode.params import SamplingParams
from asyncthink.model.checks import output_width
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.continuations import continuing_tokens, opening_tokens
from asyncthink.protocol.messages import Question

__all__ = ["Score", "Thought", "Thread", "Threads"]


class Threads:
    """Opens threads on an engine and runs their thoughts. Usually reached through a sampler's ``thread`` and ``think``.

    Args:
        engine: runs the thoughts.
        tokenizer, codec: of the engine's model.
    """

    def __init__(self, engine: LocalEngine, tokenizer: Any, codec: Codec) -> None:
        self.engine, self.tokenizer, self.codec = engine, tokenizer, codec
        self.gate = engine.gate
        self.pool = Stretches(engine.decoder.cache, engine.decoder.weights_version)
        self.stepper = Stepper(engine)
        engine.spares.append(self.pool)

    def open(self, prompt: Question) -> Thread:
        """A thread whose context begins with ``prompt``: text, or chat messages (see :meth:`Thread.write`).

        Raises ValueError for a prompt that cannot be encoded, has no tokens, or is too long.
        """
        tokens = opening_tokens(self.tokenizer, self.codec, prompt)
        if not tokens:
            raise ValueError("prompt: expected at least one token, got none")
        self.check_length(tokens, "prompt")
        with self.gate.enter():
            stretch = Stretch()
            stretch.add(tokens)
            return self.adopt(ThreadState(stretch, len(tokens)))

    def adopt(self, state: ThreadState) -> Thread:
        """A thread with this state. Dropping the last reference to it closes it."""
        state.stretch.users[state] = WHOLE
        thread = Thread(self, state)
        finalizer = weakref.finalize(thread, self.gate.later, functools.partial(self.forget, state))
        finalizer.atexit = False
        return thread

    def encode(self, text: Question) -> list[int]:
        """The tokens of text or messages that follow in a context."""
        return continuing_tokens(self.tokenizer, self.codec, text)

    def check_length(self, tokens: Sequence[int], name: str) -> None:
        """Raises ValueError if the cache, or the model's positions, cannot hold the tokens and another one."""
        check_length(tokens, name, self.engine.decoder.cache, self.engine.decoder.max_length)

    def check_join(self, mode: str) -> None:
        """Raises ValueError for a join mode that the model lacks."""
        decoder = self.engine.decoder
        if mode not in decoder.join_modes:
            reason = f": {decoder.unavailable[mode]}" if mode in decoder.unavailable else ""
            raise ValueError(f"mode: this model offers {', '.join(decoder.join_modes)}, got {mode!r}{reason}")

    def forget(self, state: ThreadState) -> None:
        """Close a thread: cancel its jobs and let its tokens go, but those that other threads use."""
        state.closed = True
        self.engine.abandon([job for job in state.jobs if not job.done])
        if state in state.stretch.users:
            self.pool.release(state.stretch, state)

    # -- thinking -----------------------------------------------------------------------------------------------

    def think(
        self, threads: Sequence[Thread], params: SamplingParams | Sequence[SamplingParams] | None, **how: Any
    ) -> None:
        """Let threads think in the same steps; see :meth:`Thread.think`."""
        with self._thinking(threads, params, **how) as jobs:
            self.stepper.run(jobs)

    async def athink(
        self, threads: Sequence[Thread], params: SamplingParams | Sequence[SamplingParams] | None, **how: Any
    ) -> None:
        """As :meth:`think`. Cancelling the task ends the drawing; what was drawn stays in the threads."""
        with self._thinking(threads, params, **how) as jobs:
            await self.stepper.wait(jobs)

    def score(self, thread: Thread, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """See :meth:`Thread.score`."""
        with self._scoring(thread, continuations) as jobs:
            self.stepper.run(jobs)
        return [Score(tuple(job.continuation), tuple(job.logprobs)) for job in jobs]

    async def ascore(self, thread: Thread, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """As :meth:`score`."""
        with self._scoring(thread, continuations) as jobs:
            await self.stepper.wait(jobs)
        return [Score(tuple(job.continuation), tuple(job.logprobs)) for job in jobs]

    @contextmanager
    def _thinking(
        self,
        threads: Sequence[Thread],
        params: SamplingParams | Sequence[SamplingParams] | None,
        *,
        keep_stop: bool = False,
        regex: str | None = None,
        json_schema: str | Mapping[str, Any] | None = None,
        choices: Sequence[str] | None = None,
    ) -> Iterator[list[Think]]:
        """Jobs for the threads; what they drew is in the threads afterwards. Checked before anything is touched."""
        sets = thread_params(len(threads), params)
        matcher = self._matcher(regex, json_schema, choices)
        vocabulary = output_width(self.engine.decoder.model) if matcher is not None else 0
        with self.gate.enter():
            states = [thread.still() for thread in threads]
            if len(set(states)) < len(states):
                raise ValueError("threads: expected each thread once, got one of them twice")
            self._require_room(states)
            jobs = [
                Think(
                    Reader(state.stretch, length, min(state.stretch.start, length - 1), state.number, writes=True),
                    self.pool, self.engine.prefixes, own, codec=self.codec,
                    max_length=self.engine.decoder.max_length, keep_stop=keep_stop,
                    matcher=matcher and matcher.copy(), vocabulary=vocabulary,
                )
                for state, own in zip(states, sets, strict=True)
                for length in [state.stretch.length]
            ]  # fmt: skip
            for state, job in zip(states, jobs, strict=True):
                state.jobs = [job]
        try:
            yield jobs
        finally:
            with self.gate.enter():
                self._end(states, jobs)
                for state, job in zip(states, jobs, strict=True):
                    if not state.closed:
                        state.thought = Thought.of(job)
        _raise(states, jobs)

    @contextmanager
    def _scoring(self, thread: Thread, continuations: Sequence[str | Sequence[int]]) -> Iterator[list[Scoring]]:
        if isinstance(continuations, str):
            raise ValueError("continuations: expected a list of texts or token ids, got one string")
        encoded = [self.encode(given) if isinstance(given, str) else list(given) for given in continuations]
        with self.gate.enter():
            state = thread.still()
            self._require_room([state])
            length = state.stretch.length
            for number, tokens in enumerate(encoded):
                if not tokens:
                    raise ValueError(f"continuations[{number}]: expected at least one token, got none")
                self.check_length(range(length + len(tokens) - 1), f"continuations[{number}] behind the thread")
            jobs = []
            for tokens in encoded:
                stretch = Stretch(state.stretch, length)
                stretch.add(tokens[:-1])
                stretch.users[state] = WHOLE
                reader = Reader(stretch, stretch.length, length - 1, state.number, scores=True)
                jobs.append(Scoring(reader, self.pool, self.engine.prefixes, SamplingParams(), tokens))
            state.jobs = list(jobs)
        try:
            yield jobs
        finally:
            with self.gate.enter():
                self._end([state], jobs)
                for job in jobs:
                    self.pool.release(job.target.stretch, state)
        _raise([state], jobs)

    def _end(self, states: Sequence[ThreadState], jobs: Sequence[ThreadJob]) -> None:
        self.engine.abandon([job for job in jobs if not job.done])
        for state in states:
            state.jobs = []

    def _require_room(self, states: Sequence[ThreadState]) -> None:
        """Each thread has a token, and the model a position for another one."""
        for state in states:
            if not state.stretch.length:
                raise ValueError(f"thread {state.number}: expected at least one token to go on behind, got none")
            self.check_length(range(state.stretch.length), f"thread {state.number}")

    def _matcher(
        self, regex: str | None, json_schema: str | Mapping[str, Any] | None, choices: Sequence[str] | None
    ) -> Matcher | None:
        if choices is not None:
            if isinstance(choices, str) or not choices or not all(isinstance(c, str) and c for c in choices):
                raise ValueError(f"choices: expected a list of texts that are not empty, got {choices!r}")
            lark = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        given = {"lark": lark if choices is not None else None, "regex": regex, "json_schema": json_schema}
        wanted = {name: value for name, value in given.items() if value is not None}
        if len(wanted) > 1:
            names = ", ".join("choices" if name == "lark" else name for name in wanted)
            raise ValueError(f"guide: expected one of regex, json_schema, choices, got {names}")
        return self._grammars.matcher(**wanted) if wanted else None  # type: ignore[arg-type]

    @functools.cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.codec, output_width(self.engine.decoder.model))


def thread_params(count: int, params: SamplingParams | Sequence[SamplingParams] | None) -> list[SamplingParams]:
    """Parameters for each of ``count`` threads. Raises ValueError for another number, or a limit of episodes."""
    params = params if params is not None else SamplingParams()
    sets = [params] * count if isinstance(params, SamplingParams) else list(params)
    if len(sets) != count:
        raise ValueError(f"params: expected one or {count} (one a thread), got {len(sets)}")
    for number, given in enumerate(sets):
        check_params(given, f"params[{number}]")
        if given.max_episode_tokens is not None:
            got = given.max_episode_tokens
            raise ValueError(
                f"params[{number}].max_episode_tokens: expected None, as a thread is no episode, got {got}"
            )
    return sets


def _raise(states: Sequence[ThreadState], jobs: Sequence[ThreadJob]) -> None:
    """What a thread's own code raised, or why it was ended by others."""
    for job in jobs:
        if job.error is not None:
            raise job.error
    for state in states:
        if state.closed:
            raise ValueError(f"thread {state.number}: it was closed while it was at work")
    if any(job.finish == "cancelled" for job in jobs):
        raise RuntimeError("threads: a step of the model failed in another call and ended all that were running")
    for job in jobs:
        if job.finish == "out_of_pages" and isinstance(job, Scoring):
            raise RuntimeError(f"thread {job.target.number}: the K/V cache has too few pages to score a continuation")
