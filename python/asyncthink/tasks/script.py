"""Demonstrations as text: what each agent writes, piece by piece, before tokenization."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncthink.episode.options import Context, Mode
from asyncthink.protocol.tags import Role

#: What can be demonstrated: the modes of an episode, and one agent alone on a named part of the problem.
DEMONSTRATED = (*Mode, "part")


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an agent's text. ``said``: the agent writes it; otherwise the runtime inserts it.

    Where it is not ``trusted``, its tags are the only control tokens that it can become.
    """

    text: str
    said: bool = True
    trusted: bool = True


@dataclass(slots=True)
class Script:
    """One agent's text. A worker (``role="worker"``) is forked after the first ``fork_at`` pieces of script ``parent``.

    ``parent`` is that script's number in the demonstration, 0: the organizer.
    """

    role: Role
    fork_index: int | None = None
    fork_at: int = 0
    subquery: str = ""
    pieces: list[Piece] = field(default_factory=list)
    parent: int = 0

    def say(self, text: str) -> None:
        self.pieces.append(Piece(text))

    def insert(self, text: str) -> None:
        self.pieces.append(Piece(text, said=False))

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@dataclass(slots=True)
class Demonstration:
    """One solved question: the organizer's (or the solo) script first, then the workers', each behind its parent.

    Workers stand in the order of their forks; ``depth`` is the most levels of workers.
    Scripts do not contain prompts: prompts belong to a checkpoint, not to a task.
    """

    question: str
    mode: str  # one of DEMONSTRATED
    context: str = "shared"
    pool: int = 4
    scripts: list[Script] = field(default_factory=list)
    depth: int = 1


def check_options(mode: str, context: str, pool: int, depth: int = 1) -> None:
    """Check the options of a task's ``demonstrate``. Raises ValueError naming the one that is wrong."""
    for name, value, allowed in (("mode", mode, DEMONSTRATED), ("context", context, tuple(Context))):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    if depth < 1:
        raise ValueError(f"depth: expected at least 1 (workers that do not fork), got {depth}")
    if mode == "asyncthink" and pool < 2:
        raise ValueError(f"pool: expected at least 2 (an organizer and a worker), got {pool}")
