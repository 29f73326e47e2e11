"""What a server is told when it starts: its name, its key, and the limits of what a client may ask."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one request may ask for. Each of them is at least 1.

    Args:
        body_bytes: of a request's body; more is refused with 413.
        prompt_tokens: of a prompt; None: what cache and model hold.
        max_tokens: tokens that an agent may draw.
        default_max_tokens: tokens that an agent of a chat may draw if the request does not say.
        choices: answers, over all prompts of a request.
        pool: agents of an episode alive at once.
        depth: levels of workers.
        waiting: requests that wait for admission; another one is refused with 429.
        seconds: until a request is ended, whether it runs or waits; it gets 504 then.
    """

    body_bytes: int = 4 * 1024 * 1024
    prompt_tokens: int | None = None
    max_tokens: int = 32768
    default_max_tokens: int = 1024
    choices: int = 16
    pool: int = 16
    depth: int = 3
    waiting: int = 256
    seconds: float = 600.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not value >= 1:
                raise ValueError(f"{each.name}: expected at least 1, got {value}")


@dataclass(frozen=True, slots=True)
class Settings:
    """A server's settings.

    Args:
        model: the name that clients give.
        api_key: what clients must send as ``Authorization: Bearer ...``; None: nothing. It is never logged.
        strict: refuse requests with unknown fields; else they are ignored, and named in ``x-asyncthink-ignored``.
        weight_updates: let clients change the model's weights.
        limits: see :class:`Limits`.
        hosts: names under which the server is reached, besides addresses and localhost. Without a key, requests to
            others are refused, and those that pages of others send.
    """

    model: str
    api_key: str | None = field(default=None, repr=False)
    strict: bool = False
    weight_updates: bool = False
    limits: Limits = field(default_factory=Limits)
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("api_key: expected a key, got an empty text")
        for host in self.hosts:
            if not host or host != host.lower() or set(host) & set(":/ *[]"):
                raise ValueError(f"hosts: expected names in lower case, without port, got {host!r}")
