"""How agents end: by a tag, at a limit, by themselves, with the agent that forked them; and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from asyncthink.episode.guides import Legal
from asyncthink.episode.modes import Strategy
from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.recorder import Recorder
from asyncthink.episode.records import Episode
from asyncthink.episode.speaker import Speaker
from asyncthink.episode.wishes import Release, Wish
from asyncthink.protocol.tags import BUDGET_EXCEEDED, Action, FormatError


class Running(Protocol):
    """The running episode, as the ends of its agents see it."""

    params: SamplingParams
    options: Options
    episode: Episode
    record: Recorder
    strategy: Strategy
    max_length: int | None
    guide: Legal | None
    done: bool

    @property
    def speakers(self) -> Sequence[Speaker]: ...

    @property
    def workers(self) -> Mapping[tuple[int, int], Speaker]: ...

    def act(self, speaker: Speaker, action: Action) -> None: ...

    def returned(self, parent: Speaker) -> None: ...

    def finish(self, reason: str, answer: str | None = None) -> None: ...

    def wish(self, *wishes: Wish) -> None: ...


class Endings:
    """The ends of one episode's agents."""

    def __init__(self, core: Running) -> None:
        self._core = core

    def check_limits(self, speaker: Speaker, new: int) -> None:
        """End at a stop string in the last ``new`` characters, at a token budget, or at the model's last position."""
        params = self._core.params
        if speaker.ends_in(params.stop, new):
            self.close(speaker, "stop")
        elif self._core.guide is not None:
            return  # it leads the agent to its end in time
        elif speaker.trace.decoded >= params.max_tokens:
            self.fail(speaker, speaker.parser.fail(BUDGET_EXCEEDED, f"{params.max_tokens} tokens"), "budget")
        elif params.max_episode_tokens is not None and self._core.episode.total_tokens >= params.max_episode_tokens:
            for other in self._core.speakers if speaker.replies else ():
                self._reply(other, "budget")
            if self._core.done:
                return
            error = speaker.parser.fail(BUDGET_EXCEEDED, f"{params.max_episode_tokens} tokens in the episode")
            self._core.episode.format_errors.append(str(error))
            self._core.finish("budget")
        elif self.full(speaker.length):
            self.run_out(speaker)

    def full(self, length: int) -> bool:
        """Whether a context of ``length`` tokens leaves no position for another one."""
        return self._core.max_length is not None and length >= self._core.max_length

    def run_out(self, speaker: Speaker) -> None:
        """The model has no position left for the agent's next token."""
        error = speaker.parser.fail(BUDGET_EXCEEDED, f"{self._core.max_length} positions of the model")
        self.fail(speaker, error, "length")

    def close(self, speaker: Speaker, reason: str) -> None:
        """The agent stopped by itself. A missing or open tag is a format error, but not under a guide."""
        if self._core.guide is not None:
            result = speaker.parser.conclude()
            self.give_up(speaker, reason) if result is None else self._core.act(speaker, result)
            return
        for action in speaker.parser.close():
            if isinstance(action, FormatError):
                self.fail(speaker, action, reason)
        if speaker.replies:
            self._reply(speaker, reason)
        elif not speaker.done:
            self.end(speaker, reason)

    def _reply(self, speaker: Speaker, reason: str) -> None:
        """An agent whose text is its answer has ended; a stop string is no part of the answer."""
        if speaker.done:
            return
        self.end(speaker, reason)
        speaker.trace.returned = speaker.before(self._core.params.stop if reason == "stop" else ())
        self._core.strategy.answered(self._core, speaker, speaker.trace.returned)

    def fail(self, speaker: Speaker, error: FormatError, reason: str = "error") -> None:
        """The agent ends with a format error."""
        if speaker.replies:  # without tags, an end at a limit is an ordinary one
            self._reply(speaker, reason)
            return
        self._core.episode.format_errors.append(f"{speaker.name}: {error}")
        self._core.record.event("error", speaker, speaker.trace.fork_index, text=str(error))
        self.give_up(speaker, reason)

    def give_up(self, speaker: Speaker, reason: str) -> None:
        """The agent ends without a result."""
        self.end(speaker, reason)
        self._core.strategy.gave_up(self._core, speaker, reason)

    def end(self, speaker: Speaker, reason: str) -> None:
        """End the agent and its own workers. A parent that waits for it gets its return, which may be empty."""
        if speaker.done:
            return
        speaker.done = True
        speaker.trace.finish = reason
        if piece := speaker.flush():
            self._core.record.held_back(speaker, piece)
        speaker.trace.text = speaker.text
        if speaker.trace.parent is None or self._core.done:
            return
        self._cancel_workers(speaker)
        if not speaker.trace.returned:  # no join can read its context
            self._core.wish(Release(speaker.number))
        parent = self._core.speakers[speaker.trace.parent]
        if parent.done:  # it has cancelled this worker
            return
        returned = speaker.trace.returned or ""
        self._core.record.event("return", speaker, speaker.trace.fork_index, parent.number, returned)
        if parent.waiting_for is speaker:
            self._core.returned(parent)

    def _cancel_workers(self, parent: Speaker) -> None:
        """``parent`` has ended: nobody joins its workers any more, as nobody does when the organizer has answered."""
        for worker in [self._core.workers[number, i] for number, i in self._core.workers if number == parent.number]:
            if not worker.done:
                self._core.record.event("stop", worker, worker.trace.fork_index, text="cancelled")
                self.end(worker, "cancelled")
            else:
                self._core.wish(Release(worker.number))
