"""One agent as the episode sees it: its trace, its text, and whether it draws, waits or is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from asyncthink.episode.records import Join, Trace
from asyncthink.episode.wishes import Splice
from asyncthink.protocol.tags import Parser


class Stream(Protocol):
    """The text of an agent's own tokens, grown token by token."""

    text: str

    def push(self, token: int) -> str:
        """Take one token, return the text that it adds."""
        ...

    def flush(self) -> str:
        """No more tokens follow: the text that was held back."""
        ...


@dataclass(frozen=True, slots=True)
class Insert:
    """What is put in behind ``<JOIN-i>``, as tokens: ``lead + tokens[span] + rest + closing``.

    ``span`` [first, last) are the worker's own tokens inside its returned text; ``lead`` and ``rest`` are what of that
    text shares a token with a tag, encoded anew; ``closing`` is ``</JOIN-i>``.
    """

    lead: list[int]
    span: tuple[int, int]
    rest: list[int]
    closing: list[int]

    @property
    def length(self) -> int:
        """Tokens of the returned text."""
        return len(self.lead) + self.span[1] - self.span[0] + len(self.rest)


class Texts(Protocol):
    """Between text and tokens, for one model: what an episode cannot know without a tokenizer."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an agent."""
        ...

    def prompt(self, name: str, subquery: str) -> list[int]:
        """Tokens of a worker's template ``name``; those of ``worker_shared`` follow the parent's."""
        ...

    def stream(self, context: Sequence[int]) -> Stream:
        """The text of tokens that will follow ``context``."""
        ...

    def insert(self, index: int, stream: Stream, tokens: Sequence[int], returned: tuple[int, int]) -> Insert:
        """What a join of worker ``index`` puts in; ``returned`` are characters of its ``stream`` over ``tokens``."""
        ...


class Speaker:
    """An agent of a running episode. ``offset`` tokens of its parent's context stand in front of ``trace.tokens``."""

    def __init__(self, trace: Trace, stream: Stream, offset: int) -> None:
        self.trace = trace
        self.stream = stream
        self.offset = offset
        self.parser = Parser(trace.role)
        self.waiting_for: Speaker | None = None
        self.done = False
        self.prompt_tokens = self.prompt_chars = 0
        self.returned = (0, 0)  # characters of the returned text, within the stream's

    @property
    def number(self) -> int:
        return self.trace.agent

    @property
    def name(self) -> str:
        """As format errors call it."""
        return f"worker {self.trace.fork_index}" if self.trace.role == "worker" else self.trace.role

    @property
    def length(self) -> int:
        """Tokens of the context: the position of the next token."""
        return self.offset + len(self.trace.tokens)

    @property
    def draws(self) -> bool:
        """Whether a token is to be drawn once the context is computed."""
        return not self.done and self.waiting_for is None

    @property
    def text(self) -> str:
        """What follows the prompt."""
        return self.stream.text[self.prompt_chars :]

    def prompt(self, tokens: Sequence[int], step: int) -> None:
        """Begin with the agent's own prompt."""
        for token in tokens:
            self.trace.add(token, False, 0.0, step, self.stream.push(token))
        self.flush()
        self.prompt_tokens, self.prompt_chars = len(tokens), len(self.stream.text)

    def insert(self, token: int, step: int) -> str:
        """Take a token that is put in; its text never acts."""
        piece = self.stream.push(token)
        self.parser.insert(piece)
        self.trace.add(token, False, 0.0, step, piece)
        return piece

    def flush(self) -> str:
        """Text that was held back for the rest of a character comes out; nothing else belongs to that character."""
        piece = self.stream.flush()
        if piece:
            self.trace.pieces[-1] += piece
        return piece


def splice_of(speaker: Speaker, join: Join, speakers: Sequence[Speaker]) -> Splice:
    """The wish behind a join of the speaker's that reads the K/V of a worker."""
    assert join.source is not None
    start, stop = (speakers[join.worker].offset + token for token in join.source)
    return Splice(speaker.number, join.worker, start, stop, "append" if join.mode == "append" else "link")


def spliced_joins(speaker: Speaker) -> list[Join]:
    """The joins that read the K/V of a worker."""
    return [join for join in speaker.trace.joins if join.source is not None]
