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

from asyncthink.engine.remote.answers import check, named
from asyncthink.engine.remote.errors import RefusedError
from asyncthink.engine.remote.retries import Retries
from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode

_DRAWING = ("temperature", "top_k", "top_p", "min_p", "max_tokens", "seed")


class ServerPolicy:
    """Episodes drawn by a server started with ``--allow-weight-updates``. It is TRL's ``weight_transfer`` as well.

    Weights go as a safetensors file: TRL's NCCL transfer needs a GPU on both sides. Episodes that run while weights
    change go on with the new ones. Cancelling a future closes its connection, and the server drops the episode.

    Connection errors, 429 and 5xx are tried again, with the episode's own seed: it is drawn anew, as if it had not been
    asked before. All requests raise RefusedError for what the server will not do, and UnreachableError where the last
    attempt failed (:mod:`asyncthink.engine.remote.errors`).

    Args:
        url: of the server, as ``http://127.0.0.1:8000``.
        folder: where the file of the weights is written, one at a time; the server must see it under this path.
        api_key: the server's ``--api-key``.
        timeout: seconds for one request. A longer one counts as a failed attempt, as the server's ``--timeout`` does.
        retries: how requests are tried again.

    >>> policy = ServerPolicy("http://127.0.0.1:8000", "/shared/weights")                         # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        folder: str | Path,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: Retries | None = None,
    ) -> None:
        self.url, self.folder = url.rstrip("/"), Path(folder).absolute()
        if not self.folder.is_dir():
            raise ValueError(f"folder: expected one that exists, got {self.folder}")
        self.retries = retries or Retries()
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # Without a limit of connections: the worker bounds what it asks for.
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout, limits=limits)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asyncthink-server-policy", daemon=True)
        self._thread.start()

    def submit(self, question: str, params: SamplingParams, options: Options) -> Future[Episode]:
        """The future of an episode; its exception is RefusedError or UnreachableError.

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
        return Episode.from_dict((await self._ask("POST", "/v1/chat/completions", body))["asyncthink"]["record"])

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON of an answer."""

        async def request() -> dict[str, Any]:
            with named(f"{self.url}{path}"):
                answer = await self._client.request(method, path, json=body)
                await check(answer)
                told: dict[str, Any] = answer.json()
                return told

        return await self.retries.call(request)

    # -- TRL's weight transfer ----------------------------------------------------------------------------------

    def init_weight_transfer(self) -> None:
        """Raises RefusedError for a server that does not take weights."""
        if not self._tell("GET", "/server_info").get("weight_updates"):
            raise RefusedError(f"{self.url}: expected a server started with --allow-weight-updates, got one without")

    def pause(self) -> None:
        """Hold the server's steps."""
        self._tell("POST", "/pause?mode=keep")

    def send_weights(self, iterator: Iterator[tuple[str, Tensor]]) -> None:
        """Write (name, tensor) pairs to a file, have the server read it, and remove it.

        Raises RefusedError with the server's reason; its weights are then what they were.
        """
        path = self.folder / f"weights-{uuid.uuid4().hex}.safetensors"
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in iterator}, path)
            self._tell("POST", "/start_weight_update")
            self._tell("POST", "/update_weights", path=str(path))
            self._tell("POST", "/finish_weight_update")
        finally:
            path.unlink(missing_ok=True)

    def resume(self) -> None:
        """Let the server go on."""
        self._tell("POST", "/resume")

    def destroy(self) -> None:
        """Cancel what runs, and close all connections. The server stays. May be called again."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def _tell(self, method: str, path: str, /, **body: object) -> dict[str, Any]:
        return asyncio.run_coroutine_threadsafe(self._ask(method, path, body or None), self._loop).result()
