"""An event loop in a thread of its own, for callers with another loop or with none."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines until it is closed. The thread ends with the program at the latest.

    >>> async def number():
    ...     return 7
    >>> thread = LoopThread()
    >>> thread.submit(number()).result()
    7
    >>> thread.close()
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._door = threading.Lock()
        self._open = True
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="asyncthink-remote", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """The future of a coroutine; cancelling it cancels the coroutine. Raises RuntimeError if the loop is closed."""
        with self._door:
            if self._open:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise RuntimeError("the connection to the servers is closed")

    def close(self, last: Coroutine[Any, Any, object] | None = None) -> None:
        """Cancel what runs, then run ``last``, and end the thread."""
        with self._door:
            if not self._open:
                return
            self._open = False
        asyncio.run_coroutine_threadsafe(self._end(last), self._loop)
        if threading.current_thread() is not self._thread:  # a garbage collector may be in it
            self._thread.join()

    async def _end(self, last: Coroutine[Any, Any, object] | None) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if last is not None:
            with contextlib.suppress(Exception):
                await last
        self._loop.stop()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
