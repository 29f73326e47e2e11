"""What a server costs a step: 8 streamed chats over HTTP beside the same 8 in one process, on the same model.

`python bench/serve_steps.py --model FOLDER` prints the median time of a step in both, from the episodes' own records
(`Episode.step_times`), in turn, and their ratio. The goal is 1.05. The clients run on the same cores as the server, and
only keep the bytes that come.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
from typing import Any

from asyncthink import Episode, ForkJoinSampler, SamplingParams
from serve_load import PLAIN, server

AGENTS, TOKENS, WARM, ROUNDS = 8, 96, 8, 3
QUESTIONS = [f"Tell a long story about the number {number}." for number in range(AGENTS)]


def steps(episodes: list[Episode]) -> list[float]:
    """Seconds of the steps in which all agents draw."""
    shortest = min(episodes, key=lambda episode: len(episode.step_times))
    times = shortest.step_times[WARM:]
    return [after - before for before, after in itertools.pairwise(times)]


async def ask(port: int, question: str, seed: int) -> Episode:
    """One streamed chat. The bytes are only kept while it runs: reading JSON would take the cores from the server."""
    body: dict[str, Any] = {
        **{"model": "default", "messages": [{"role": "user", "content": question}], "stream": True, "seed": seed},
        **{"max_tokens": TOKENS, "asyncthink": PLAIN["asyncthink"] | {"record": True}},
    }
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}content-length: {len(data)}\r\nconnection: close\r\n\r\n".encode() + data)
    got = await reader.read()
    writer.close()
    for line in got.splitlines():  # an event is one piece of the body, so its line is whole
        if line.startswith(b"data: {") and (record := json.loads(line[6:]).get("asyncthink", {}).get("record")):
            return Episode.from_dict(record)
    raise RuntimeError(f"the stream ended without a record: {got[:300]!r}")


async def over_http(url: str) -> list[Episode]:
    port = int(url.rsplit(":", 1)[1])
    return await asyncio.gather(*(ask(port, question, seed) for seed, question in enumerate(QUESTIONS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    params = [SamplingParams(max_tokens=TOKENS, seed=seed) for seed in range(AGENTS)]
    sampler = ForkJoinSampler(args.model, mode="sequential", answer="text", num_pages=4096)
    command = f"{sys.executable} -m asyncthink serve --model {args.model} --port {{port}} --num-pages 4096"
    inside: list[float] = []
    outside: list[float] = []
    with server(command) as url:
        for _ in range(ROUNDS):
            inside += steps(sampler.generate(QUESTIONS, params))
            outside += steps(asyncio.run(over_http(url)))
    alone, served = (1000 * statistics.median(times) for times in (inside, outside))
    print(f"a step of {AGENTS} agents: {alone:.2f} ms in process, {served:.2f} ms served, ratio {served / alone:.3f}")


if __name__ == "__main__":
    main()
