"""Calls of tools, as an episode sees them. No torch, no tokenizer, and nothing that runs a tool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from asyncthink.episode.endings import Endings
from asyncthink.episode.recorder import Recorder
from asyncthink.episode.records import ToolUse
from asyncthink.episode.speaker import Speaker
from asyncthink.episode.wishes import Call, Feed, Wish
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


class Running(Protocol):
    """The running episode, as its tool calls see it."""

    done: bool
    record: Recorder
    endings: Endings

    def insert(self, speaker: Speaker, tokens: Sequence[int]) -> None: ...

    def wish(self, *wishes: Wish) -> None: ...


class ToolCalls:
    """The tool calls of an episode's agents. An agent that waits for a result draws nothing.

    Args:
        core: the episode.
        texts: the model's format of calls; None: what looks like a call is text.
    """

    def __init__(self, core: Running, texts: ToolTexts | None) -> None:
        self._core, self._texts = core, texts

    def read(self, speaker: Speaker, piece: str, ended: bool) -> ToolCall | None:
        """The call that the agent's last token completes. Inside of a tag, and behind its end, calls are text."""
        if self._texts is None or self._core.done or not speaker.draws or speaker.parser.open is not None:
            return None
        return self._texts.read(speaker.turn, piece, ended)

    def begin(self, speaker: Speaker, call: ToolCall) -> None:
        """Ask for the call's result. What is wrong with the call itself is its result."""
        if self._core.done or speaker.done:
            return
        speaker.call = call
        self._core.record.event("call", speaker, speaker.trace.fork_index, text=f"{call.name}({call.arguments})")
        if call.error:
            self.tell(speaker, call.error)
        else:
            self._core.wish(Call(speaker.number, call.name, call.arguments))

    def tell(self, speaker: Speaker, text: str) -> None:
        """Insert the result that the agent waits for, and its next turn's beginning. Late results are ignored."""
        call = speaker.call
        if not speaker.waits_for_tool or call is None or self._texts is None:
            return
        speaker.call, tokens = None, self._texts.result(call, text)
        if self._core.endings.full(speaker.length + len(tokens)):
            self._core.endings.run_out(speaker)
            return
        speaker.trace.tools.append(ToolUse(len(speaker.trace.tokens), len(tokens), call.name, call.arguments, text))
        self._core.record.event("tool", speaker, speaker.trace.fork_index, text=text)
        self._core.insert(speaker, tokens)
        self._core.wish(Feed(speaker.number, tokens))
