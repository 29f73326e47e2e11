"""`--server` of run, chat and eval: what they say is what they say with the model here."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from asyncthink import ForkJoinSampler, checkpoint_path
from asyncthink.cli.app import app
from served import Served, served

QUESTION = "24 from 3 8 2"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(ForkJoinSampler(checkpoint_path(), num_pages=512, device="cpu", dtype="float32")) as server:
        yield server


def command(*args: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


def test_run(server: Served) -> None:
    base = ("run", "--model", checkpoint_path(), "--json", "--max-tokens", 24, QUESTION)
    here, there = (json.loads(command(*base, *where).output) for where in ((), ("--server", server.url)))
    assert [trace["tokens"] for trace in there["traces"]] == [trace["tokens"] for trace in here["traces"]]
    assert there["answer"] == here["answer"] and there["meta"]["server"] == server.url
    watched = command(*(part for part in base if part != "--json"), "--server", server.url)
    assert watched.exit_code == 0 and "critical path" in watched.output


def test_chat(server: Served) -> None:
    base = ("chat", "--model", checkpoint_path(), "--max-tokens", 24)
    here, there = (command(*base, *where, stdin=f"{QUESTION}\n") for where in ((), ("--server", server.url)))
    assert there.stdout == here.stdout and there.exit_code == 0


def test_eval(server: Served) -> None:
    base = ("eval", "--puzzles", 1, "--max-tokens", 20, "--latency", 1, "--json")
    here, there = (json.loads(command(*base, *where).stdout) for where in ((), ("--server", server.url)))
    (mine,), (theirs,) = here["rows"], there["rows"]
    assert theirs["per_puzzle"] == mine["per_puzzle"] and theirs["parameters"] is None
    assert there["machine"] == "1 servers (asyncthink)" and len(theirs["seconds"]["each"]) == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("run", "q", "--device", "cpu"), "device: expected none beside --server"),
        (("run", "q", "--join", "append"), "join: expected 'exact' on servers"),
        (("eval", "--ray-actors", 2), "no Ray actors"),
        (("eval", "--model", "sequential=a", "--model", "parallel=b", "--mode", "sequential,parallel"), "one model"),
    ],
)
def test_what_has_no_place_beside_a_server(server: Served, args: tuple[object, ...], says: str) -> None:
    model = ("--model", checkpoint_path()) if "--model" not in args else ()
    refused = command(*args, *model, "--server", server.url)
    assert refused.exit_code == 1 and says in refused.stderr and "Traceback" not in refused.stderr


def test_a_server_that_is_not_there() -> None:
    refused = command("run", "q", "--model", checkpoint_path(), "--server", "http://127.0.0.1:9")
    assert refused.exit_code == 1 and "127.0.0.1:9" in refused.stderr and len(refused.stderr.splitlines()) <= 2
