"""What clients send, as OpenAI's API has it. Fields that are unknown here are kept, to be named."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from asyncthink.protocol.guide import Text

Seed = Annotated[int, Field(ge=0, lt=2**64)]
Tokens = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]


class Open(BaseModel):
    """A body whose unknown fields are known by name."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class StreamOptions(Open):
    include_usage: bool = False


class Message(Open):
    """``content`` is a text, or parts ``{"type": "text", "text": ...}``."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class Drawing(Open):
    """How tokens are drawn: what chats and completions have in common."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: float | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    user: str | None = None


class ChatRequest(Drawing):
    """``asyncthink`` holds fields of :class:`asyncthink.Options`, ``max_episode_tokens``, and ``record``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    asyncthink: dict[str, Any] = Field(default_factory=dict)


class OriginRule(BaseModel):
    """The fields of :class:`asyncthink.protocol.guide.Rule`."""

    model_config = ConfigDict(extra="forbid")
    acting: tuple[str, ...]
    tags: tuple[str, ...] = ()
    taken: tuple[int, ...] | None = None
    text: Text = Text.FREE
    ends: bool = False
    unlike: tuple[Annotated[str, Field(min_length=1)], ...] = ()


class CompletionOrigin(BaseModel):
    """Which agent of an episode, driven by the client, goes on: :class:`asyncthink.engine.requests.Origin`."""

    model_config = ConfigDict(extra="forbid")
    agent: Annotated[int, Field(ge=0, lt=2**31)] = 0
    position: Annotated[int, Field(ge=0, lt=2**31)] = 0
    rule: OriginRule | None = None
    tail: Annotated[str, Field(max_length=64)] = ""


class CompletionRequest(Drawing):
    """``prompt`` is a text or token ids, or a list of such."""

    prompt: str | Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool = False
    return_token_ids: bool = False
    asyncthink: CompletionOrigin = Field(default_factory=CompletionOrigin)


class TokenizeRequest(Open):
    """A text, or messages as the model reads a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Open):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, strict=True)]]
