"""Thoughts and scores of threads as jobs of the engine, beside its episodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from asyncthink.engine.detokenize import TextStream
from asyncthink.engine.grammar import Bits, Matcher, width
from asyncthink.engine.stretches import Joined, Stretch, Stretches, needed
from asyncthink.episode.options import JoinMode
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.wishes import Splice
from asyncthink.protocol.codec import Codec

if TYPE_CHECKING:
    from asyncthink.engine.jobs import Participant
    from asyncthink_kernels.cache import Branch

_SCORED_ROWS = 64  # log-probabilities of so many rows at once: a float32 copy of logits is large


class Prefixes(Protocol):
    """Computed heads of contexts."""

    def branch(self, name: str, tokens: Sequence[int]) -> Branch:
        """A new branch with the first of ``tokens``, as many as are computed; at least one is not."""
        ...


class Reader:
    """Computes the first ``stop`` tokens of a stretch's context. One reader at a time works on a stretch.

    ``begin`` is where the stretch's branch begins if it has none. The reader that ``writes`` draws behind the last
    token; one that ``scores`` reads the logits of all tokens that it computes.
    """

    def __init__(
        self, stretch: Stretch, stop: int, begin: int, number: int = 0, *, writes: bool = False, scores: bool = False
    ) -> None:
        self.stretch, self.stop, self.begin, self.number = stretch, stop, begin, number
        self.writes, self.scores = writes, scores
        self.mask: Bits | None = None

    @property
    def branch(self) -> Branch:
        assert self.stretch.branch is not None
        return self.stretch.branch

    @property
    def finished(self) -> bool:
        """Whether it has nothing left to do. One that draws or scores is ended by its job."""
        return not (self.writes or self.scores) and self.stretch.computed >= self.stop

    @property
    def works(self) -> bool:
        """Whether it is this one's turn, and the branch has begun."""
        return self.stretch.reader is self and self.stretch.branch is not None

    @property
    def ready(self) -> int:
        """Tokens before the next join, or before ``stop``."""
        if not self.works:
            return 0
        computed = self.stretch.computed
        behind = next((joined.at for joined in self.stretch.joins if joined.at >= computed), self.stop)
        return max(min(behind, self.stop) - computed, 0)

    @property
    def joining(self) -> Joined | None:
        """The join whose K/V come next."""
        if not self.works or not self.stretch.joins or self.stretch.computed >= self.stop:
            return None
        return next((joined for joined in self.stretch.joins if joined.at == self.stretch.computed), None)

    @property
    def key(self) -> tuple[int, int]:
        return self.number, self.stretch.length

    def draws(self, count: int) -> bool:
        return self.writes and self.stretch.computed == self.stop

    def entered(self, count: int) -> None:
        """The branch says what is computed."""

    def take(self, count: int) -> list[int]:
        computed = self.stretch.computed  # those of the planned step are counted
        return self.stretch.context(computed - count, computed)


class ThreadJob:
    """Computes a stretch's K/V, with those of the stretches that it needs. Subclasses draw or score behind them.

    ``finish`` is one of :data:`asyncthink.episode.records.FINISHES`, empty while it is not done. ``error`` is why it
    failed.
    """

    def __init__(self, target: Reader, pool: Stretches, prefixes: Prefixes, params: SamplingParams) -> None:
        self.target, self.params = target, params
        self.agents: list[Reader] = []
        self.finish = ""
        self.error: Exception | None = None
        self._pool, self._prefixes = pool, prefixes
        self._kept = False  # whether the K/V are right and stay, as after a regular end

    @property
    def done(self) -> bool:
        return bool(self.finish)

    @property
    def pages_to_start(self) -> int:
        wanted = self._needed()
        return sum(max(stop - max(s.computed, s.start), 0) // self._pool.cache.page_size + 1 for s, stop in wanted)

    def start(self) -> None:
        if self.done:  # ended before the engine took it
            return
        self._pool.drop_stale()
        target, stretch = self.target, self.target.stretch
        self.agents = [Reader(s, stop, s.start) for s, stop in self._needed() if s is not stretch] + [target]
        for reader in self.agents:
            reader.stretch.needed += 1
            self._pool.touch(reader.stretch)
        self.fork_ready()

    def release(self) -> None:
        for reader in self.agents:
            self._let_go(reader, self._kept)
        self.agents = []

    def fork_ready(self) -> None:
        for reader in self.agents:
            if reader.finished:
                continue
            if reader.stretch.reader is None or reader.stretch.reader.finished:
                reader.stretch.reader = reader
                if reader is self.target:  # its last token is computed here, for the logits
                    self._pool.cut(reader.stretch, reader.stop - 1)
            if reader.stretch.reader is reader and reader.stretch.branch is None:
                self._begin(reader)
        if len(self.agents) > 1 and self.target.works and self.target.stretch.computed >= self.target.stop - 1:
            for reader in self.agents[:-1]:  # the K/V that the target needed are in its own context
                self._let_go(reader, True)
            self.agents = [self.target]

    def ready_splice(self, agent: Participant) -> Splice | None:
        reader = next(reader for reader in self.agents if reader is agent)
        joined = reader.joining
        if joined is None or joined.source.computed < joined.stop:
            return None
        stretches = [reader.stretch for reader in self.agents]
        numbers = stretches.index(reader.stretch), stretches.index(joined.source)
        return Splice(*numbers, joined.first, joined.stop, JoinMode(joined.mode))

    def spliced(self, agent: Participant, splice: Splice) -> None:
        """Nothing is left to do: the reader looks at the branch."""

    def accept(self, agent: Participant, drawn: tuple[int, float] | None) -> None:
        raise NotImplementedError

    def score(self, agent: Participant, logits: torch.Tensor) -> None:
        raise NotImplementedError

    def tick(self) -> None:
        """Nothing ends by time alone."""

    def crash(self, error: Exception) -> None:
        self.error = error
        self.end("failed")

    def end(self, reason: str) -> None:
        self.finish = self.finish or reason

    def mute(self) -> None:
        """No listener is told anything."""

    def _needed(self) -> list[tuple[Stretch, int]]:
        return list(needed(self.target.stretch, self.target.stop, self.target.begin).items())

    def _begin(self, reader: Reader) -> None:
        """Make the stretch's branch, if the one that it forks is computed."""
        stretch = reader.stretch
        if stretch.parent is None:
            branch = self._prefixes.branch("thread", stretch.context(0, reader.stop))
        elif reader.begin == 0:
            branch = self._pool.cache.root()
        else:
            source = stretch.behind(reader.begin).branch
            if source is None or source.length < reader.begin:
                return
            branch = self._pool.cache.fork(source, reader.begin)
        self._pool.keep(stretch, branch)

    def _let_go(self, reader: Reader, kept: bool) -> None:
        reader.stretch.needed -= 1
        if reader.stretch.reader is reader:
            reader.stretch.reader = None
            if not kept:
                self._pool.drop(reader.stretch)


class Think(ThreadJob):
    """Draws behind a thread's text until end-of-text, a stop string, the end of a grammar or of a budget.

    The token of end-of-text is no part of the text. ``text`` is what was drawn; unless ``keep_stop`` it ends before the
    stop string. A token that crosses that place is replaced by the encoding of its part before it.
    """

    def __init__(
        self,
        target: Reader,
        pool: Stretches,
        prefixes: Prefixes,
        params: SamplingParams,
        *,
        codec: Codec,
        max_length: int | None,
        keep_stop: bool = False,
        matcher: Matcher | None = None,
        vocabulary: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(target, pool, prefixes, params)
        self.first = target.stretch.length
        self.text = ""
        self._codec, self._max_length, self._keep_stop = codec, max_length, keep_stop
        self._matcher, self._vocabulary = matcher, vocabulary
        self._stream = TextStream(codec, target.stretch.context(max(self.first - 16, 0)))
        self._clock, self._started = clock, 0.0
        self._set_mask()

    def start(self) -> None:
        self._started = self._started or self._clock()
        super().start()

    def accept(self, agent: Participant, drawn: tuple[int, float] | None) -> None:
        if self.done:  # closed by a callback of an earlier row of this step
            return
        if drawn is None:
            self.error = RuntimeError(f"thread {self.target.number}: its logits hold NaN or no finite value")
            return self.end("error")
        token, logprob = drawn
        if token in self._codec.stop_ids:
            return self._finish("end")
        self.target.stretch.add([token], [logprob])
        self.target.stop += 1
        piece = self._stream.push(token)
        stop = self._stop_string(len(piece))
        if stop is not None:
            return self._finish("stop", stop)
        if self._matcher is not None:
            self._matcher.consume(token)
            if self._matcher.stopped:
                return self._finish("end")
            self._set_mask()
        length = self.target.stretch.length
        if length - self.first >= self.params.max_tokens:
            self._finish("budget")
        elif self._max_length is not None and length >= self._max_length:
            self._finish("length")

    def tick(self) -> None:
        timeout = self.params.timeout
        if timeout is not None and not self.done and self._clock() - self._started >= timeout:
            self._finish("timeout")

    def end(self, reason: str) -> None:
        if not self.done:
            self._stream.flush()
            self.text = self._stream.text
        super().end(reason)

    def _finish(self, reason: str, stop: tuple[int, int] | None = None) -> None:
        """A regular end; ``stop`` are the characters [begin, end) of a stop string."""
        self._kept = True
        self.end(reason)
        if stop is None or self._keep_stop:
            return
        _, last = self._stream.span(0, stop[0])
        rest = self._stream.text[self._stream.ends[last - 1] if last else 0 : stop[0]]
        self._pool.trim(self.target.stretch, self.first + last)
        self.target.stretch.add(self._codec.encode([(rest, False)], continues=True))
        self.text = self._stream.text[: stop[0]]

    def _stop_string(self, new: int) -> tuple[int, int] | None:
        """Characters [begin, end) of the first stop string that ends in the last ``new`` characters."""
        text = self._stream.text
        places = [(text.find(stop, max(len(text) - new - len(stop) + 1, 0)), len(stop)) for stop in self.params.stop]
        begins = [(begin, begin + length) for begin, length in places if begin >= 0]
        return min(begins) if begins and new else None

    def _set_mask(self) -> None:
        if self._matcher is None:
            return
        mask = np.zeros(width(self._vocabulary), np.int32)
        self._matcher.mask(mask)
        if not mask.any():
            raise ValueError(f"thread {self.target.number}: expected a token that the grammar allows here, got none")
        self.target.mask = mask


class Scoring(ThreadJob):
    """Log-probabilities of a continuation's tokens, whose stretch but the last one is ``target``'s."""

    def __init__(
        self,
        target: Reader,
        pool: Stretches,
        prefixes: Prefixes,
        params: SamplingParams,
        continuation: Sequence[int],
    ) -> None:
        super().__init__(target, pool, prefixes, params)
        self.continuation = list(continuation)
        self.logprobs: list[float] = []

    def start(self) -> None:
        self.logprobs.clear()  # after a pause all of them are computed again
        super().start()

    def score(self, agent: Participant, logits: torch.Tensor) -> None:
        """The row of the context's last token scores the first token of the continuation, and so on."""
        for begin in range(0, len(logits), _SCORED_ROWS):
            rows, done = logits[begin : begin + _SCORED_ROWS].float(), len(self.logprobs)
            tokens = torch.tensor(self.continuation[done : done + len(rows)], device=rows.device)
            self.logprobs += torch.log_softmax(rows, -1).gather(1, tokens[:, None])[:, 0].tolist()
        if not all(np.isfinite(self.logprobs) | np.isneginf(self.logprobs)):
            raise RuntimeError(f"thread {self.target.number}: its logits hold NaN or no finite value")
        if len(self.logprobs) == len(self.continuation):
            self.end("end")
