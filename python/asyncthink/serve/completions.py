"""POST /v1/completions: one agent goes on with a text or token ids, without a template and without tags."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from asyncthink.engine.requests import Request as EngineRequest
from asyncthink.engine.scoring import Scores, score
from asyncthink.episode.records import Episode, TokenEvent
from asyncthink.serve import answers
from asyncthink.serve.errors import Json, ignored_header
from asyncthink.serve.events import EventStream, sse, while_connected
from asyncthink.serve.reading import CompletionAsk, read_completion
from asyncthink.serve.schema import CompletionRequest
from asyncthink.serve.service import Service
from asyncthink.serve.stops import StopFilter, cut


def completion_routes(service: Service) -> APIRouter:
    """The route of completions."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Continue one prompt or several. ``return_token_ids`` adds the ids of the prompt and the drawn ones."""
        ask = await asyncio.to_thread(read_completion, body, service.engine.sampler, service.settings)
        headers = ignored_header(ask.ignored)
        if body.stream:
            return EventStream(_chunks(service, body, ask), headers, seconds=service.settings.limits.seconds)
        return Json(await while_connected(request, _whole(service, body, ask)), headers=headers)

    return router


async def _whole(service: Service, body: CompletionRequest, ask: CompletionAsk) -> dict[str, Any]:
    scores: list[Scores | None] = [None] * len(ask.requests)
    if body.echo and body.logprobs is not None:
        scores = list(await asyncio.gather(*(_score(service, request) for request in ask.requests)))
    episodes: list[Episode | None] = [None] * len(ask.requests)
    if body.max_tokens != 0:
        episodes = list(await service.run(ask.requests))
    rows = zip(ask.requests, episodes, scores, strict=True)
    choices = [_choice(service, body, index, *row) for index, row in enumerate(rows)]
    head = answers.envelope("text_completion", service.settings.model)
    return {**head, "choices": choices, "usage": _usage(body, ask, [each for each in episodes if each is not None])}


async def _score(service: Service, request: EngineRequest) -> Scores:
    work = service.engine.call(lambda: score(service.engine.sampler, request.prompt))
    return await asyncio.wrap_future(work)


def _usage(body: CompletionRequest, ask: CompletionAsk, episodes: list[Episode]) -> dict[str, Any]:
    prompts = [len(request.prompt) for request in ask.requests[:: body.n or 1]]
    return answers.usage(prompts, episodes)


def _choice(
    service: Service,
    body: CompletionRequest,
    index: int,
    request: EngineRequest,
    episode: Episode | None,
    scores: Scores | None,
) -> dict[str, Any]:
    codec = service.engine.sampler.codec
    prompt = list(request.prompt)
    reason = "length" if episode is None else answers.finish_reason(episode)
    ids, logprobs, pieces = ([], [], []) if episode is None else answers.drawn(episode.traces[0])
    text = "" if episode is None else cut(episode.traces[0].text, request.params.stop)
    choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
    if body.return_token_ids:
        choice |= {"token_ids": ids, "prompt_token_ids": prompt}
    if body.logprobs is not None:
        names = [piece or codec.alone(token) for token, piece in zip(ids, pieces, strict=True)]
        choice["logprobs"] = _logprobs(names, logprobs)
    if body.echo:
        choice["text"] = codec.decode(prompt) + text
        if scores is not None:
            names = [codec.alone(token) for token in prompt]
            likeliest = zip(scores.best, scores.best_logprobs, strict=True)
            best = [None, *({codec.alone(token): value} for token, value in likeliest)]
            told = _logprobs(names, [None, *scores.logprobs], best)
            both = {name: told[name] + choice["logprobs"][name] for name in told}
            choice["logprobs"] = both | {"text_offset": _offsets(both["tokens"])}
    return choice


def _drawn(service: Service, body: CompletionRequest, events: list[TokenEvent]) -> dict[str, Any]:
    """The ids and log-probabilities of a step, as far as they were asked for."""
    told: dict[str, Any] = {}
    known = [event for event in events if event.token is not None]
    if body.return_token_ids:
        told["token_ids"] = [event.token for event in known]
    if body.logprobs is not None and known:
        alone = service.engine.sampler.codec.alone
        names = [event.text or alone(event.token) for event in known if event.token is not None]
        told["logprobs"] = _logprobs(names, [event.logprob for event in known])
    return told


def _logprobs(
    tokens: list[str], logprobs: list[Any], best: list[dict[str, float] | None] | None = None
) -> dict[str, list[Any]]:
    """The ``logprobs`` of a choice. Of drawn tokens only their own log-probability is known."""
    top = best if best is not None else [{token: logprob} for token, logprob in zip(tokens, logprobs, strict=True)]
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": _offsets(tokens)}


def _offsets(tokens: list[str]) -> list[int]:
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    return offsets[:-1]


async def _chunks(service: Service, body: CompletionRequest, ask: CompletionAsk) -> AsyncGenerator[bytes]:
    """Text, ids and log-probabilities as they come; each choice ends with its finish_reason; at last the usage."""
    head = answers.envelope("text_completion", service.settings.model)
    filters = [StopFilter(request.params.stop) for request in ask.requests]
    episodes: dict[int, Episode] = {}
    async with service.streams(ask.requests) as streams, contextlib.aclosing(service.news(streams)) as news:
        async for index, events, episode in news:
            drawn = [event for event in events if isinstance(event, TokenEvent)]
            if episode is not None:
                episodes[index] = episode
                text, reason = filters[index].flush(), answers.finish_reason(episode)
            else:
                text, reason = "".join(filters[index].push(event.text) for event in drawn), None
            choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
            choice |= _drawn(service, body, drawn)
            if reason is not None and body.return_token_ids:
                choice["prompt_token_ids"] = list(ask.requests[index].prompt)
            if text or reason or choice.get("token_ids") or choice["logprobs"]:
                yield sse({**head, "choices": [choice]})
    if body.stream_options is not None and body.stream_options.include_usage:
        told = [episodes[k] for k in sorted(episodes)]
        yield sse({**head, "choices": [], "usage": _usage(body, ask, told)})
    yield b"data: [DONE]\n\n"
