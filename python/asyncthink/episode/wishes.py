"""What an episode asks of the engine that runs it: plain records, to be carried out in their order.

A *context* is the list of tokens that an agent's next token depends on. The engine keeps a context for each agent and
computes the tokens that it is given. When all of them are computed, it draws the agent's next token, if the agent
:attr:`~asyncthink.episode.speaker.Speaker.draws`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from asyncthink.episode.options import JoinMode


@dataclass(frozen=True, slots=True)
class Begin:
    """``agent`` begins a new context with ``tokens``, the filled template ``prompt``."""

    agent: int
    tokens: Sequence[int]
    prompt: str


@dataclass(frozen=True, slots=True)
class Fork:
    """The context of ``agent`` begins with the first ``length`` tokens of ``parent``'s, which it shares."""

    agent: int
    parent: int
    length: int


@dataclass(frozen=True, slots=True)
class Feed:
    """``tokens`` follow in the context of ``agent``: drawn by it, or inserted."""

    agent: int
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Splice:
    """The K/V of tokens [start, stop) of the worker's context follow in the context of ``agent``.

    ``mode`` is "append" or "link". Once the K/V have entered, the engine may release the worker's context.
    """

    agent: int
    worker: int
    start: int
    stop: int
    mode: JoinMode


@dataclass(frozen=True, slots=True)
class Release:
    """The context of ``agent`` is not needed any more."""

    agent: int


@dataclass(frozen=True, slots=True)
class Call:
    """``agent`` waits for tool ``name``; ``arguments`` are a JSON object. The result goes to ``EpisodeCore.told``."""

    agent: int
    name: str
    arguments: str


Wish: TypeAlias = Begin | Fork | Feed | Splice | Release | Call
