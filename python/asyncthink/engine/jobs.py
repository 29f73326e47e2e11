"""What the scheduler and the engine need of the work that they step: an episode, or a thought of a thread."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from asyncthink.episode.params import SamplingParams
from asyncthink.episode.wishes import Splice

if TYPE_CHECKING:
    from torch import Tensor

    from asyncthink.engine.grammar import Bits
    from asyncthink.model.contract import ContextBranch


class Participant(Protocol):
    """One context of a job: a branch, and what must still enter it. An agent of an episode, or a thread's text."""

    @property
    def branch(self) -> ContextBranch:
        """Where the next tokens are computed."""
        ...

    @property
    def ready(self) -> int:
        """Number of tokens that the next step can compute."""
        ...

    @property
    def scores(self) -> bool:
        """Whether :meth:`Job.score` wants the logits of every token that a step computes; it draws nothing then."""
        ...

    @property
    def key(self) -> tuple[int, int]:
        """(number, position): with the seed, what the next draw's random number depends on."""
        ...

    @property
    def mask(self) -> Bits | None:
        """The tokens that may be drawn next [ceil(V / 32)] (:mod:`asyncthink.engine.grammar`); None: all."""
        ...

    @property
    def marks(self) -> Collection[int]:
        """Lengths of the context at which others may fork from it: a recurrent state is kept there."""
        ...

    def draws(self, count: int) -> bool:
        """Whether a token is drawn once the next ``count`` tokens are computed. Asked when the step is planned."""
        ...

    def take(self, count: int) -> list[int]:
        """Hand over the next ``count`` tokens, which the step that is planned computes."""
        ...

    def entered(self, count: int) -> None:
        """The tokens that were taken are computed."""
        ...


class Spare(Protocol):
    """K/V in the cache that no job needs, and that may be needed again."""

    @property
    def evictable_pages(self) -> int:
        """Pages that giving all of them up would free."""
        ...

    def evict(self) -> bool:
        """Give up the least recently used ones; False if there are none."""
        ...


class Job(Protocol):
    """A unit of scheduling: it is admitted, paused and ended as a whole."""

    @property
    def agents(self) -> Sequence[Participant]:
        """All its contexts; empty while it waits or is paused."""
        ...

    @property
    def done(self) -> bool: ...

    @property
    def params(self) -> SamplingParams:
        """How its tokens are drawn."""
        ...

    @property
    def pages_to_start(self) -> int:
        """About how many pages it needs to begin, or to continue after a pause."""
        ...

    def start(self) -> None:
        """Begin, or continue after a pause."""
        ...

    def release(self) -> None:
        """Pause, or clean up after the end: return the pages that it does not keep."""
        ...

    def fork_ready(self) -> None:
        """Make the branches that waited for their source to be computed."""
        ...

    def ready_splice(self, agent: Participant) -> Splice | None:
        """The next join by K/V of this context, if what it reads is computed; ``worker`` is an index of ``agents``."""
        ...

    def spliced(self, agent: Participant, splice: Splice) -> None:
        """The K/V of that join have entered."""
        ...

    def accept(self, agent: Participant, drawn: tuple[int, float] | None) -> None:
        """(token, log-probability) drawn by ``agent``; None: its logits hold NaN or no finite value."""
        ...

    def score(self, agent: Participant, logits: Tensor) -> None:
        """Logits [n, V] of the n tokens that this step computed of a context that scores."""
        ...

    def tick(self) -> None:
        """A step is over."""
        ...

    def crash(self, error: Exception) -> None:
        """End because its own code raised ``error``."""
        ...

    def end(self, reason: str) -> None:
        """End in any state; without effect where it has ended."""
        ...

    def mute(self) -> None:
        """Tell listeners nothing more."""
        ...
