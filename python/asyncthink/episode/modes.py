"""One strategy for each mode: which agents begin an episode, and what the end of an agent means for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from asyncthink.episode.options import AnswerForm, Mode, Options, combine
from asyncthink.episode.records import Episode
from asyncthink.episode.speaker import Speaker
from asyncthink.protocol.tags import Role


class Running(Protocol):
    """The running episode, as a strategy sees it."""

    options: Options
    episode: Episode

    @property
    def speakers(self) -> Sequence[Speaker]: ...

    def finish(self, reason: str, answer: str | None = None) -> None: ...


class Strategy(Protocol):
    """``opening`` is the role of the agents that begin an episode, if they answer in tags."""

    opening: Role

    def beginners(self, options: Options) -> int:
        """The number of agents that begin. All get the same prompt."""
        ...

    def answered(self, core: Running, speaker: Speaker, text: str) -> None:
        """``speaker`` has ended with an answer."""
        ...

    def gave_up(self, core: Running, speaker: Speaker, reason: str) -> None:
        """``speaker`` has ended without a result."""
        ...


class Organized:
    """An organizer and its workers. The episode ends with the organizer; a worker's end does not end it."""

    opening: Role = "organizer"

    def beginners(self, options: Options) -> int:
        return 1

    def answered(self, core: Running, speaker: Speaker, text: str) -> None:
        core.finish(speaker.trace.finish, text)

    def gave_up(self, core: Running, speaker: Speaker, reason: str) -> None:
        if speaker.trace.parent is None:
            core.finish(reason)


class Sequential(Organized):
    """One agent alone."""

    opening: Role = "solo"


class Parallel:
    """``pool`` independent agents. When the last one has ended, their answers become one."""

    opening: Role = "solo"

    def beginners(self, options: Options) -> int:
        return options.pool

    def answered(self, core: Running, speaker: Speaker, text: str) -> None:
        self._finish_if_all_done(core)

    def gave_up(self, core: Running, speaker: Speaker, reason: str) -> None:
        self._finish_if_all_done(core)

    def _finish_if_all_done(self, core: Running) -> None:
        if not all(speaker.done for speaker in core.speakers):
            return
        answers = [trace.returned for trace in core.episode.traces if trace.returned is not None]
        if answers:
            core.finish("answer", combine(answers, core.options.aggregate))
        else:
            core.finish(core.episode.traces[0].finish)


STRATEGIES: dict[str, Strategy] = {
    Mode.ASYNCTHINK: Organized(),
    Mode.SEQUENTIAL: Sequential(),
    Mode.PARALLEL: Parallel(),
}


def opening(options: Options) -> Role:
    """The role of the agents that begin an episode, and the name of their template.

    >>> opening(Options("parallel")), opening(Options("parallel", answer="text"))
    ('solo', 'reply')
    """
    return "reply" if options.answer == AnswerForm.TEXT else STRATEGIES[options.mode].opening
