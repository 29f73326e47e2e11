"""The record of a running episode: events with their times, which a listener hears as they happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from asyncthink.episode.records import Episode, Event, TokenEvent

if TYPE_CHECKING:
    from asyncthink.episode.speaker import Speaker

Listener = Callable[[Event | TokenEvent], None]


class Recorder:
    """Writes an episode's events and times, and calls its listener.

    A listener that raises is called no more; its exception is kept in ``listener_error``. ``clock`` returns seconds;
    the record's times are differences of it. ``step`` counts the steps since admission.
    """

    def __init__(self, episode: Episode, listener: Listener | None, clock: Callable[[], float]) -> None:
        self.step = 0
        self.listener_error: Exception | None = None
        self._episode, self._listener, self._clock = episode, listener, clock
        self._submitted = clock()
        self._admitted: float | None = None

    def admit(self) -> None:
        """The episode begins to run."""
        self._admitted = self._clock()

    def now(self) -> float:
        """Seconds since admission."""
        return 0.0 if self._admitted is None else self._clock() - self._admitted

    def tick(self) -> None:
        """A step is over."""
        self._episode.step_times.append(self.now())
        self.step += 1

    def event(
        self, kind: str, speaker: Speaker, index: int | None = None, peer: int | None = None, text: str = ""
    ) -> None:
        event = Event(kind, speaker.number, self.step, self.now(), index, peer, text)
        self._episode.events.append(event)
        self._tell(event)

    def token(self, speaker: Speaker, piece: str, drawn: tuple[int, float] | None = None) -> None:
        """Tell the listener of a token that was inserted, or ``drawn`` with this log-probability."""
        self._tell(TokenEvent(speaker.number, piece, drawn is not None, self.step, *(drawn or ())))

    def held_back(self, speaker: Speaker, piece: str) -> None:
        """Tell the listener of text that was held back until now. It belongs to a token that was drawn before."""
        self._tell(TokenEvent(speaker.number, piece, True, self.step))

    def finish(self, reason: str, answer: str | None) -> None:
        """The episode is over."""
        self._episode.answer, self._episode.finish = answer, reason
        self._episode.wall_seconds = self._clock() - self._submitted
        self._episode.critical_path_seconds = self.now()

    def mute(self) -> None:
        """Call the listener no more."""
        self._listener = None

    def _tell(self, event: Event | TokenEvent) -> None:
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception as error:
            self.listener_error, self._listener = error, None
