"""The routes beside the answers: the page, the model, tokens, health, metrics."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from asyncthink.serve.errors import ApiError, Json, ignored_header
from asyncthink.serve.page import PAGE, PAGE_HEADERS
from asyncthink.serve.reading import check_model, messages_of, unknown
from asyncthink.serve.schema import DetokenizeRequest, TokenizeRequest
from asyncthink.serve.service import Service


def page_routes(service: Service) -> APIRouter:
    """All of them."""
    router = APIRouter()
    engine, settings, started = service.engine, service.settings, int(time.time())
    sampler = engine.sampler

    def longest() -> int:
        held = sampler.cache.num_pages * sampler.cache.page_size
        positions = sampler.decoder.max_length
        return held if positions is None else min(held, positions)

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(PAGE, headers=PAGE_HEADERS)

    @router.get("/health")
    async def health() -> Response:
        """200 while the model works and has recorded its steps, else 503."""
        status = "the model failed" if not engine.healthy else "ok" if engine.ready else "recording steps"
        return Json({"status": status}, 200 if status == "ok" else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        stats = await asyncio.wrap_future(engine.snapshot())
        return Response(service.metrics.text(stats), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/v1/models")
    async def models() -> Response:
        """The one model of this server."""
        model = {"id": settings.model, "object": "model", "created": started, "owned_by": "asyncthink"}
        return Json({"object": "list", "data": [{**model, "max_model_len": longest()}]})

    @router.post("/v1/tokenize")
    def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a text, or of a chat as the model reads it in the server's default mode."""
        check_model(body.model, settings)
        ignored = unknown(body, settings)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "expected either prompt or messages", "prompt")
        if body.messages is not None:
            tokens = list(sampler.request(messages_of(body.messages), name="messages").prompt)
        else:
            text = body.prompt or ""
            _check_text(text)
            tokens = list(sampler.codec.backend.encode(text, add_special_tokens=body.add_special_tokens).ids)
        return Json(
            {"tokens": tokens, "count": len(tokens), "max_model_len": longest()}, headers=ignored_header(ignored)
        )

    @router.post("/v1/detokenize")
    def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids, control tokens included."""
        check_model(body.model, settings)
        unknown(body, settings)
        size = sampler.codec.backend.get_vocab_size()
        wrong = next((token for token in body.tokens if token >= size), None)
        if wrong is not None:
            raise ApiError(400, f"tokens: expected ids in [0, {size}), got {wrong}", "tokens")
        told: dict[str, Any] = {"prompt": sampler.codec.decode(body.tokens)}
        return Json(told)

    return router


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError(400, "prompt: expected text that UTF-8 can encode, got a lone surrogate", "prompt") from None
