"""Episodes driven over HTTP against the same episodes in one process, on the same model.

`python bench/serve_remote.py same --model FOLDER` answers 50 questions greedily, in each context, here and on a server
(`asyncthink serve`, which it starts), and prints how many records are equal, token by token, with the server's own
count of prompt tokens that it had computed before. `kill` starts two servers, kills one (SIGKILL) in the middle, and
compares again. `steps` prints the median time of a step of 8 agents, in process and over HTTP.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx

from asyncthink import Episode, ForkJoinSampler, RemoteSampler, SamplingParams
from asyncthink.tasks import task
from asyncthink.tasks.held_out import held_out

QUESTIONS, AGENTS, TOKENS, WARM, ROUNDS = 50, 8, 96, 8, 3
PAGES = "8192"


@contextlib.contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`asyncthink serve`, ready; and its process, which may be killed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = ["--model", args.model, "--dtype", args.dtype, "--port", str(port), "--num-pages", PAGES]
    command = [sys.executable, "-m", "asyncthink", "serve", *own]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            time.sleep(0.2)
        yield url, process
    finally:
        process.terminate()
        process.wait()


def shape(episode: Episode) -> Any:
    """What must be equal: tokens, texts, joins, answer, errors, ends."""
    data = episode.to_dict()
    kept = ("tokens", "sampled", "text", "returned", "finish", "joins", "fork_at", "parent")
    traces = [{name: trace[name] for name in kept} for trace in data["traces"]]
    return traces, data["answer"], data["finish"], data["format_errors"], data["failures"]


def compare(got: list[Episode], expected: list[Episode]) -> str:
    same = [shape(one) == shape(other) for one, other in zip(got, expected, strict=True)]
    gaps = [
        abs(a - b)
        for one, other, equal in zip(got, expected, same, strict=True)
        if equal
        for trace, its in zip(one.traces, other.traces, strict=True)
        for a, b in zip(trace.logprobs, its.logprobs, strict=True)
    ]
    tokens, joins = sum(e.total_tokens for e in got), sum(e.joins for e in got)
    return (
        f"{sum(same)} of {len(same)} equal ({tokens} tokens, {joins} joins), "
        f"log-probabilities within {max(gaps, default=0.0):.1e}"
    )


def questions(count: int) -> list[str]:
    countdown = task("countdown")
    return [countdown.prompt(puzzle) for puzzle in held_out(countdown, count)]


def counters(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics").text
    return {name: float(value) for name, value in re.findall(r"^asyncthink_(\w+)_total (\S+)$", text, re.MULTILINE)}


def same(args: argparse.Namespace) -> None:
    for context in ("shared", "isolated"):
        options = {"context": context, "guide": args.guide}
        params = [
            SamplingParams(temperature=args.temperature, max_tokens=args.tokens, seed=k) for k in range(QUESTIONS)
        ]
        here = ForkJoinSampler(args.model, num_pages=int(PAGES), dtype=args.dtype, **options)
        expected = here.generate(questions(QUESTIONS), params)
        with server(args) as (url, _), RemoteSampler([url], args.model, **options) as there:
            got = there.generate(questions(QUESTIONS), params)
            told, stats = counters(url), there.stats
        hits = told["prefix_hit_tokens"] / told["prompt_tokens"]
        print(f"{context}: {compare(got, expected)}; {stats.requests} requests, {hits:.1%} of prompts were cached")


def kill(args: argparse.Namespace) -> None:
    params = [SamplingParams(temperature=0.8, max_tokens=args.tokens, seed=k) for k in range(QUESTIONS)]
    expected = ForkJoinSampler(args.model, num_pages=int(PAGES), dtype=args.dtype).generate(
        questions(QUESTIONS), params
    )
    seen = itertools.count(1)
    half = sum(episode.total_tokens for episode in expected) // 2
    with contextlib.ExitStack() as stack:
        (one, process), (two, _) = (stack.enter_context(server(args)) for _ in range(2))
        there = stack.enter_context(RemoteSampler([one, two], args.model))

        def listen(number: int, event: Any) -> None:
            if next(seen) == half:
                process.kill()

        got = there.generate(questions(QUESTIONS), params, on_event=listen)
        stats = there.stats
    homes = sum(episode.meta["server"] == one for episode in got)
    print(
        f"killed one of two at {half} tokens: {compare(got, expected)}; {homes} episodes had ended there, "
        f"{stats.moved} moved, {stats.failures} failures"
    )


def steps(args: argparse.Namespace) -> None:
    def times(episode: Episode) -> list[float]:
        return [after - before for before, after in itertools.pairwise(episode.step_times[WARM:])]

    agents: dict[str, Any] = {"mode": "parallel", "pool": AGENTS, "answer": "text"}
    params = SamplingParams(max_tokens=TOKENS, seed=1)
    asked = ["Tell a long story about a lighthouse."]
    here = ForkJoinSampler(args.model, num_pages=int(PAGES), dtype=args.dtype, **agents)
    inside: list[float] = []
    outside: list[float] = []
    with server(args) as (url, _), RemoteSampler([url], args.model, **agents) as there:
        for _ in range(ROUNDS):
            inside += times(here.generate(asked, params)[0])
            outside += times(there.generate(asked, params)[0])
    alone, served = (1000 * statistics.median(seconds) for seconds in (inside, outside))
    print(
        f"a step of {AGENTS} agents: {alone:.2f} ms in process, {served:.2f} ms over HTTP, ratio {served / alone:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["same", "kill", "steps"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=200, help="tokens that an agent may draw")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--guide", default="off")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    {"same": same, "kill": kill, "steps": steps}[args.what](args)


if __name__ == "__main__":
    main()
