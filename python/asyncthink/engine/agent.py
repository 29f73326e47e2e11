"""The engine's state of one agent: its branch of the cache, and the queue of what must still enter its context."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from asyncthink.episode.records import Trace
from asyncthink.episode.speaker import Speaker
from asyncthink.episode.wishes import Splice

if TYPE_CHECKING:
    from asyncthink.engine.grammar import Bits
    from asyncthink.engine.heads import Pinned
    from asyncthink.model.contract import ContextBranch


class Opening(NamedTuple):
    """The template and the tokens that an agent's own context begins with."""

    name: str
    tokens: tuple[int, ...]


class Agent:
    """A branch and a queue of tokens and splices. When the queue runs empty, the agent draws if its speaker does.

    ``held`` is the branch. It is None until it can be forked, which is when the branch of agent ``source[0]`` holds
    ``source[1]`` tokens. ``computed`` counts the tokens of the branch whose K/V were found or computed; splices do not
    count. ``opening`` and ``layout`` (a pinned head, and how many tokens of it) are those of a context that began by
    itself; a fork of another agent has neither. ``first`` is added to the :attr:`key`. ``marks`` are the lengths at
    which other contexts are expected to fork.
    """

    def __init__(self, speaker: Speaker, first: tuple[int, int] = (0, 0)) -> None:
        self.speaker, self._first = speaker, first
        self.held: ContextBranch | None = None
        self.source: tuple[Agent, int] | None = None
        self.opening: Opening | None = None
        self.layout: tuple[Pinned, int] | None = None
        self.computed = 0
        self.marks: set[int] = set()
        self.queue: deque[list[int] | Splice] = deque()

    @property
    def mask(self) -> Bits | None:
        """None, as the rule of its episode's guide is looked up in each step (:mod:`.guided`)."""
        return None

    @property
    def scores(self) -> bool:
        """No agent's own tokens are scored."""
        return False

    @property
    def key(self) -> tuple[int, int]:
        """(number of the agent, tokens that it has drawn): with the seed, what its next draw depends on."""
        return self._first[0] + self.trace.agent, self._first[1] + self.trace.decoded

    @property
    def trace(self) -> Trace:
        """The agent's record."""
        return self.speaker.trace

    @property
    def branch(self) -> ContextBranch:
        """The branch of an agent that has begun and still holds its pages."""
        assert self.held is not None
        return self.held

    @property
    def ready(self) -> int:
        """Number of tokens that the next step can take from the queue: those before the next splice."""
        if self.held is None or not self.queue:
            return 0
        head = self.queue[0]
        return len(head) if isinstance(head, list) else 0

    @property
    def splice(self) -> Splice | None:
        """The splice at the front of the queue, if there is one."""
        head = self.queue[0] if self.queue and self.held is not None else None
        return head if isinstance(head, Splice) else None

    def draws(self, count: int) -> bool:
        """Whether a token is drawn once ``count`` more tokens of the queue are in the cache."""
        return self.speaker.draws and len(self.queue) == 1 and count == self.ready

    def put(self, item: Sequence[int] | Splice) -> None:
        """Append to the queue; adjacent tokens become one item."""
        if isinstance(item, Splice):
            self.queue.append(item)
        elif item and self.queue and isinstance(self.queue[-1], list):
            self.queue[-1].extend(item)
        elif item:
            self.queue.append(list(item))

    def put_first(self, tokens: Sequence[int]) -> None:
        """Insert tokens at the front of the queue."""
        if tokens and self.queue and isinstance(self.queue[0], list):
            self.queue[0][:0] = tokens
        elif tokens:
            self.queue.appendleft(list(tokens))

    def entered(self, count: int) -> None:
        """The tokens that were taken are computed."""
        self.computed += count

    def take(self, count: int) -> list[int]:
        """Remove the first ``count`` tokens of the queue, which this step computes."""
        head = self.queue[0]
        assert isinstance(head, list)
        assert 0 < count <= len(head)
        tokens = head[:count]
        del head[:count]
        if not head:
            self.queue.popleft()
        return tokens
