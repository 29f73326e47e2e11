"""The policy that draws the rollouts, behind an `asyncthink serve` that takes new weights."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
from safetensors.torch import save_file
from torch import Tensor

from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode

_DRAWING = ("temperature", "top_k", "top_p", "min_p", "max_tokens", "seed")


class ServerError(RuntimeError):
    """The server refused a request, or failed."""


class ServerPolicy:
    """Episodes drawn by a server started with ``--allow-weight-updates``. It is TRL's ``weight_transfer`` as well.

    Weights go as a safetensors file: TRL's NCCL transfer needs a GPU on both sides. Episodes that run while weights
    change go on with the new ones. Cancelling a future closes its connection, and the server drops the episode.

    Args:
        url: of the server, as ``http://127.0.0.1:8000``.
        folder: where the file of the weights is written, one at a time; the server must see it under this path.
        api_key: the server's ``--api-key``.
        timeout: seconds for one request. An episode that takes longer ends the worker, as the server's ``--timeout``.

    >>> policy = ServerPolicy("http://127.0.0.1:8000", "/shared/weights")                         # doctest: +SKIP
    """

    def __init__(self, url: str, folder: str | Path, *, api_key: str | None = None, timeout: float = 600.0) -> None:
        self.url, self.folder = url.rstrip("/"), Path(folder).absolute()
        if not self.folder.is_dir():
            raise ValueError(f"folder: expected one that exists, got {self.folder}")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        shared: dict[str, Any] = {"base_url": self.url, "headers": headers, "timeout": timeout}
        self._control = httpx.Client(**shared)
        # Episodes have no common limit of connections: the worker bounds what it asks for.
        self._drawing = httpx.AsyncClient(**shared, limits=httpx.Limits(max_connections=None))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asyncthink-server-policy", daemon=True)
        self._thread.start()

    def submit(self, question: str, params: SamplingParams, options: Options) -> Future[Episode]:
        """The future of an episode; its exception is :class:`ServerError`, or httpx's where there is no answer.

        Raises ValueError for ``params`` with a timeout: the server has its own.
        """
        if params.timeout is not None:
            raise ValueError(f"params.timeout: expected None (the server has its own), got {params.timeout}")
        body: dict[str, Any] = {name: getattr(params, name) for name in _DRAWING}
        asked = dataclasses.asdict(options) | {"record": True}
        if params.max_episode_tokens is not None:
            asked["max_episode_tokens"] = params.max_episode_tokens
        body |= {"messages": [{"role": "user", "content": question}], "stop": list(params.stop), "asyncthink": asked}
        return asyncio.run_coroutine_threadsafe(self._draw(body), self._loop)

    async def _draw(self, body: dict[str, Any]) -> Episode:
        answer = await self._drawing.post("/v1/chat/completions", json=body)
        return Episode.from_dict(_checked(answer)["asyncthink"]["record"])

    # -- TRL's weight transfer ----------------------------------------------------------------------------------

    def init_weight_transfer(self) -> None:
        """Raises ServerError for a server that does not take weights, httpx's errors where none answers."""
        if not _checked(self._control.get("/server_info")).get("weight_updates"):
            raise ServerError(f"{self.url}: expected a server started with --allow-weight-updates, got one without")

    def pause(self) -> None:
        """Hold the server's steps."""
        self._post("/pause?mode=keep")

    def send_weights(self, iterator: Iterator[tuple[str, Tensor]]) -> None:
        """Write (name, tensor) pairs to a file, have the server read it, and remove it.

        Raises ServerError with the server's reason; its weights are then what they were.
        """
        path = self.folder / f"weights-{uuid.uuid4().hex}.safetensors"
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in iterator}, path)
            self._post("/start_weight_update")
            self._post("/update_weights", path=str(path))
            self._post("/finish_weight_update")
        finally:
            path.unlink(missing_ok=True)

    def resume(self) -> None:
        """Let the server go on."""
        self._post("/resume")

    def destroy(self) -> None:
        """Cancel what runs, and close all connections. The server stays. May be called again."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._control.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._drawing.aclose()

    def _post(self, path: str, /, **body: object) -> None:
        _checked(self._control.post(path, json=body))


def _checked(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of an answer. Raises ServerError for every status but 200."""
    if answer.status_code != 200:
        raise ServerError(f"{answer.request.url}: expected status 200, got {answer.status_code}: {answer.text[:500]}")
    told: dict[str, Any] = answer.json()
    return told
