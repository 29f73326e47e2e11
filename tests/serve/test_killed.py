"""Clients that are killed amid their streams: their pages come back, and everybody else's answer is whole."""

from __future__ import annotations

import subprocess
import sys
import threading

from served import served

from scripted import sampler

STORY = "x" * 3500
CLIENT = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
body = json.dumps({"prompt": "l", "max_tokens": 3500, "stream": True})
connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
answer = connection.getresponse()
print(answer.readline().decode(), flush=True)
sys.stdin.read()
"""


def test_killed_clients_leave_nothing_and_harm_nobody() -> None:
    s = sampler(["l" + STORY], num_pages=4096)
    with served(s) as server:
        port = str(server.client.base_url.port)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        clients = [subprocess.Popen([sys.executable, "-c", CLIENT, port], **pipes) for _ in range(3)]  # type: ignore[call-overload]
        for client in clients:
            assert client.stdout.readline().startswith(b"data: ")
        server.engine.pause()
        for client in clients:
            client.kill()
            client.communicate()
        answers: list[str] = []
        asked = {"prompt": "l", "max_tokens": 40, "temperature": 0}
        other = threading.Thread(
            target=lambda: answers.append(server.post("/v1/completions", **asked).json()["choices"][0]["text"])
        )
        other.start()
        server.engine.resume()
        other.join()
        while (stats := server.engine.stats()).running:
            pass
        assert answers == ["x" * 40] and stats.finished == {"cancelled": 3, "budget": 1} and stats.pages <= 1
        assert server.client.get("/health").status_code == 200
