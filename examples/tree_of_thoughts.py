"""Tree of thoughts: grow several continuations of each kept thought, keep the likeliest, close the others.

Run it with ``python examples/tree_of_thoughts.py``. A closed branch gives its pages back at once; what it shares with
others stays as long as they live.
"""

from __future__ import annotations

from asyncthink import ForkJoinSampler, SamplingParams, Thread, checkpoint_path

PROMPT = "47 from 3 5 7 8 9 10 12\n"
DEPTH, WIDTH, KEPT = 3, 3, 2


def value(thread: Thread) -> float:
    """The mean log-probability of the last thought's tokens."""
    logprobs = thread.thought.logprobs if thread.thought else ()
    return sum(logprobs) / len(logprobs) if logprobs else float("-inf")


def main() -> tuple[str, list[int]]:
    engine = ForkJoinSampler(checkpoint_path("countdown"), num_pages=256)
    frontier, pages = [engine.thread(PROMPT)], []
    for level in range(DEPTH):
        grown = [child for thread in frontier for child in thread.fork(WIDTH)]
        engine.think(grown, SamplingParams(temperature=1.5, max_tokens=12, seed=level))
        ranked = sorted(grown, key=value, reverse=True)
        for thread in (*frontier, *ranked[KEPT:]):
            thread.close()
        frontier = ranked[:KEPT]
        pages.append(engine.cache.used_pages)
        for thread in frontier:
            print(f"level {level + 1}: {value(thread):.2f} {thread.text!r} ({pages[-1]} pages held)")
    whole = engine.codec.decode(frontier[0].tokens)
    for thread in frontier:
        thread.close()
    pages.append(engine.cache.used_pages)
    print(whole)
    return whole, pages


if __name__ == "__main__":
    main()
