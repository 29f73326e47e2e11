"""What draws episodes: a sampler in this process, one behind HTTP, a pool of actors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode, Event, TokenEvent
from asyncthink.protocol.messages import Question


class EpisodeSource(Protocol):
    """What evaluation and rollouts need of a sampler; :class:`asyncthink.ForkJoinSampler` is one."""

    @property
    def options(self) -> Options:
        """How its episodes are organized."""

    def generate(
        self,
        questions: Sequence[Question],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_event: Callable[[int, Event | TokenEvent], None] | None = None,
    ) -> list[Episode]:
        """An episode for each question, in their order (:meth:`asyncthink.ForkJoinSampler.generate`)."""
