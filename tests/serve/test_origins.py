"""Pages of other sites change nothing on a server without a key; its own page and other clients do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from asyncthink.serve.settings import Settings
from scripted import sampler
from served import Served, served

OPEN = Settings("tiny", weight_updates=True, hosts=("box.lan",))


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(sampler(["l" + "x" * 20]), OPEN) as server:
        yield server


def changing(server: Served) -> list[str]:
    """All routes that are no GET."""
    paths = server.client.get("/openapi.json").json()["paths"]
    return [path for path, methods in paths.items() if set(methods) - {"get"}]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},  # another server of this machine
        {"origin": "http://[", "sec-fetch-site": "cross-site"},
        {"origin": "http://["},
        {"origin": "https://box.lan.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:1"},
    ],
    ids=str,
)
def test_another_sites_page_changes_nothing(server: Served, headers: dict[str, str]) -> None:
    paths = changing(server)
    assert {"/pause", "/resume", "/update_weights", "/v1/chat/completions", "/v1/tokenize"} <= set(paths)
    for path in (*paths, "/nowhere"):
        answer = server.client.post(path, headers=headers)
        error = answer.json()["error"]
        assert answer.status_code == 403 and error["type"] == "permission_error"
        came = headers.get("origin", headers.get("sec-fetch-site"))
        assert error["message"] == f"origin: expected a page of this server, or --api-key, got a request of {came!r}"
    assert not server.engine.paused
    assert (
        server.client.get("/v1/models", headers=headers).status_code == 200
    )  # changes nothing, and no page can read it


def test_its_own_page_and_other_clients_are_served(server: Served) -> None:
    host = server.client.base_url.netloc.decode()
    for headers in (
        {},
        {"origin": server.url},
        {"origin": server.url.upper()},
        {"sec-fetch-site": "same-origin", "origin": "https://outside.a.proxy"},
        {"sec-fetch-site": "none"},
        {"origin": "https://box.lan"},  # the proxy's name, which is allowed
        {"origin": f"https://{host}"},
    ):
        for path in ("/pause", "/resume", "/start_weight_update", "/finish_weight_update"):
            assert server.client.post(path, headers=headers).status_code == 200, headers


def test_a_key_says_more_than_an_origin() -> None:
    with served(sampler(["l" + "x" * 20]), Settings("tiny", "s3cret", weight_updates=True)) as server:
        headers = {"origin": "vscode-webview://1", "sec-fetch-site": "cross-site"}
        assert server.client.post("/pause", headers=headers).status_code == 200
        assert server.client.post("/pause", headers={**headers, "authorization": ""}).status_code == 401
        server.engine.resume()


class _Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title>")

    def log_message(self, *_: object) -> None:
        pass


def test_in_a_browser(server: Served, browser: Any) -> None:
    """Over localhost with Sec-Fetch-Site, and under a name without TLS, where there is only Origin."""
    send = "([url, method]) => fetch(url, {method, mode: 'no-cors', body: 'x'}).then(answer => answer.status)"
    with HTTPServer(("127.0.0.1", 0), _Elsewhere) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        page = browser.new_page()
        port, elsewhere = server.client.base_url.port, other.server_port
        for theirs in (f"http://127.0.0.1:{elsewhere}/", f"http://evil.example:{elsewhere}/"):
            page.goto(theirs)
            assert page.evaluate(send, [f"http://127.0.0.1:{port}/pause", "POST"]) == 0  # sent, and not to be read
            assert page.evaluate(send, [f"http://box.lan:{port}/pause", "POST"]) == 0
            assert not server.engine.paused
        for own in (f"http://127.0.0.1:{port}", f"http://box.lan:{port}"):
            page.goto(f"{own}/")
            for path, paused in (("pause", True), ("resume", False)):
                assert page.evaluate(send, [f"{own}/{path}", "POST"]) == 200
                assert server.engine.paused == paused
        page.close()
        other.shutdown()
