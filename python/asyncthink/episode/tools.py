"""Calls of tools, as an episode sees them. No torch, no tokenizer, and nothing that runs a tool."""

from __future__ import annotations

from typing import Protocol

from asyncthink.protocol.calls import ToolCall


class ToolTexts(Protocol):
    """A model's format of calls and results."""

    def read(self, turn: str, piece: str, ended: bool) -> ToolCall | None:
        """The call that is complete now; None if there is none.

        Args:
            turn: what the agent drew since the last insertion.
            piece: the text of the last token, the end of ``turn``.
            ended: the agent drew its end-of-text token, which is not in ``turn``.
        """
        ...

    def result(self, call: ToolCall, text: str) -> list[int]:
        """The tokens that follow the call: its turn's end, ``text`` as the tool's turn, the agent's next turn."""
        ...
