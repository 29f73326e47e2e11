"""Text as clients read it: it ends before a stop string, which a stream must not show a part of either."""

from __future__ import annotations

from collections.abc import Sequence


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string in it.

    >>> cut("one\\ntwo", ["wo", "\\n"])
    'one'
    """
    found = [position for position in (text.find(stop) for stop in stops) if position >= 0]
    return text[: min(found)] if found else text


class StopFilter:
    """Holds back what may become a stop string.

    >>> shown = StopFilter(["END"])
    >>> [shown.push(piece) for piece in ("a E", "N", "d EN", "D more")], shown.flush()
    (['a ', '', 'ENd ', ''], '')
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self._over = False

    def push(self, piece: str) -> str:
        """Add a piece of text; return what may be shown now."""
        if not self._stops or self._over:
            return "" if self._over else piece
        text = self._held + piece
        shown = cut(text, self._stops)
        if len(shown) < len(text):
            self._over, self._held = True, ""
            return shown
        keep = max(self._begun(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text is over: return what was held back."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _begun(text: str, stop: str) -> int:
        """How many characters at the end of the text begin the stop string."""
        return next((k for k in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:k])), 0)
