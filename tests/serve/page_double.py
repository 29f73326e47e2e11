"""A server that serves the page and streams a recorded episode: what the page needs of the real one, with pauses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from asyncthink.episode.records import Episode, Event, TokenEvent
from asyncthink.serve.page import PAGE, PAGE_HEADERS

Item = Event | TokenEvent


def chunks(items: list[Item], episode: Episode) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed chat completion."""
    for item in items:
        if isinstance(item, TokenEvent):
            said = {"agent": item.agent, "step": item.step, "sampled": item.sampled}
            yield {"choices": [{"index": 0, "delta": {"reasoning_content": item.text, "asyncthink": said}}]}
        else:
            said = {"agent": item.agent, "step": item.step, "sampled": False, "event": asdict(item)}
            answer = {"content": item.text} if item.kind == "answer" else {}
            yield {"choices": [{"index": 0, "delta": {**answer, "asyncthink": said}}]}
    yield {
        "choices": [],
        "usage": {"completion_tokens": episode.total_tokens},
        "asyncthink": {"record": episode.to_dict()},
    }


class PageDouble(ThreadingHTTPServer):
    """Streams ``items``; holds before item ``hold`` until :attr:`go_on` is set; answers ``error`` instead, if given.

    With ``broken`` the stream ends at half of it, with an error that says so, or, if that is empty, with nothing.

    ``requests`` has the bodies of all questions. ``left`` is set when a client goes away amid a stream.
    """

    daemon_threads = True

    def __init__(self, items: list[Item], episode: Episode) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.items, self.episode = items, episode
        self.hold: int | None = None
        self.error: tuple[int, str] | None = None
        self.broken: str | None = None
        self.key: str | None = None
        self.go_on, self.left = threading.Event(), threading.Event()
        self.requests: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def __enter__(self) -> PageDouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: PageDouble

    def do_GET(self) -> None:
        if self.path == "/":
            self._send(200, PAGE, PAGE_HEADERS)
        elif self.path == "/v1/models" and self._allowed():
            self._json(200, {"object": "list", "data": [{"id": "double", "object": "model"}]})
        else:
            self._json(404, {"error": {"message": f"{self.path}: no such page"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(body)
        if not self._allowed():
            return
        if self.server.error:
            code, message = self.server.error
            self._json(code, {"error": {"message": message}})
            return
        self._head(200, {"content-type": "text/event-stream"})
        try:
            for number, chunk in enumerate(chunks(self.server.items, self.server.episode)):
                while number == self.server.hold and not self.server.go_on.wait(0.02):
                    self.wfile.write(b": wait\n\n")  # a client that went away is noticed
                if self.server.broken is not None and number == len(self.server.items) // 2:
                    chunk = {"error": {"message": self.server.broken}}
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode() if self.server.broken else b"")
                    return
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.server.left.set()

    def _allowed(self) -> bool:
        if self.server.key is None or self.headers["authorization"] == f"Bearer {self.server.key}":
            return True
        self._json(401, {"error": {"message": "expected an API key"}})
        return False

    def _json(self, code: int, value: object) -> None:
        self._send(code, json.dumps(value).encode(), {"content-type": "application/json"})

    def _send(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self._head(code, {**headers, "content-length": str(len(data))})
        self.wfile.write(data)

    def _head(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass
