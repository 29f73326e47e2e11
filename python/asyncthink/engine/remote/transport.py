"""What a driver asks of an engine elsewhere: the next tokens of one context. No HTTP here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from asyncthink.episode.params import SamplingParams
from asyncthink.protocol.guide import Rule


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for the tokens that follow a context.

    Args:
        prompt: the context, T >= 1 token ids.
        max_tokens: the most tokens to draw, at least 1.
        stop: strings behind which nothing more is of use. The tokens up to the end of the first one are wanted; later
            ones do no harm, but are thrown away.
        params: temperature, top_k, top_p, min_p and seed; its other fields are the driver's affair.
        agent, position: the agent in its episode, and how many tokens it has drawn before. With the seed, what its
            next draw's random number depends on.
        session: a name that all requests of an episode share, so that they find its prefix cache.
        rule, tail: what a guide lets the agent write, behind the characters ``tail`` of a tag that has begun; None:
            anything.
    """

    prompt: Sequence[int]
    max_tokens: int
    params: SamplingParams
    stop: tuple[str, ...] = ()
    agent: int = 0
    position: int = 0
    session: str = ""
    rule: Rule | None = field(default=None, kw_only=True)
    tail: str = field(default="", kw_only=True)


class Chunk(NamedTuple):
    """Tokens that were drawn, with the natural logarithm of each one's probability."""

    tokens: Sequence[int]
    logprobs: Sequence[float]


class Transport(Protocol):
    """An engine elsewhere. Many requests are under way at once.

    ``streams``: whether tokens come as they are drawn. An engine that answers once, at the end, is asked to stop
    wherever a worker could begin.
    """

    streams: bool

    def draw(self, ask: Ask) -> AsyncGenerator[Chunk, None]:
        """The drawn tokens as they come, in chunks of at least one; closing the iterator cancels the request.

        It ends behind a string of ``ask.stop``, at the model's end of text (whose token is among those drawn) or after
        ``ask.max_tokens``. What it raises ends the episode: a transport repeats by itself what can be repeated.
        """
        ...
