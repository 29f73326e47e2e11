"""Thoughts and scores of threads: what is drawn or read behind a thread's text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from asyncthink.engine.detokenize import TextStream
from asyncthink.engine.grammar import Matcher, width
from asyncthink.engine.stretches import Stretches
from asyncthink.engine.thread_jobs import Prefixes, Reader, ThreadJob
from asyncthink.episode.params import SamplingParams
from asyncthink.protocol.codec import Codec

if TYPE_CHECKING:
    from asyncthink.engine.jobs import Participant

_SCORED_ROWS = 64  # log-probabilities of so many rows at once: a float32 copy of logits is large


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
