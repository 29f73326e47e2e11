"""Soak of a server: 10,000 requests, a third left at a random moment, a tenth malformed.

`python bench/serve_soak.py` serves the checkpoint in the box and prints, every tenth of the way, requests by how they
ended, memory and pages. It fails if memory grows, a page is left, or an answer belongs to another question: the record
of each whole answer, and the first event of each stream, must hold the question that was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from serve_load import server

MOST_GROWTH = 64.0  # MB, from the first tenth on
MALFORMED: list[Any] = [
    {"messages": []}, {"messages": [{"role": "user"}], "temperature": -1}, {"prompt": 3}, [], "text", None,
    {"messages": [{"role": "user", "content": "q"}], "asyncthink": {"pool": 0}}, {"messages": [{"content": "q"}]},
]  # fmt: skip


def resident(url: str) -> float:
    """MB of the server's process, found by its port."""
    port = f"{int(url.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inode = next(row[9] for row in rows if row[1].endswith(f":{port}") and row[3] == "0A")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(link.readlink()) == f"socket:[{inode}]" for link in (folder / "fd").iterdir()):
                status = (folder / "status").read_text()
                return int(status.partition("VmRSS:")[2].split()[0]) / 1024
        except OSError:
            continue
    raise RuntimeError(f"no process listens at {url}")


async def figures(client: httpx.AsyncClient) -> dict[str, float]:
    text = (await client.get("/metrics")).text
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("asyncthink_"): float(value) for name, value in rows}


async def ask(client: httpx.AsyncClient, number: int, rng: random.Random) -> str:
    """How one request ended. Raises AssertionError where an answer is another question's."""
    if rng.random() < 0.1:
        answer = await client.post("/v1/chat/completions", json=rng.choice(MALFORMED))
        assert 400 <= answer.status_code < 500, answer.text
        return "malformed"
    question = f"{number % 97} {number} {number % 13} = {number % 101}"
    mode = rng.choice([{}, {"join": "append"}, {"join": "link"}, {"context": "isolated"}, {"mode": "parallel"}])
    streamed, leaves = rng.random() < 0.5, rng.random() < 0.57  # two thirds of these leave in time
    body = {
        "messages": [{"role": "user", "content": question}], "max_tokens": rng.choice([4, 40, 200]), "seed": number,
        "asyncthink": {**mode, "record": True}, "stream": streamed, "stream_options": {"include_usage": True},
    }  # fmt: skip
    left = asyncio.timeout(rng.random() * 0.5 if leaves else None)
    try:
        async with left:
            if streamed:
                return await read(client, body, question)
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["asyncthink"]["record"]["question"] == question
            return "whole"
    except TimeoutError:
        return "left"


async def read(client: httpx.AsyncClient, body: dict[str, Any], question: str) -> str:
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        last, begun = "", False
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                if not begun and '"kind": "start"' in line:
                    begun = True
                    event = json.loads(line[5:])["choices"][0]["delta"]["asyncthink"]["event"]
                    assert event["text"] == question, (event, question)
                last = line if not line.endswith("[DONE]") else last
        assert begun and json.loads(last[5:])["asyncthink"]["record"]["question"] == question
        return "streamed"


async def soak(url: str, requests: int, clients: int) -> None:
    numbers, ends, memory = iter(range(requests)), Counter[str](), list[float]()

    async def one(client: httpx.AsyncClient, seed: int) -> None:
        rng = random.Random(seed)
        for number in numbers:
            ends[await ask(client, number, rng)] += 1
            if ends.total() % max(requests // 10, 1) == 0:
                memory.append(resident(url))
                print(f"{ends.total()}: {dict(ends)}, {memory[-1]:.0f} MB", flush=True)

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(one(client, seed) for seed in range(clients)))
        while (told := await figures(client))["running_episodes"] + told["waiting_requests"]:
            await asyncio.sleep(0.05)
        print({name: told[name] for name in ("pages_held", "head_pages", "drawn_tokens_total", "healthy")})
        assert told["pages_held"] <= 4, "pages are left (templates hold up to four)"
        assert told["healthy"] == 1 and ends.total() == requests
    assert memory[-1] - memory[0] < MOST_GROWTH, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    args = parser.parse_args()
    with server(f"{sys.executable} -m asyncthink serve --port {{port}} --num-pages 2048") as url:
        asyncio.run(soak(url, args.requests, args.clients))


if __name__ == "__main__":
    main()
