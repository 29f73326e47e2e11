"""Errors in OpenAI's format: one clear line, and a status that says whose fault it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from asyncthink.engine.async_engine import EngineFullError, EngineStoppedError

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_MOST_NAMES, _MOST_LETTERS = 50, 2000  # of unknown fields in a header; clients refuse long ones


class ApiError(Exception):
    """An answer with an error. ``param`` names the field that is wrong."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, " ".join(message.split()), param


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 and more."""

    error: ErrorDetail


#: For the OpenAPI page.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "A value that cannot be served",
        401: "No API key, or another one",
        403: "No API key is set, and the request names another server, or comes from a page of another site",
        404: "Another model than the server's",
        413: "A body that is too large",
        422: "JSON of another form",
        429: "Too many requests wait",
        500: "The model failed",
        501: "Not supported by this server",
        503: "The server is shutting down",
        504: "The request took too long",
    }.items()
}


class Json(Response):
    """JSON in ASCII, so that any text can be sent, lone surrogates in an error message too."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


def detail(error: ApiError) -> dict[str, Any]:
    """The body of an error's answer."""
    kind = KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.status}}


def answer(error: ApiError) -> Json:
    """The answer to a request that cannot be served."""
    headers = {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "1"}}.get(error.status)
    return Json(detail(error), error.status, headers)


def api_error(error: Exception) -> ApiError:
    """The answer that stands for an exception of the engine; anything else is a fault of the program."""
    match error:
        case ApiError():
            return error
        case EngineFullError():
            return ApiError(429, f"too many requests wait: {error}")
        case EngineStoppedError():
            return ApiError(500 if error.__cause__ is not None else 503, str(error))
        case TimeoutError():
            return ApiError(504, "the request took longer than this server allows")
        case ValueError():
            message = str(error)
            return ApiError(400, message, message.partition(":")[0] if ": expected" in message else None)
    return ApiError(500, f"{type(error).__name__}: a fault of the server")


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """``x-asyncthink-ignored``: what a request's unknown fields are called, percent-encoded where a header forbids it.

    >>> ignored_header(["top_a", "", "a b"]), ignored_header([])
    ({'x-asyncthink-ignored': 'top_a, "", a%20b'}, {})
    """
    if not names:
        return {}
    shown = ", ".join(quote(name, errors="replace") or '""' for name in names[:_MOST_NAMES])
    more = len(shown) > _MOST_LETTERS or len(names) > _MOST_NAMES
    return {"x-asyncthink-ignored": f"{shown[:_MOST_LETTERS]} ..." if more else shown}


def add_handlers(app: FastAPI) -> None:
    """Answer all errors in one format."""

    async def engine(request: Request, error: Exception) -> Response:
        return answer(api_error(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = answer(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))
        response.headers.update(error.headers or {})
        return response

    async def shape(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            return answer(ApiError(400, f"expected JSON, got {first['ctx']['error']} at character {first['loc'][-1]}"))
        return answer(ApiError(422, f"{where or 'body'}: {first['msg']}", where or None))

    for kind in (ApiError, EngineFullError, EngineStoppedError, TimeoutError, ValueError):
        app.add_exception_handler(kind, engine)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, shape)
    app.add_exception_handler(Exception, engine)
