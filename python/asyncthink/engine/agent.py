"""The engine's state of one agent: its branch of the cache, and the queue of what must still enter its context."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from asyncthink.episode.records import Trace
from asyncthink.episode.speaker import Speaker
from asyncthink.episode.wishes import Splice

if TYPE_CHECKING:
    from asyncthink.engine.grammar import Bits
    from asyncthink_kernels.cache import Branch


class Agent:
    """A branch and a queue of tokens and splices. When the queue runs empty, the agent draws if its speaker does.

    ``held`` is the branch. It is None until it can be forked, which is when the branch of agent ``source[0]`` holds
    ``source[1]`` tokens.
    """

    def __init__(self, speaker: Speaker, held: Branch | None = None, source: tuple[Agent, int] | None = None) -> None:
        self.speaker = speaker
        self.held = held
        self.source = source
        self.queue: deque[list[int] | Splice] = deque()
        self.mask: Bits | None = None  # the tokens that may be drawn next; None: all

    @property
    def scores(self) -> bool:
        """No agent's own tokens are scored."""
        return False

    @property
    def key(self) -> tuple[int, int]:
        """(number of the agent, tokens that it has drawn): with the seed, what its next draw depends on."""
        return self.trace.agent, self.trace.decoded

    @property
    def trace(self) -> Trace:
        """The agent's record."""
        return self.speaker.trace

    @property
    def branch(self) -> Branch:
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
