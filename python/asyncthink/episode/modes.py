"""How an episode is organized, one small strategy a mode: who begins, and what the end of an agent means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from asyncthink.episode.options import Options, combine
from asyncthink.episode.records import Episode
from asyncthink.episode.speaker import Speaker
from asyncthink.protocol.tags import Role


class Running(Protocol):
    """What a strategy needs of the episode that it organizes."""

    options: Options
    episode: Episode

    @property
    def speakers(self) -> Sequence[Speaker]: ...

    def finish(self, reason: str, answer: str | None = None) -> None: ...


class Mode(Protocol):
    """``opening`` is the role of the agents that begin an episode, and the template they begin with."""

    opening: Role

    def beginners(self, options: Options) -> int:
        """How many agents begin, all with the same prompt."""
        ...

    def answered(self, core: Running, speaker: Speaker, text: str) -> None:
        """``speaker`` has ended with an answer."""
        ...

    def gave_up(self, core: Running, speaker: Speaker, reason: str) -> None:
        """``speaker`` has ended without a result."""
        ...


class Organized:
    """An organizer and its workers: its end is the episode's, a worker's is not."""

    opening: Role = "organizer"

    def beginners(self, options: Options) -> int:
        return 1

    def answered(self, core: Running, speaker: Speaker, text: str) -> None:
        core.finish("answer", text)

    def gave_up(self, core: Running, speaker: Speaker, reason: str) -> None:
        if speaker.trace.parent is None:
            core.finish(reason)


class Sequential(Organized):
    """One agent alone."""

    opening: Role = "solo"


class Parallel:
    """``pool`` independent agents; when the last one has ended, their answers become one."""

    opening: Role = "solo"

    def beginners(self, options: Options) -> int:
        return options.pool

    def answered(self, core: Running, speaker: Speaker, text: str) -> None:
        self._settle(core)

    def gave_up(self, core: Running, speaker: Speaker, reason: str) -> None:
        self._settle(core)

    def _settle(self, core: Running) -> None:
        if not all(speaker.done for speaker in core.speakers):
            return
        answers = [trace.returned for trace in core.episode.traces if trace.returned is not None]
        if answers:
            core.finish("answer", combine(answers, core.options.aggregate))
        else:
            core.finish(core.episode.traces[0].finish)


#: By the names that :class:`asyncthink.episode.options.Options` knows.
STRATEGIES: dict[str, Mode] = {"asyncthink": Organized(), "sequential": Sequential(), "parallel": Parallel()}
