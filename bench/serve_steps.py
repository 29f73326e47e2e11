"""What a server costs a step: 8 streamed chats over HTTP beside the same 8 in one process, on the same model.

`python bench/serve_steps.py --model FOLDER` prints the median time of a step in both, from the episodes' own records
(`Episode.step_times`), in turn, and their ratio. The goal is 1.05. The clients run on the same cores as the server.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
from typing import Any

import httpx

from asyncthink import Episode, ForkJoinSampler, SamplingParams
from serve_load import PLAIN, server

AGENTS, TOKENS, WARM, ROUNDS = 8, 96, 8, 3
QUESTIONS = [f"Tell a long story about the number {number}." for number in range(AGENTS)]


def steps(episodes: list[Episode]) -> list[float]:
    """Seconds of the steps in which all agents draw."""
    shortest = min(episodes, key=lambda episode: len(episode.step_times))
    times = shortest.step_times[WARM:]
    return [after - before for before, after in itertools.pairwise(times)]


async def ask(client: httpx.AsyncClient, question: str, seed: int) -> Episode:
    body: dict[str, Any] = {
        **{"model": "default", "messages": [{"role": "user", "content": question}], "stream": True, "seed": seed},
        **{"max_tokens": TOKENS, "asyncthink": PLAIN["asyncthink"] | {"record": True}},
    }
    record = None
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data:") and not line.endswith("[DONE]"):
                record = json.loads(line[5:]).get("asyncthink", {}).get("record", record)
    if record is None:
        raise RuntimeError("the stream ended without a record")
    return Episode.from_dict(record)


async def over_http(url: str) -> list[Episode]:
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        return await asyncio.gather(*(ask(client, question, seed) for seed, question in enumerate(QUESTIONS)))


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
