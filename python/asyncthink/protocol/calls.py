"""A call of a tool, as an agent wrote it. No torch, no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolCall:
    """``arguments`` is a JSON object; ``id`` the call's own, where the model's format has one.

    ``error`` says what is malformed; such a call is not carried out, and its agent is told the error. ``ended``: the
    agent has ended its turn with its end-of-text token.
    """

    name: str
    arguments: str
    id: str = ""
    error: str = ""
    ended: bool = False
