"""The server as an ASGI application."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp

from asyncthink.engine.async_engine import AsyncEngine
from asyncthink.serve.chat import chat_routes
from asyncthink.serve.completions import completion_routes
from asyncthink.serve.errors import RESPONSES, add_handlers
from asyncthink.serve.guard import Guard
from asyncthink.serve.metrics import Metrics
from asyncthink.serve.pages import page_routes
from asyncthink.serve.service import Service
from asyncthink.serve.settings import Settings
from asyncthink.serve.trainers import trainer_routes


def create_app(engine: AsyncEngine, settings: Settings) -> ASGIApp:
    """The application that serves an engine. Whoever made the engine closes it, after the server has ended."""
    app = FastAPI(title="asyncthink", summary="A model that organizes its own workers", responses=RESPONSES)
    service = Service(engine, settings, Metrics())
    add_handlers(app)
    for routes in (page_routes, chat_routes, completion_routes, trainer_routes):
        app.include_router(routes(service))
    return Guard(app, settings)
