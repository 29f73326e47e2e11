"""One agent of an episode: its trace, its text, and whether it draws, waits or is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from asyncthink.episode.records import Trace
from asyncthink.episode.tree import worker_name
from asyncthink.protocol.calls import ToolCall
from asyncthink.protocol.guide import Rule
from asyncthink.protocol.parser import Parser


class Stream(Protocol):
    """The text of an agent's own tokens, grown token by token."""

    text: str

    def push(self, token: int) -> str:
        """Add one token; return the text that it adds."""
        ...

    def flush(self) -> str:
        """End the text; return what was held back for the rest of a character."""
        ...


@dataclass(frozen=True, slots=True)
class Insert:
    """The tokens inserted after ``<JOIN-i>``: ``lead + tokens[span] + rest + closing``.

    ``span`` [first, last) are the worker's own tokens inside its returned text. ``lead`` and ``rest`` are the beginning
    and the end of that text, encoded again where the worker's token also holds part of a tag. ``closing`` is
    ``</JOIN-i>``.
    """

    lead: list[int]
    span: tuple[int, int]
    rest: list[int]
    closing: list[int]

    @property
    def length(self) -> int:
        """Number of tokens of the returned text."""
        return len(self.lead) + self.span[1] - self.span[0] + len(self.rest)

    def tokens(self, worker: Sequence[int]) -> list[int]:
        """All tokens to insert; ``worker`` are the worker's own tokens."""
        first, last = self.span
        return [*self.lead, *worker[first:last], *self.rest, *self.closing]


class Texts(Protocol):
    """Text to tokens and back, for one model's tokenizer."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an agent."""
        ...

    def prompt(self, name: str, subquery: str) -> list[int]:
        """Tokens of the filled worker template ``name``; those of ``worker_shared`` continue the parent's context."""
        ...

    def stream(self, context: Sequence[int]) -> Stream:
        """The text of tokens that will follow ``context``."""
        ...

    def literal(self, text: str) -> list[int]:
        """The tokens of a text of tags and newlines that is inserted into a context; tags may be control tokens."""
        ...

    def insert(self, index: int, stream: Stream, tokens: Sequence[int], returned: tuple[int, int]) -> Insert:
        """The tokens of a join of worker ``index``.

        ``returned`` is the half-open range of characters that it returned, in ``stream``, the text of ``tokens``.
        """
        ...


class Speaker:
    """An agent of a running episode. ``offset`` tokens of its parent's context stand in front of ``trace.tokens``.

    ``parent`` is the agent that forked it, None for those that begin an episode. ``depth`` is the most levels of
    workers: a worker below that level may fork.
    """

    def __init__(
        self, trace: Trace, stream: Stream, offset: int, parent: Speaker | None = None, depth: int = 1
    ) -> None:
        self.trace = trace
        self.stream = stream
        self.offset = offset
        self.parent = parent
        self.path: tuple[int, ...] = ()  # the i of the <FORK-i> from the organizer down to this agent
        if parent is not None and trace.fork_index is not None:
            self.path = (*parent.path, trace.fork_index)
        self.parser = Parser(trace.role, may_fork=len(self.path) < depth)
        self.waiting_for: Speaker | None = None
        self.call: ToolCall | None = None  # the agent waits for its result
        self.rule: Rule | None = None  # of the token that is being drawn
        self.done = False
        self.prompt_tokens = self.prompt_chars = 0
        self.turn_chars = 0  # characters before what it drew since its prompt, or since the last insertion
        self.returned = (0, 0)  # characters of the returned text, within the stream's

    @property
    def number(self) -> int:
        return self.trace.agent

    @property
    def name(self) -> str:
        """The agent's name in format errors: "organizer", "worker 2", and "worker 2.1" for worker 1 of worker 2."""
        return worker_name(self.path) if self.trace.role == "worker" else self.trace.role

    @property
    def length(self) -> int:
        """Length of the context in tokens: the position of the next token."""
        return self.offset + len(self.trace.tokens)

    @property
    def draws(self) -> bool:
        """Whether the agent's next token is drawn once its context is computed."""
        return not self.done and self.waiting_for is None and self.call is None

    @property
    def text(self) -> str:
        """The text after the prompt."""
        return self.stream.text[self.prompt_chars :]

    @property
    def turn(self) -> str:
        """The text that it drew since its prompt, or since the last text that was inserted."""
        return self.stream.text[self.turn_chars :]

    def ends_in(self, stops: Sequence[str], new: int) -> bool:
        """Whether one of the stop strings ends in the last ``new`` characters, after the prompt."""
        text, begin = self.stream.text, self.prompt_chars
        return any(text.find(stop, max(begin, len(text) - new - len(stop) + 1)) >= 0 for stop in stops)

    @property
    def waits_for_tool(self) -> bool:
        return not self.done and self.call is not None

    @property
    def replies(self) -> bool:
        """Whether the whole text is the answer."""
        return self.trace.role == "reply"

    def before(self, stops: Sequence[str]) -> str:
        """:attr:`turn` up to the first of the stop strings."""
        text = self.turn
        return text[: min((k for k in map(text.find, stops) if k >= 0), default=len(text))]

    def prompt(self, tokens: Sequence[int], step: int) -> None:
        """Begin with the agent's own prompt."""
        for token in tokens:
            self.trace.add(token, False, 0.0, step, self.stream.push(token))
        self.flush()
        self.prompt_tokens, self.prompt_chars = len(tokens), len(self.stream.text)
        self.turn_chars = self.prompt_chars

    def insert(self, token: int, step: int) -> str:
        """Add an inserted token. Its text never acts as a tag."""
        piece = self.stream.push(token)
        self.parser.insert(piece)
        self.trace.add(token, False, 0.0, step, piece)
        return piece

    def force(self, token: int, step: int) -> str:
        """Add a token that a guide inserts. Its text acts once the parser reads it."""
        piece = self.stream.push(token)
        self.trace.forced.append(len(self.trace.tokens))
        self.trace.add(token, False, 0.0, step, piece)
        return piece

    def flush(self) -> str:
        """Release the text that was held back for the rest of a character. It belongs to the last token."""
        piece = self.stream.flush()
        if piece:
            self.trace.pieces[-1] += piece
        return piece
