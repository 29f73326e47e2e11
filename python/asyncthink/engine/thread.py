"""One thread: a branch of a model's context that a program holds, in the place of tags."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

from asyncthink.engine.detokenize import TextStream
from asyncthink.engine.stretch import Stretch
from asyncthink.engine.thread_state import Keeper, Score, Thought, ThreadState
from asyncthink.episode.params import SamplingParams
from asyncthink.protocol.messages import Question

_CONTEXT = 16  # tokens that the text of the next one may depend on, and more


class Thread:
    """A branch of the model's context. Made by ``sampler.thread(...)`` and :meth:`fork`.

    Writing, forking, joining and truncating compute nothing: the tokens are computed when a thread thinks or scores,
    each of them once however many forks share it. When the cache runs out of pages, the K/V of threads that are at rest
    go first; they are computed again when they are needed.

    A thought depends on the context, its parameters and the thread's number alone: the root of a tree has number 0, its
    forks 1, 2, ... in the order in which they were made anywhere in the tree. A draw's random number is keyed by
    (seed, number, position in the context), so the same thought again after :meth:`truncate` draws the same, and two
    roots with the same prompt and seed write the same. Other threads and episodes on the engine change nothing but the
    rounding that :class:`asyncthink.engine.sampler.ForkJoinSampler` describes.

    Threads may be used from any OS thread; one thread does one thing at a time. All methods raise ValueError for a
    closed thread, RuntimeError for one that is thinking or scoring elsewhere, and leave everything as it was then.

    >>> from asyncthink import ForkJoinSampler, SamplingParams, checkpoint_path
    >>> engine = ForkJoinSampler(checkpoint_path("countdown"), device="cpu", num_pages=64)
    >>> with engine.thread("3 5 7 9 = 24") as root:
    ...     drafts = root.fork(3)
    ...     engine.think(drafts, SamplingParams(max_tokens=4, temperature=0.0))
    ...     _ = root.join(drafts[0], mode="append").write("\\nSo: ").think(SamplingParams(max_tokens=2))
    ...     len({draft.text for draft in drafts}), root.text.startswith(drafts[0].text + "\\nSo: ")
    (1, True)
    """

    def __init__(self, threads: Keeper, state: ThreadState) -> None:
        self._threads, self._state = threads, state

    # -- what it holds ------------------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """Its number in its tree; 0 for the root."""
        return self._state.number

    @property
    def tokens(self) -> list[int]:
        """All tokens of its context, from the root's first one on."""
        return self._open().stretch.context()

    @property
    def logprobs(self) -> list[float | None]:
        """For each of :attr:`tokens` the log-probability with which it was drawn; None for one that was not."""
        return self._open().stretch.context_logprobs()

    @property
    def begin(self) -> int:
        """Tokens of the context before its own text: the prompt, or what it shares with the thread that it forked."""
        return self._open().begin

    @property
    def text(self) -> str:
        """Its own text: what it wrote, drew and joined since its prompt or its fork."""
        state = self._open()
        stream = TextStream(self._threads.codec, state.stretch.context(max(state.begin - _CONTEXT, 0), state.begin))
        pieces = [stream.push(token) for token in state.stretch.context(state.begin)]
        return "".join([*pieces, stream.flush()])

    @property
    def thought(self) -> Thought | None:
        """What it drew last."""
        return self._state.thought

    @property
    def finish(self) -> str:
        """Why its last thought ended (:class:`Thought`); empty before the first."""
        return "" if self._state.thought is None else self._state.thought.finish

    @property
    def closed(self) -> bool:
        return self._state.closed

    def __len__(self) -> int:
        """Number of tokens of its context."""
        return self._open().stretch.length

    def __repr__(self) -> str:
        tokens = "closed" if self.closed else f"{len(self)} tokens"
        return f"Thread({self.number}, {tokens})"

    # -- what it does -------------------------------------------------------------------------------------------

    def write(self, text: Question) -> Thread:
        """Append text, or chat messages: these end the assistant's turn, follow, and begin its next turn.

        Text is never read as control tokens. Raises ValueError for what cannot be encoded, messages without a chat
        template, or a context that becomes too long for the cache or the model.
        """
        tokens = self._threads.encode(text)
        with self._threads.gate.enter():
            state = self.still()
            self._check_growth(len(tokens), "text")
            state.stretch.add(tokens)
        return self

    def fork(self, n: int = 1, at: int | None = None) -> list[Thread]:
        """``n`` threads whose contexts begin with the first ``at`` tokens of this one (all by default).

        Nothing is copied. Forks live on when this thread is closed. Raises ValueError unless ``at`` is in
        [1, len(self)] and ``n`` at least 1.
        """
        with self._threads.gate.enter():
            state = self.still()
            length = state.stretch.length
            at = length if at is None else _in_range("at", at, 1, length)
            _in_range("n", n, 1, None)
            return [
                self._threads.adopt(ThreadState(Stretch(state.stretch.behind(at), at), at, number, state.numbers))
                for number in itertools.islice(state.numbers, n)
            ]

    def think(self, params: SamplingParams | None = None, **how: Any) -> Thread:
        """Draw tokens behind the context until end-of-text, a stop string, a complete guide, or the end of a budget.

        Args:
            params: temperature, filters, ``max_tokens``, ``stop`` strings, ``seed``, ``timeout``.
            keep_stop: keep the stop string and the rest of its last token; by default the text ends before it, and a
                token that crosses that place is encoded again up to there.
            regex, json_schema, choices: at most one: the text is a match of the regular expression, a JSON value of the
                schema (a dict or JSON text), or one of the choices, from the first token of this thought on. A budget
                may end it early.

        :attr:`thought` says what was drawn, and why it ended. The token of end-of-text stays out of the context.

        Raises:
            ValueError: parameters or a guide that cannot be used; a context that is too long for another token.
            RuntimeError: the logits hold NaN; a step failed in another call.
            Exception: what the model raised. What was drawn until then stays.
        """
        self._threads.think([self], params, **how)
        return self

    async def athink(self, params: SamplingParams | None = None, **how: Any) -> Thread:
        """As :meth:`think`, for coroutines. All that wait share the same steps; cancelling one ends its drawing."""
        await self._threads.athink([self], params, **how)
        return self

    def join(
        self,
        others: Thread | Sequence[Thread],
        *,
        mode: str = "exact",
        what: Literal["text", "thought"] = "text",
    ) -> Thread:
        """Append what other threads wrote: their own text since their fork, or their last thought.

        ``exact`` computes it again behind this context; ``append`` copies the other thread's K/V, ``link`` reads them
        in place, except for the last token, whose logits come next. The others stay as they are.

        Raises ValueError for this thread itself or one of another engine, a mode that the model lacks, a thread that
        has not thought or was truncated since (``what="thought"``), ``append`` of text that contains links, and a
        context that becomes too long.
        """
        with self._threads.gate.enter():
            state = self.still()
            spans = [self._span(other, mode, what) for other in ([others] if isinstance(others, Thread) else others)]
            self._check_growth(sum(stop - start for _, start, stop in spans), "join")
            for source, start, stop in spans:
                if mode != "exact" and stop - start > 1:
                    state.stretch.join(source.behind(stop - 1), start, stop - start - 1, mode)
                    start = stop - 1
                state.stretch.add(source.context(start, stop))
        return self

    def score(self, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """Log-probabilities of continuations (texts, or lists of token ids) behind this context, which stays as it is.

        They are the model's own, at temperature 1 and without filters. Raises ValueError for an empty continuation, or
        one that is too long; otherwise as :meth:`think`, and RuntimeError where the cache has too few pages.
        """
        return self._threads.score(self, continuations)

    async def ascore(self, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """As :meth:`score`, for coroutines."""
        return await self._threads.ascore(self, continuations)

    def truncate(self, length: int) -> Thread:
        """Go back to the first ``length`` tokens of the context. Forks keep what they see.

        Raises ValueError unless ``length`` is in [0, len(self)].
        """
        with self._threads.gate.enter():
            state = self.still()
            _in_range("length", length, 0, state.stretch.length)
            if length < state.stretch.length:
                state.stretch = self._threads.pool.truncate(state.stretch, state, length)
                state.begin = min(state.begin, length)
        return self

    def close(self) -> None:
        """Let go of the tokens and K/V that no other thread uses; a thought of this thread ends. May be called twice.

        The pages are free at once, or as soon as another call on the same decoder has finished its step.
        """
        self._state.closed = True
        self._threads.gate.later(lambda: self._threads.forget(self._state))

    def __enter__(self) -> Thread:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- helpers ------------------------------------------------------------------------------------------------

    def still(self) -> ThreadState:
        """The state of a thread that is open and at rest. Raises ValueError or RuntimeError otherwise."""
        state = self._open()
        if state.jobs:
            raise RuntimeError(f"thread {state.number}: expected it at rest, but it is thinking or scoring")
        return state

    def _open(self) -> ThreadState:
        if self._state.closed:
            raise ValueError(f"thread {self._state.number}: expected an open thread, got a closed one")
        return self._state

    def _check_growth(self, count: int, name: str) -> None:
        self._threads.check_length(range(self._state.stretch.length + count), f"{name} behind the thread")

    def _span(self, other: Thread, mode: str, what: str) -> tuple[Stretch, int, int]:
        """Tokens [start, stop) of a context that a join appends."""
        if other is self:
            raise ValueError("join: expected another thread, got this one itself")
        if other._threads is not self._threads:
            raise ValueError("join: expected a thread of the same engine")
        self._threads.check_join(mode)
        state = other.still()
        start, stop = state.begin, state.stretch.length
        if what == "thought":
            if state.thought is None or state.thought.stop > stop:
                raise ValueError(f"what: expected a thought that is still in thread {state.number}, got none")
            start, stop = state.thought.start, state.thought.stop
        elif what != "text":
            raise ValueError(f'what: expected "text" or "thought", got {what!r}')
        if mode == "append" and len(state.stretch.shifts(start, stop)) > 1:
            raise ValueError(f"mode: expected 'exact' or 'link' for text of thread {state.number} that contains links")
        return state.stretch, start, stop


def _in_range(name: str, value: object, least: int, most: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        expected = f"at least {least}" if most is None else f"in [{least}, {most}]"
        raise ValueError(f"{name}: expected an integer {expected}, got {value!r}")
    return value
