"""Load on a server: N clients in a closed loop, chats behind one system prompt of about 1,000 tokens.

    python bench/serve_load.py --model FOLDER --peer "transformers=transformers serve {model} --port {port}"

starts `asyncthink serve` and each peer, one after another, with the same model, clients and requests, and prints a line
for each number of clients: tokens a second, time to the first token and time per token (p50, p99). A peer is a command
that serves OpenAI's chat API on {port}; {model} is the folder. Times are those that the clients see, streamed.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx

TALE = "the quick brown fox jumps over the lazy dog while seven wise owls count silver coins under a pale moon"
WORDS = TALE.split(" ")
SYSTEM = " ".join(WORDS[(7 * k + k // 20) % len(WORDS)] for k in range(940))
STORY = "Client {}, turn {}: tell a story."
PLAIN = {"asyncthink": {"mode": "sequential", "answer": "text"}}


@dataclasses.dataclass(frozen=True)
class Times:
    """One request, in seconds: to its first token, per token after it; and its tokens."""

    first: float
    token: float
    tokens: int


async def pieces(client: httpx.AsyncClient, body: dict[str, Any]) -> AsyncIterator[str]:
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()[:300]}")
        async for line in response.aiter_lines():
            if not line.startswith("data:") or line.endswith("[DONE]"):
                continue
            choices = json.loads(line[5:]).get("choices") or []
            if choices and (text := choices[0]["delta"].get("content")):
                yield text


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Times:
    began = time.perf_counter()
    times = [time.perf_counter() async for _ in pieces(client, body)]
    if not times:
        raise RuntimeError("a stream without text")
    return Times(times[0] - began, (times[-1] - times[0]) / max(len(times) - 1, 1), len(times))


async def closed_loop(
    url: str, model: str, clients: int, each: int, tokens: int, extra: dict[str, Any], *, bare: bool = False
) -> tuple[float, list[Times]]:
    """Seconds of the whole, and all requests."""
    limits = httpx.Limits(max_connections=None)
    done: list[Times] = []

    async def one(number: int) -> None:
        for turn in range(each):
            messages = [
                {"role": "user", "content": f"{number} {turn} 3 7 = 24" if bare else STORY.format(number, turn)}
            ]
            if not bare:
                messages.insert(0, {"role": "system", "content": SYSTEM})
            sizes = {"max_tokens": tokens, "temperature": 0.8, "seed": 1000 * number + turn, "stream": True}
            done.append(await ask(client, {"model": model, "messages": messages, **sizes, **extra}))

    async with httpx.AsyncClient(base_url=url, timeout=1800, limits=limits) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(clients)))
        return time.perf_counter() - began, done


@contextmanager
def server(command: str) -> Iterator[str]:
    """A server process that answers on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with subprocess.Popen(shlex.split(command.format(port=port)), stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                if process.poll() is not None:
                    raise RuntimeError(f"ended at once: {command}")
                with suppress(httpx.TransportError):
                    states = [httpx.get(f"{url}/{path}", timeout=5).status_code for path in ("v1/models", "health")]
                    if states[0] == 200 and states[1] != 503:  # 503: llama.cpp loads, ours records its steps
                        break
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--peer", action="append", default=[], help="NAME=command; {port} and {model} are filled in")
    parser.add_argument("--clients", default="1,8,64,256")
    parser.add_argument("--requests", type=int, default=2, help="requests of a client")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--bare", action="store_true", help="a puzzle alone, for the checkpoint in the box")
    parser.add_argument("--num-pages", type=int, default=8192)
    args = parser.parse_args()
    room = f"--num-pages {args.num_pages} --max-episodes 256 --max-waiting 512"
    ours = f"{sys.executable} -m asyncthink serve --model {{model}} --port {{port}} {room}"
    commands = {"asyncthink": ours, **dict(peer.split("=", 1) for peer in args.peer)}
    print("| server | clients | tokens/s | first token p50 s | p99 s | per token p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|")
    for name, command in commands.items():
        with server(command.replace("{model}", args.model)) as url:
            model = "default" if name == "asyncthink" else args.model
            extra = PLAIN if name == "asyncthink" else {}
            first = (1, 1, 8, extra)  # a server may load its model, or record its steps, now
            asyncio.run(closed_loop(url, model, *first, bare=args.bare))
            for clients in map(int, args.clients.split(",")):
                sizes = (clients, args.requests, args.tokens, extra)
                seconds, done = asyncio.run(closed_loop(url, model, *sizes, bare=args.bare))
                first, token = [each.first for each in done], [1000 * each.token for each in done]
                figures = [sum(each.tokens for each in done) / seconds, percentile(first, 0.5), percentile(first, 0.99)]
                figures += [percentile(token, 0.5), percentile(token, 0.99)]
                print(f"| {name} | {clients} | {' | '.join(f'{value:.3g}' for value in figures)} |", flush=True)


if __name__ == "__main__":
    main()
