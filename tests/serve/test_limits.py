"""What a server refuses, how it says so, and that nothing of a client that is gone stays behind."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from typing import Any

import httpx
import pytest

from asyncthink.serve.logs import LogHandler
from asyncthink.serve.server import listen
from asyncthink.serve.settings import Limits, Settings
from scripted import sampler
from served import Served, served

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}], "max_tokens": 8, "temperature": 0}
PLAIN = {"mode": "sequential", "answer": "text"}
ENDLESS = ["l" + "x" * 900]


def chat(**changes: object) -> dict[str, Any]:
    return {**ASK, **changes}


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    (CHAT, chat(messages=[]), 422, "messages: List should have at least 1 item"),
    (CHAT, chat(messages=[{"role": "robot", "content": "q"}]), 400, "messages[0].role: expected one of system"),
    (
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        400,
        'expected a part of type "text"',
    ),
    (CHAT, chat(messages=[{"role": "user", "content": "\ud83d"}]), 400, "lone surrogate U+D83D"),
    (CHAT, chat(messages=[{"role": "user", "content": "x" * 5000}]), 400, "messages: expected fewer than 4096 tokens"),
    (CHAT, chat(model="gpt-5"), 404, "model: expected 'tiny' (the model of this server), got 'gpt-5'"),
    (CHAT, chat(temperature=-1), 400, "temperature: expected >= 0, finite, got -1"),
    (CHAT, chat(temperature="hot"), 422, "temperature: Input should be a valid number"),
    (CHAT, chat(top_p=0), 400, "top_p: expected in (0, 1], got 0"),
    (CHAT, chat(seed=-1), 422, "seed: Input should be greater than or equal to 0"),
    (CHAT, chat(max_tokens=10**6), 400, "max_tokens: expected at most 32768, got 1000000"),
    (CHAT, chat(n=17), 400, "n: expected at most 16 choices of a request, got 17"),
    (CHAT, chat(stop=[""]), 400, "stop: expected a tuple of non-empty strings"),
    (CHAT, chat(tools=[{"type": "function"}]), 400, "tools: not supported by this server"),
    (CHAT, chat(presence_penalty=0.5), 400, "presence_penalty: not supported by this server; expected None or 0"),
    (CHAT, chat(asyncthink={"mode": "sideways"}), 400, "asyncthink.mode: expected one of asyncthink"),
    (CHAT, chat(asyncthink={"pool": 99}), 400, "asyncthink.pool: expected an integer in [1, 16], got 99"),
    (CHAT, chat(asyncthink={"pool": "4"}), 400, "asyncthink.pool: expected an integer in [1, 16], got '4'"),
    (CHAT, chat(asyncthink={"join": []}), 400, "asyncthink.join: expected one of exact"),
    (CHAT, chat(asyncthink={"record": 1}), 400, "asyncthink.record: expected true or false, got 1"),
    (CHAT, chat(logprobs=True), 400, "logprobs: expected false beside answers in tags"),
    ("/v1/completions", {"prompt": []}, 422, "prompt"),
    ("/v1/completions", {"prompt": ""}, 400, "prompt: expected at least one token, got none"),
    ("/v1/completions", {"prompt": [10**6]}, 400, "prompt: expected token ids in [0, "),
    ("/v1/completions", {"prompt": ["q"] * 17}, 400, "n: expected at most 16 choices"),
    ("/v1/completions", {"prompt": "q", "max_tokens": 0}, 400, "max_tokens: expected at least 1"),
    ("/v1/completions", {"prompt": "q", "logprobs": 5}, 400, "logprobs: expected 0 or 1, got 5"),
    ("/v1/tokenize", {}, 400, "expected either prompt or messages"),
    ("/v1/detokenize", {"tokens": [10**9]}, 400, "tokens: expected ids in [0, "),
    ("/update_weights", {"path": "x"}, 501, "--allow-weight-updates"),
    ("/nowhere", {}, 404, "POST /nowhere: Not Found"),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), REFUSED)
def test_refused(tiny: Served, path: str, body: dict[str, Any], status: int, message: str) -> None:
    response = tiny.client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == status == error["code"] and message in error["message"], error
    assert "\n" not in error["message"]


def test_malformed_json(tiny: Served) -> None:
    response = tiny.client.post(CHAT, content=b'{"messages": [', headers={"content-type": "application/json"})
    assert response.status_code == 400 and "expected JSON" in response.json()["error"]["message"]
    response = tiny.client.post(CHAT, content=b"\xff\xfe", headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)


def test_unknown_fields_are_named() -> None:
    with served(sampler(ENDLESS)) as server:
        answer = server.post(CHAT, **chat(foo=1, asyncthink={**PLAIN, "bar": 2}, store=True))
        assert answer.status_code == 200 and answer.headers["x-asyncthink-ignored"] == "foo, asyncthink.bar"
        for names, shown in (
            (["", "a"], '"", a'),
            (["a\r\nb: é\x7f "], "a%0D%0Ab%3A%20%C3%A9%7F%20"),
        ):  # no header's text
            answer = server.post(CHAT, **chat(asyncthink=PLAIN, **dict.fromkeys(names, 1)))
            assert answer.status_code == 200 and answer.headers["x-asyncthink-ignored"] == shown
        long = server.post(CHAT, **chat(asyncthink=PLAIN, **{f"{number}" + "x" * 99: 1 for number in range(999)}))
        assert long.status_code == 200 and long.headers["x-asyncthink-ignored"].endswith("xxx ...")
        assert "x-asyncthink-ignored" not in server.post(CHAT, **chat(asyncthink=PLAIN)).headers
    with served(sampler(ENDLESS), Settings("tiny", strict=True)) as server:
        answer = server.post(CHAT, **chat(foo=1))
        assert answer.status_code == 400 and answer.json()["error"]["message"] == "unknown fields: foo"
        answer = server.post(CHAT, **chat(asyncthink={"bar": 2}))
        assert answer.json()["error"]["message"] == "unknown fields: asyncthink.bar"


def test_without_a_key_the_host_must_be_ours() -> None:
    """Or else a page of another site would ask it by DNS rebinding."""
    with served(sampler(ENDLESS), Settings("tiny", hosts=("box.lan",))) as server:
        for host in (
            "127.0.0.1",
            "127.0.0.1:1",
            "[::1]:8000",
            "LOCALHOST:80",
            "chat.localhost",
            "box.lan:8000",
            "box.lan.",
        ):
            assert server.client.get("/v1/models", headers={"host": host}).status_code == 200, host
        for host in (
            "evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "::1",
        ):
            for path in ("/", "/v1/models", "/metrics"):
                answer = server.client.get(path, headers={"host": host})
                message = f"host: expected an address, localhost or a name of --allow-host, got {host!r}"
                assert answer.status_code == 403 and answer.json()["error"]["message"] == message, host
            assert server.client.get("/health", headers={"host": host}).status_code == 200
    with served(sampler(ENDLESS), Settings("tiny", "s3cret")) as server:
        assert server.client.get("/v1/models", headers={"host": "evil.example"}).status_code == 200


@pytest.mark.parametrize("host", ["", "Box", "box:80", "http://box", "*", "[::1]"])
def test_hosts_are_names(host: str) -> None:
    with pytest.raises(ValueError, match="hosts: expected names in lower case, without port"):
        Settings("tiny", hosts=(host,))


def test_the_key(capfd: pytest.CaptureFixture[str]) -> None:
    with served(sampler(ENDLESS), Settings("tiny", "s3cret"), log_level="info") as server:
        assert server.client.get("/v1/models").status_code == 200
        for header in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "s3cret"}):
            for path in ("/v1/models", "/metrics", "/openapi.json"):
                refused = httpx.get(server.url + path, headers=header)
                assert refused.status_code == 401 and "API key" in refused.json()["error"]["message"]
        assert httpx.get(server.url + "/health").status_code == httpx.get(server.url + "/").status_code == 200
        server.post(CHAT, **chat(messages=[{"role": "user", "content": "a private matter"}]))
    told = "".join(capfd.readouterr())
    assert "s3cret" not in told and "private" not in told and "POST /v1/chat/completions" in told
    assert "s3cret" not in repr(Settings("tiny", "s3cret"))


def test_large_bodies() -> None:
    with served(sampler(ENDLESS), Settings("tiny", limits=Limits(body_bytes=1000))) as server:
        for content in (b"x" * 1001, iter([b"x" * 600, b"x" * 600])):  # with a length, and in chunks
            answer = server.client.post(CHAT, content=content)
            assert answer.status_code == 413
            assert answer.json()["error"]["message"] == "body: expected at most 1000 bytes"


def test_a_full_queue() -> None:
    with served(sampler(ENDLESS), Settings("tiny", limits=Limits(waiting=1))) as server:
        server.engine.pause()
        waiting = server.engine.submit(server.engine.sampler.continuation("l"))
        answer = server.post(CHAT, **chat(asyncthink=PLAIN))
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert "too many requests wait" in answer.json()["error"]["message"]
        for more in ({"n": 2}, {"stream": True}):
            assert server.post("/v1/completions", prompt="l", **more).status_code == 429
        assert server.post(CHAT, **chat(asyncthink=PLAIN, stream=True)).status_code == 429
        waiting.cancel()
        server.engine.resume()


def test_a_request_that_takes_too_long() -> None:
    with served(sampler(ENDLESS), Settings("tiny", limits=Limits(seconds=1))) as server:
        server.engine.pause()
        assert server.post("/v1/completions", prompt="l").status_code == 504
        assert server.post("/v1/completions", prompt="l", stream=True).status_code == 504
        with server.client.stream("POST", CHAT, json=chat(asyncthink=PLAIN, stream=True)) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == 504 and lines[-1] == "data: [DONE]"
        server.engine.resume()
        stats = server.engine.stats()
        assert stats.waiting == stats.running == 0


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_is_cancelled(streamed: bool) -> None:
    s = sampler(ENDLESS)
    stepping, go_on = threading.Event(), threading.Event()
    s.decoder.on_forward = lambda number: number == 5 and (stepping.set(), go_on.wait())
    with served(s) as server:
        body = json.dumps({"prompt": "l", "max_tokens": 890, "stream": streamed}).encode()
        with socket.create_connection(("127.0.0.1", server.client.base_url.port)) as raw:
            head = b"POST /v1/completions HTTP/1.1\r\nhost: [::1]\r\ncontent-type: application/json\r\ncontent-length: "
            raw.sendall(head + str(len(body)).encode() + b"\r\n\r\n" + body)
            stepping.wait()
        assert server.client.get("/health").status_code == 200  # the loop runs on while the step does
        go_on.set()
        while not (stats := server.engine.stats()).episodes:
            pass
        assert stats.running == 0 and stats.finished == {"cancelled": 1} and stats.pages <= 1


def test_what_the_model_raises() -> None:
    s = sampler(ENDLESS)
    with served(s) as server:
        assert server.client.get("/health").status_code == 200
        s.decoder.failing = len(s.decoder.rows) + 5
        answer = server.post("/v1/completions", prompt="l", max_tokens=100)
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "the model failed: the model broke"
        assert server.client.get("/health").status_code == 503
        assert server.post("/v1/completions", prompt="l").status_code == 500
        assert "asyncthink_healthy 0.0" in server.client.get("/metrics").text


def test_a_stream_that_the_model_ends() -> None:
    s = sampler(ENDLESS)
    with served(s) as server:
        s.decoder.failing = len(s.decoder.rows) + 5
        with server.client.stream("POST", "/v1/completions", json={"prompt": "l", "stream": True}) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["message"] == "the model failed: the model broke"


def test_an_orderly_end_answers_what_was_asked() -> None:
    s = sampler(ENDLESS)
    stepping, go_on = threading.Event(), threading.Event()
    s.decoder.on_forward = lambda number: number == 5 and (stepping.set(), go_on.wait())
    answers: list[httpx.Response] = []
    with served(s) as server:
        body = {"prompt": "l", "max_tokens": 20, "temperature": 0}
        asking = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", **body)))
        asking.start()
        stepping.wait()
        server.server.should_exit = True
        go_on.set()
        asking.join()
    assert answers[0].json()["choices"][0]["text"] == "x" * 20


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(ValueError, match=r"cannot listen on 127.0.0.1 port .*in use"):
        listen("127.0.0.1", sock.getsockname()[1])
    with pytest.raises(ValueError, match=r"cannot listen on no.such.host.invalid port 1: "):
        listen("no.such.host.invalid", 1)
    with pytest.raises(ValueError, match=r"cannot listen on 127.0.0.1 port 70000: "):
        listen("127.0.0.1", 70000)


def test_limits_and_keys_of_no_use() -> None:
    with pytest.raises(ValueError, match="waiting: expected at least 1, got 0"):
        Limits(waiting=0)
    with pytest.raises(ValueError, match="api_key: expected a key, got an empty text"):
        Settings("tiny", " ")


def test_a_full_disk_for_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w", buffering=1) as full:
        handler = LogHandler(full)
        for number in range(3):
            handler.handle(logging.makeLogRecord({"msg": f"line {number}"}))
        with contextlib.suppress(OSError):
            full.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("asyncthink: the log cannot be written: ") and "No space left" in line
