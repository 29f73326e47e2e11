"""POST /v1/chat/completions: an episode for each choice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from asyncthink.episode.records import Episode
from asyncthink.serve import answers
from asyncthink.serve.errors import Json, ignored_header
from asyncthink.serve.events import EventStream, sse, while_connected
from asyncthink.serve.reading import ChatAsk, read_chat
from asyncthink.serve.schema import ChatRequest
from asyncthink.serve.service import Service
from asyncthink.serve.stops import StopFilter


def chat_routes(service: Service) -> APIRouter:
    """The route of chats."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation. With ``stream`` the answer is an event stream (docs/serve.md has its chunks)."""
        ask = await asyncio.to_thread(read_chat, body, service.engine.sampler, service.settings)
        headers = ignored_header(ask.ignored)
        if body.stream:
            return EventStream(_chunks(service, body, ask), headers, seconds=service.settings.limits.seconds)
        episodes = await while_connected(request, service.run(ask.requests))
        return Json(_whole(service, body, ask, episodes), headers=headers)

    return router


def _whole(service: Service, body: ChatRequest, ask: ChatAsk, episodes: list[Episode]) -> dict[str, Any]:
    options, stops = ask.requests[0].options, ask.requests[0].params.stop
    choices: list[dict[str, Any]] = []
    for index, episode in enumerate(episodes):
        reason = answers.finish_reason(episode)
        message: dict[str, Any] = {"role": "assistant", "content": answers.content(episode, options, stops)}
        if (thoughts := answers.reasoning(episode, options)) is not None:
            message["reasoning_content"] = thoughts
        logprobs = answers.chat_logprobs(episode.traces[0], service.engine.sampler.codec) if body.logprobs else None
        choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason})
        if len(episodes) > 1:
            choices[-1]["asyncthink"] = answers.summary(episode)
    head = answers.envelope("chat.completion", service.settings.model)
    return {**head, "choices": choices, **_end(ask, episodes)}


def _end(ask: ChatAsk, episodes: list[Episode]) -> dict[str, Any]:
    """Usage, and for a single choice what its episode took."""
    told: dict[str, Any] = {"usage": answers.usage([len(ask.requests[0].prompt)], episodes)}
    if len(episodes) == 1:
        told["asyncthink"] = answers.summary(episodes[0])
        if ask.record:
            told["asyncthink"]["record"] = episodes[0].to_dict()
    return told


async def _chunks(service: Service, body: ChatRequest, ask: ChatAsk) -> AsyncGenerator[bytes]:
    """Roles first; then deltas; each choice ends with its finish_reason; at last usage and summary."""
    head = answers.envelope("chat.completion.chunk", service.settings.model)
    plain = answers.is_plain(ask.requests[0].options)
    filters = [StopFilter(request.params.stop if plain else ()) for request in ask.requests]
    episodes: dict[int, Episode] = {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
        return {**head, "choices": [{"index": index, "delta": delta, "finish_reason": reason, **more}]}

    async with service.streams(ask.requests) as streams, contextlib.aclosing(service.news(streams)) as news:
        yield sse(*(chunk(index, {"role": "assistant", "content": ""}) for index in range(len(ask.requests))))
        async for index, events, episode in news:
            told: list[dict[str, Any]] = []
            for event in events:
                delta = answers.delta(event, plain)
                if delta is not None and plain and "content" in delta:
                    delta["content"] = filters[index].push(delta["content"])
                    delta = delta if delta["content"] else None
                if delta is not None:
                    told.append(chunk(index, delta))
            if episode is not None:
                if rest := filters[index].flush():
                    said = {"agent": 0, "step": len(episode.step_times), "sampled": True}
                    told.append(chunk(index, {"content": rest, "asyncthink": said}))
                told.append(_last(service, body, ask, index, episode, chunk))
                episodes[index] = episode
            if told:
                yield sse(*told)
    if body.stream_options is not None and body.stream_options.include_usage:
        yield sse({**head, "choices": [], **_end(ask, [episodes[k] for k in sorted(episodes)])})
    yield b"data: [DONE]\n\n"


def _last(
    service: Service, body: ChatRequest, ask: ChatAsk, index: int, episode: Episode, chunk: Any
) -> dict[str, Any]:
    """The chunk that ends a choice. Without a chunk of usage behind it, it holds what the episode took."""
    more: dict[str, Any] = {}
    if body.logprobs:
        more["logprobs"] = answers.chat_logprobs(episode.traces[0], service.engine.sampler.codec)
    if len(ask.requests) > 1:
        more["asyncthink"] = answers.summary(episode)
    last: dict[str, Any] = chunk(index, {}, answers.finish_reason(episode), **more)
    if len(ask.requests) == 1 and not (body.stream_options is not None and body.stream_options.include_usage):
        last["asyncthink"] = _end(ask, [episode])["asyncthink"]
    return last
