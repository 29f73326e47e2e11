"""One agent while it runs: its trace, its branch of the cache, its parser, and what it must still be fed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from asyncthink.codec import Codec
from asyncthink.detokenize import TextStream
from asyncthink.protocol import Parser
from asyncthink.records import Trace

if TYPE_CHECKING:
    from asyncthink_kernels.cache import Branch


@dataclass(frozen=True, slots=True)
class Splice:
    """K/V of ``worker``'s context positions [start, stop) must enter the agent's context next."""

    worker: Agent
    start: int
    stop: int
    mode: Literal["append", "link"]


class Agent:
    """Queue of tokens and splices in front of a branch; the agent draws when the queue runs empty, unless it waits.

    ``branch`` is None until the agent can start: a sibling in ``parallel`` mode waits until ``source`` has the prompt
    in the cache. Everything in ``trace.tokens`` stands in the agent's context behind its first ``offset`` tokens.
    """

    def __init__(self, trace: Trace, codec: Codec, branch: Branch | None, context: Sequence[int] = ()) -> None:
        self.trace = trace
        self.branch = branch
        self.offset = len(context)
        self.parser = Parser(trace.role)
        self.text = TextStream(codec, context)
        self.queue: deque[list[int] | Splice] = deque()
        self.source: tuple[Agent, int] | None = None
        self.waiting_for: Agent | None = None
        self.done = False
        self.prompt_chars = 0
        self.returned = (0, 0)  # characters of the returned text, within self.text

    @property
    def place(self) -> Branch:
        """The branch of an agent that has started and still holds its pages."""
        assert self.branch is not None
        return self.branch

    @property
    def ready(self) -> int:
        """Tokens that the next step can take from the queue: those in front of the next splice."""
        if self.done or self.branch is None or not self.queue:
            return 0
        head = self.queue[0]
        return len(head) if isinstance(head, list) else 0

    @property
    def splice(self) -> Splice | None:
        """The splice that stands first in the queue, if one does."""
        head = self.queue[0] if self.queue and not self.done else None
        return head if isinstance(head, Splice) else None

    def draws(self, count: int) -> bool:
        """True when the agent draws a token after ``count`` more tokens of its queue are in the cache."""
        return self.waiting_for is None and len(self.queue) == 1 and count == self.ready

    def put(self, item: list[int] | Splice) -> None:
        """Add to the queue; neighbouring lists of tokens become one."""
        if isinstance(item, Splice):
            self.queue.append(item)
        elif item and self.queue and isinstance(self.queue[-1], list):
            self.queue[-1].extend(item)
        elif item:
            self.queue.append(list(item))

    def take(self, count: int) -> list[int]:
        """Remove the first ``count`` tokens of the queue; they are in the cache when the step is over."""
        head = self.queue[0]
        assert isinstance(head, list)
        assert 0 < count <= len(head)
        tokens = head[:count]
        del head[:count]
        if not head:
            self.queue.popleft()
        return tokens

    def prompt(self, tokens: Sequence[int], cached: int, step: int) -> None:
        """Begin with the agent's own prompt, of which the first ``cached`` tokens are in the branch already."""
        for token in tokens:
            self.trace.add(token, False, 0.0, step, self.text.push(token))
        self.flush()
        self.prompt_chars = len(self.text.text)
        self.put(list(tokens[cached:]))

    def flush(self) -> str:
        """Text that was held back for the rest of a character comes out; nothing else belongs to that character."""
        piece = self.text.flush()
        if piece:
            self.trace.pieces[-1] += piece
        return piece

    def insert(self, token: int, step: int) -> str:
        """Take a token that the runtime puts in; its text never acts."""
        piece = self.text.push(token)
        self.parser.insert(piece)
        self.trace.add(token, False, 0.0, step, piece)
        return piece
