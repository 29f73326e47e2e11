"""A server of chats on a free port that answers as it is told, and traces in the form that it would write."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Told:
    """What the server answers."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 20})
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        if self.status != 200:
            return {"error": {"message": self.text, "type": "error", "code": None}}
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "double"}
        return {**head, "choices": [choice], "usage": self.usage, **self.extra}


@dataclass
class Double:
    """The address, and the bodies of all requests so far with their headers."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def double(answer: Callable[[dict[str, Any], int], Told]) -> Iterator[Double]:
    """Serve ``answer(body, number of the request)``."""
    state = Double()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with state.lock:
                number = len(state.requests)
                state.requests.append(body)
                state.headers.append({name.lower(): value for name, value in self.headers.items()})
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            told = answer(body, number)
            with state.lock:
                state.at_once -= 1
            content = json.dumps(told.body).encode()
            self.send_response(told.status)
            for name, value in {
                "content-type": "application/json",
                "content-length": len(content),
                **told.headers,
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def document(body: dict[str, Any], answer: str = "4") -> str:
    """A trace that follows the sequence of a request."""
    actions = re.findall(r"[A-Z]+(?:-\d+)?", body["messages"][-1]["content"].rpartition("Sequence:")[2])
    lines = ["[organizer]"]
    for action in actions:
        name, _, index = action.partition("-")
        if name == "FORK":
            lines.append(f"<FORK-{index}>part {index}</FORK-{index}>")
        elif name == "JOIN":
            lines += [f"<JOIN-{index}>", f"[worker {index}]", f"so <RETURN>{index}</RETURN>", "[organizer]"]
        else:
            lines.append("Let me think." if name == "THINK" else f"<ANSWER>{answer}</ANSWER>")
    return "\n".join(lines)
