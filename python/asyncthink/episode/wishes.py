"""What an episode asks of the engine that runs it. Plain records, in the order in which they must be carried out.

A *context* is the list of tokens that an agent's next token is drawn from. The engine keeps a context for each agent,
computes what it is given and, once nothing is left to compute, draws the next token of every agent that
:attr:`~asyncthink.episode.speaker.Speaker.draws`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Begin:
    """Agent ``agent`` begins a context of its own with ``tokens``, those of template ``prompt``."""

    agent: int
    tokens: Sequence[int]
    prompt: str


@dataclass(frozen=True, slots=True)
class Fork:
    """The context of ``agent`` begins with the first ``length`` tokens of ``parent``'s; nothing need be copied."""

    agent: int
    parent: int
    length: int


@dataclass(frozen=True, slots=True)
class Feed:
    """``tokens`` follow in the context of ``agent``: drawn by it, or put in."""

    agent: int
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Splice:
    """The K/V of context tokens [start, stop) of ``worker`` follow in the context of ``agent``, by ``mode``.

    The engine reports back by :meth:`~asyncthink.episode.core.EpisodeCore.spliced` when they have entered.
    """

    agent: int
    worker: int
    start: int
    stop: int
    mode: Literal["append", "link"]


@dataclass(frozen=True, slots=True)
class Release:
    """Nobody needs the context of ``agent`` any more."""

    agent: int


Wish: TypeAlias = Begin | Fork | Feed | Splice | Release
