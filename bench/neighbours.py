"""A decode step beside other programs: 8 agents, with 0, 1 and 2 processes that compute all the time.

`python bench/neighbours.py --model FOLDER` prints the median time of a step for this package, for transformers
(`model(...)` on one row an agent, its DynamicCache), and for llama.cpp (the extra `[peers]`) on the same weights in
bfloat16, in turn, in one run. The first quarter of the steps is left out: there this package still learns that it is
not alone. Models: llama and Qwen3 shapes.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import peers
from asyncthink import ForkJoinSampler, SamplingParams
from engines import Engine

AGENTS, TOKENS = 8, 64
BUSY = (0, 1, 2, 0)
QUESTIONS = [f"Tell a long story about the number {number}." for number in range(AGENTS)]


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def median(ends: list[float]) -> float:
    """Milliseconds of a step."""
    times = ends[len(ends) // 4 :]
    return 1000 * statistics.median(after - before for before, after in itertools.pairwise(times))


def ours(sampler: ForkJoinSampler) -> float:
    params = [SamplingParams(max_tokens=TOKENS, seed=seed) for seed in range(AGENTS)]
    episodes = sampler.generate(QUESTIONS, params)
    return median(min((episode.step_times for episode in episodes), key=len))


@torch.inference_mode()
def transformers(sampler: ForkJoinSampler) -> float:
    model = sampler.decoder.model
    token = torch.full((AGENTS, 1), 100)
    cache, ends = None, []
    for _ in range(TOKENS):
        output = model(token, past_key_values=cache, use_cache=True)
        cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
        ends.append(time.perf_counter())
    return median(ends)


def llama_cpp(sampler: ForkJoinSampler) -> Engine:
    """The sampler's weights in llama.cpp."""
    from engines.llama_cpp_wheel import LlamaCppWheel
    from gguf_files import write_gguf

    model = sampler.decoder.model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(model, path, "BF16")
        return LlamaCppWheel(path, len(QUESTIONS[0]), model.config.vocab_size)  # the file stays mapped


def stepped(engine: Engine) -> float:
    engine.prefill([100] * len(QUESTIONS[0]))
    engine.branch(AGENTS)
    ends = []
    for _ in range(TOKENS):
        engine.step([100] * AGENTS)
        ends.append(time.perf_counter())
    return median(ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    sampler = ForkJoinSampler(parser.parse_args().model, mode="sequential", answer="text", num_pages=2048)
    runs = {"ours": lambda: ours(sampler), "transformers": lambda: transformers(sampler)}
    if (reason := peers.missing("llama.cpp")) is None:
        engine = llama_cpp(sampler)
        runs["llama.cpp"] = lambda: stepped(engine)
    else:
        print(f"llama.cpp: {reason}")
    for run in runs.values():  # warm
        run()
    print(f"{torch.get_num_threads()} threads; milliseconds a step")
    print(f"| busy processes | {' | '.join(runs)} |\n|---|{'---|' * len(runs)}")
    for count in BUSY:
        with neighbours(count):
            print(f"| {count} | {' | '.join(f'{run():.1f}' for run in runs.values())} |", flush=True)


if __name__ == "__main__":
    main()
