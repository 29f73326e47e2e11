"""Written-out demonstrations: what each agent says, piece by piece, before any tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncthink.protocol.tags import Role

MODES = ("asyncthink", "sequential", "parallel", "part")
CONTEXTS = ("shared", "isolated")


@dataclass(frozen=True, slots=True)
class Piece:
    """``said`` is True for text the agent writes itself, False for text the runtime inserts."""

    text: str
    said: bool = True


@dataclass(slots=True)
class Script:
    """One agent's lines. A worker (``role="worker"``) was forked after the organizer's first ``fork_at`` pieces."""

    role: Role
    fork_index: int | None = None
    fork_at: int = 0
    subquery: str = ""
    pieces: list[Piece] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.pieces.append(Piece(text))

    def insert(self, text: str) -> None:
        self.pieces.append(Piece(text, said=False))

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@dataclass(slots=True)
class Demonstration:
    """One solved question: the organizer's (or the solo) script first, then the workers' in the order of their forks.

    Scripts hold no prompt: the prompts belong to a checkpoint, not to a task.
    """

    question: str
    mode: str  # one of MODES
    context: str = "shared"
    pool: int = 4
    scripts: list[Script] = field(default_factory=list)


def check_options(mode: str, context: str, pool: int) -> None:
    """What every task's ``demonstrate`` asks of its options; raises ValueError naming the one that is wrong."""
    for name, value, known in (("mode", mode, MODES), ("context", context, CONTEXTS)):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if mode == "asyncthink" and pool < 2:
        raise ValueError(f"pool: expected at least 2 (an organizer and a worker), got {pool}")
