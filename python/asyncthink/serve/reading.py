"""A client's request as the engine's: parameters, options and limits, checked before anything runs."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from asyncthink.engine.requests import Origin, Request
from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.episode.options import AnswerForm, Options, default_forms
from asyncthink.episode.params import SamplingParams
from asyncthink.protocol.guide import Rule
from asyncthink.protocol.tags import begins_tag
from asyncthink.serve.errors import ApiError
from asyncthink.serve.schema import ChatRequest, CompletionOrigin, CompletionRequest, Drawing, Message
from asyncthink.serve.settings import Limits, Settings

#: Fields of OpenAI's API that this server cannot serve, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    **{"tools": (None, []), "functions": (None, []), "tool_choice": (None, "none", "auto"), "logit_bias": (None, {})},
    **{"response_format": (None, {"type": "text"}), "presence_penalty": (None, 0), "frequency_penalty": (None, 0)},
    **{"repetition_penalty": (None, 1), "best_of": (None, 1), "suffix": (None, ""), "modalities": (None, ["text"])},
    **{"audio": (None,), "prediction": (None,), "function_call": (None, "none", "auto")},
}
#: Fields that say nothing about the answer.
_HARMLESS = frozenset({"metadata", "store", "service_tier", "parallel_tool_calls"})
_OPTIONS = tuple(each.name for each in dataclasses.fields(Options))


class ChatAsk(NamedTuple):
    """A chat request, read: one engine request for each choice."""

    requests: list[Request]
    record: bool
    ignored: list[str]


class CompletionAsk(NamedTuple):
    """A completion request, read: the choices of the first prompt come first."""

    requests: list[Request]
    ignored: list[str]


def unknown(body: BaseModel, settings: Settings, name: str = "") -> list[str]:
    """The names of a body's unknown fields. Raises ApiError for a field that cannot be served, and if strict."""
    names: list[str] = []
    for field, value in (body.model_extra or {}).items():
        if field in _NEUTRAL and value not in _NEUTRAL[field]:
            neutral = " or ".join(map(repr, _NEUTRAL[field]))
            raise ApiError(400, f"{name}{field}: not supported by this server; expected {neutral} or nothing", field)
        if field not in _NEUTRAL and field not in _HARMLESS:
            names.append(f"{name}{field}")
    if names and settings.strict:
        raise ApiError(400, f"unknown fields: {', '.join(names)}", names[0])
    return names


def check_model(name: str | None, settings: Settings) -> None:
    """Raises ApiError (404) for another model than the server's; "default" and nothing are its own."""
    if name not in (None, "", "default", settings.model):
        raise ApiError(404, f"model: expected {settings.model!r} (the model of this server), got {name!r}", "model")


def read_chat(body: ChatRequest, sampler: ForkJoinSampler, settings: Settings) -> ChatAsk:
    """The engine's requests of a chat. Raises ApiError or ValueError for what cannot be served."""
    check_model(body.model, settings)
    ignored = unknown(body, settings)
    for number, message in enumerate(body.messages):
        ignored += unknown(message, settings, f"messages[{number}].")
    asked = dict(body.asyncthink)
    record, most = asked.pop("record", False), asked.pop("max_episode_tokens", None)
    if not isinstance(record, bool):
        raise ApiError(400, f"asyncthink.record: expected true or false, got {record!r}", "asyncthink.record")
    strangers = [f"asyncthink.{name}" for name in asked if name not in _OPTIONS]
    if strangers and settings.strict:
        raise ApiError(400, f"unknown fields: {', '.join(strangers)}", strangers[0])
    options = options_for({k: v for k, v in asked.items() if k in _OPTIONS}, sampler, settings.limits)
    tokens = body.max_completion_tokens or body.max_tokens or settings.limits.default_max_tokens
    params = _params(body, tokens, settings.limits, max_episode_tokens=most)
    if body.logprobs and options.answer != AnswerForm.TEXT:
        raise ApiError(400, "logprobs: expected false beside answers in tags; asyncthink.record has them", "logprobs")
    if body.top_logprobs:
        raise ApiError(400, f"top_logprobs: expected 0, got {body.top_logprobs}", "top_logprobs")
    if record and (body.n or 1) > 1:
        raise ApiError(400, f"asyncthink.record: expected n=1 beside it, got {body.n}", "asyncthink.record")
    request = sampler.request(messages_of(body.messages), params, options, name="messages")
    _check_prompt(request, settings.limits)
    return ChatAsk(list(_choices(request, body, settings.limits)), record, ignored + strangers)


def read_completion(body: CompletionRequest, sampler: ForkJoinSampler, settings: Settings) -> CompletionAsk:
    """The engine's requests of a completion. Raises ApiError or ValueError for what cannot be served."""
    check_model(body.model, settings)
    ignored = unknown(body, settings)
    params = _params(body, 16 if body.max_tokens is None else max(body.max_tokens, 1), settings.limits)
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens: expected at least 1 (0 with echo alone), got 0", "max_tokens")
    if body.logprobs is not None and body.logprobs > 1:
        raise ApiError(400, f"logprobs: expected 0 or 1, got {body.logprobs}", "logprobs")
    if body.echo and body.stream:
        raise ApiError(400, "echo: expected stream=false beside it", "echo")
    prompt = body.prompt
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    prompts: list[Any] = list(prompt) if several else [prompt]
    _check_choices(len(prompts) * (body.n or 1), settings.limits)
    requests: list[Request] = []
    for each in prompts:
        request = sampler.continuation(each, params, origin_of(body.asyncthink))
        _check_prompt(request, settings.limits)
        requests += _choices(request, body, settings.limits)
    return CompletionAsk(requests, ignored)


def origin_of(given: CompletionOrigin) -> Origin:
    """The agent that goes on. Raises ApiError for characters that begin no tag."""
    if given.tail and not begins_tag(given.tail):
        raise ApiError(400, f"asyncthink.tail: expected the beginning of a tag, got {given.tail!r}", "asyncthink.tail")
    rule = None if given.rule is None else Rule(**given.rule.model_dump())
    return Origin(given.agent, given.position, rule, given.tail)


def options_for(given: dict[str, Any], sampler: ForkJoinSampler, limits: Limits) -> Options:
    """The server's options with those that a client gave.

    Where the client asks for another mode, or another form of answer, what it leaves open is as for a new sampler.
    """
    server = sampler.options
    defaults = {name: getattr(server, name) for name in _OPTIONS}
    mode, answer, guide = (given.get(name) for name in ("mode", "answer", "guide"))
    if mode not in (None, server.mode) or answer not in (None, server.answer):
        own = sampler.own_prompts is not None
        defaults |= default_forms(own, mode or server.mode, answer=answer, guide=guide) | {"forks": None}
    elif guide not in (None, server.guide):
        defaults["forks"] = None
    for name in ("pool", "depth"):
        value, most = given.get(name, 1), getattr(limits, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ApiError(400, f"asyncthink.{name}: expected an integer in [1, {most}], got {value!r}")
    try:
        return Options(**defaults | given)
    except (ValueError, TypeError) as error:
        raise ApiError(400, f"asyncthink.{error}", "asyncthink") from None


def messages_of(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as the engine takes them; an assistant's content may be missing."""
    return [{"role": each.role, "content": "" if each.content is None else each.content} for each in messages]


def _params(body: Drawing, tokens: int, limits: Limits, **more: Any) -> SamplingParams:
    if tokens > limits.max_tokens:
        raise ApiError(400, f"max_tokens: expected at most {limits.max_tokens}, got {tokens}", "max_tokens")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    given: dict[str, Any] = {"temperature": body.temperature, "top_p": body.top_p, "min_p": body.min_p}
    return SamplingParams(
        **{name: value for name, value in given.items() if value is not None},
        top_k=max(body.top_k or 0, 0),  # -1 keeps all, as in vLLM
        max_tokens=tokens,
        stop=stop,
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        timeout=limits.seconds,
        **more,
    )


def _choices(request: Request, body: Drawing, limits: Limits) -> Iterator[Request]:
    """The request once for each choice, with seeds that follow each other."""
    count, params = body.n or 1, request.params
    _check_choices(count, limits)
    for number in range(count):
        yield dataclasses.replace(request, params=params.with_seed((params.seed + number) % 2**64))


def _check_choices(count: int, limits: Limits) -> None:
    if count > limits.choices:
        raise ApiError(400, f"n: expected at most {limits.choices} choices of a request, got {count}", "n")


def _check_prompt(request: Request, limits: Limits) -> None:
    most = limits.prompt_tokens
    if most is not None and len(request.prompt) > most:
        raise ApiError(400, f"prompt: expected at most {most} tokens, got {len(request.prompt)}", "prompt")
