"""What trainers call: hold the steps, change the weights, go on. The names are vLLM's, as TRL's AsyncGRPO uses them."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter
from starlette.responses import Response

from asyncthink.engine.weights import write_weights
from asyncthink.serve.errors import ApiError, Json
from asyncthink.serve.reading import unknown
from asyncthink.serve.schema import Open
from asyncthink.serve.service import Service
from asyncthink.serve.weights import read_weights


class WeightsRequest(Open):
    """``path`` is a safetensors file that the server can read. Names are those of the model's parameters."""

    path: str


def trainer_routes(service: Service) -> APIRouter:
    """All of them."""
    router = APIRouter()
    engine = service.engine

    def allowed() -> None:
        if not service.settings.weight_updates:
            raise ApiError(501, "weight updates are off; start the server with --allow-weight-updates")

    @router.get("/get_world_size")
    async def world_size() -> Response:
        """Processes that hold the model: one."""
        return Json({"world_size": 1})

    @router.get("/server_info")
    async def server_info() -> Response:
        """How the model runs here."""
        import asyncthink

        told: dict[str, Any] = {"engine": "asyncthink", "version": asyncthink.__version__}
        told |= {"model": service.settings.model, "weight_updates": service.settings.weight_updates}
        return Json(told | {"explain": engine.sampler.explain()})

    @router.post("/pause")
    async def pause(mode: Literal["keep"] = "keep") -> Response:
        """Hold the steps. Running episodes keep what they drew, and new requests wait."""
        allowed()
        await asyncio.to_thread(engine.pause)
        return Json({"status": "paused", "mode": mode})

    @router.post("/resume")
    async def resume() -> Response:
        """Go on."""
        allowed()
        await asyncio.to_thread(engine.resume)
        return Json({"status": "resumed"})

    @router.post("/init_weight_transfer_engine")
    async def init_weight_transfer_engine() -> Response:
        """Weights come as files here; there is no process group to join."""
        raise ApiError(501, "weights are taken from safetensors files: POST /update_weights with a path")

    @router.post("/start_weight_update")
    async def start_weight_update() -> Response:
        """Nothing is to be prepared: each update is applied whole, between two steps."""
        allowed()
        return Json({"status": "started"})

    @router.post("/update_weights")
    async def update_weights(body: WeightsRequest) -> Response:
        """Write the tensors of a file over the parameters of their names. All or none are written."""
        allowed()
        unknown(body, service.settings)
        tensors = await asyncio.to_thread(read_weights, Path(body.path), engine.sampler.decoder.model)
        change = functools.partial(write_weights, tensors, engine.sampler.decoder.model)
        await asyncio.wrap_future(engine.change_weights(change))
        return Json({"status": "updated", "tensors": len(tensors)})

    @router.post("/finish_weight_update")
    async def finish_weight_update() -> Response:
        """Nothing is left to do."""
        allowed()
        return Json({"status": "finished"})

    return router
