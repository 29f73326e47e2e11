"""`asyncthink serve` as a process: it serves, ends in order at SIGTERM, and says in one line what is wrong."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from asyncthink.cli.app import app
from untrained import save_untrained


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("untrained"))


@contextmanager
def process(*args: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command with its address."""
    command = [sys.executable, "-m", "asyncthink", "serve", "--port", "0", "--num-pages", "64", *map(str, args)]
    environment = os.environ | {"ASYNCTHINK_API_KEY": "s3cret"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                if match := re.search(r"http://[\w.:]+", line):
                    yield child, match[0]
                    break
        finally:
            child.kill()


def test_serves_and_ends_at_sigterm(untrained: Path) -> None:
    with process("--model", untrained, "--name", "blank") as (child, url):
        key = {"authorization": "Bearer s3cret"}
        with httpx.Client(base_url=url, headers=key, timeout=60) as client:
            body = {"prompt": "2 from", "max_tokens": 3, "return_token_ids": True}
            answer = client.post("/v1/completions", json=body)
            assert len(answer.json()["choices"][0]["token_ids"]) == 3
            assert client.get("/v1/models").json()["data"][0]["id"] == "blank"
            assert httpx.get(url + "/v1/models").status_code == 401
            with client.stream("POST", "/v1/completions", json={**body, "max_tokens": 400, "stream": True}) as stream:
                lines = stream.iter_lines()
                next(lines)
                child.send_signal(signal.SIGTERM)
                assert "data: [DONE]" in list(lines)  # what was asked is answered
        assert child.wait(30) == 0
        assert child.stderr is not None and "Traceback" not in child.stderr.read()


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["serve", *map(str, args)])


def test_what_is_wrong_in_one_line(untrained: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for args, reason in (
            (("--model", untrained, "--port", taken.getsockname()[1]), "cannot listen on 127.0.0.1 port .* in use"),
            (("--model", tmp_path / "nothing", "--port", 0), "nothing"),
            (("--model", untrained, "--port", 0, "--max-waiting", 0), "waiting: expected at least 1, got 0"),
            (("--model", untrained, "--port", 0, "--log-level", "loud"), "log_level: expected warning or info"),
            (("--model", untrained, "--port", 0, "--mode", "sideways"), "mode: expected one of"),
            (("--model", untrained, "--api-key", ""), "api_key: expected a key"),
        ):
            result = run(*args)
            last = [line for line in result.stderr.splitlines() if line][-1]
            assert result.exit_code == 1 and re.search(reason, last), result.stderr


def test_quantized_weights_are_not_updated(untrained: Path) -> None:
    command = ["serve", "--model", str(untrained), "--weights", "int8", "--allow-weight-updates"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code != 0 and "weights: expected none beside --allow-weight-updates" in refused.output
