"""What a thread is and holds, and what it needs of the engine's threads. No step runs here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from asyncthink.engine.stretch import Stretch
from asyncthink.engine.stretches import Stretches
from asyncthink.episode.params import SamplingParams
from asyncthink.model.gate import Gate
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.messages import Question

if TYPE_CHECKING:
    from asyncthink.engine.thoughts import Think
    from asyncthink.engine.thread_jobs import ThreadJob


@dataclass(frozen=True, slots=True)
class Thought:
    """What a thread drew in one call, tokens [start, stop) of its context.

    ``finish`` is "end" (end-of-text, or a guide that is complete), "stop" (a stop string), "budget" (``max_tokens``),
    "length" (the model has no more positions), "timeout", "out_of_pages", "cancelled", "error" or "failed".
    ``logprobs`` are those of the drawn tokens, under the distribution that each was drawn from before top-k, top-p and
    min-p: within the guide, at the temperature.
    """

    start: int
    stop: int
    text: str
    logprobs: tuple[float, ...]
    finish: str

    @classmethod
    def of(cls, job: Think) -> Thought:
        stretch = job.target.stretch
        drawn = [value for value in stretch.context_logprobs(job.first) if value is not None]
        return cls(job.first, stretch.length, job.text, tuple(drawn), job.finish)


@dataclass(frozen=True, slots=True)
class Score:
    """Natural log-probabilities of a continuation's tokens, each given the thread and those before it.

    >>> Score((5, 6), (-0.5, -1.0)).total
    -1.5
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """The log-probability of the whole continuation."""
        return sum(self.logprobs)


@dataclass(eq=False, slots=True)
class ThreadState:
    """What a thread is now. ``begin`` is where its own text begins; ``numbers`` are those of its tree's next forks."""

    stretch: Stretch
    begin: int
    number: int = 0
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    jobs: list[ThreadJob] = field(default_factory=list)
    thought: Thought | None = None
    closed: bool = False


class Keeper(Protocol):
    """All threads of an engine, as one thread sees them (:class:`asyncthink.engine.threads.Threads`)."""

    gate: Gate
    pool: Stretches
    codec: Codec

    def encode(self, text: Question) -> list[int]:
        """The tokens of text or messages that follow in a context."""
        ...

    def check_length(self, tokens: Sequence[int], name: str) -> None:
        """Raises ValueError if the cache, or the model's positions, cannot hold the tokens and another one."""
        ...

    def check_join(self, mode: str) -> None:
        """Raises ValueError for a join mode that the model lacks."""
        ...

    def adopt(self, state: ThreadState) -> Any:
        """A thread with this state."""
        ...

    def forget(self, state: ThreadState) -> None:
        """Close a thread."""
        ...

    def think(self, threads: Sequence[Any], params: SamplingParams | None, **how: Any) -> None:
        """Let threads think in the same steps."""
        ...

    async def athink(self, threads: Sequence[Any], params: SamplingParams | None, **how: Any) -> None:
        """As :meth:`think`, for coroutines."""
        ...

    def score(self, thread: Any, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """Log-probabilities of continuations behind a thread."""
        ...

    async def ascore(self, thread: Any, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """As :meth:`score`, for coroutines."""
        ...
