"""Self-consistency: many chains of thought over one prompt, and the answer that most of them reach.

Run it with ``python examples/self_consistency.py``. The prompt is computed once, and all chains decode in one batch.
"""

from __future__ import annotations

import re
from collections import Counter

from asyncthink import ForkJoinSampler, SamplingParams, checkpoint_path

CHAINS = 8
PROMPT = "Use every number once: 47 from 3 5 7 8 9 10 12\n"


def answer_of(text: str) -> str | None:
    """The last number that a chain writes; None if it writes none."""
    numbers = re.findall(r"\d+", text)
    return numbers[-1] if numbers else None


def main() -> dict[str | None, int]:
    engine = ForkJoinSampler(checkpoint_path("countdown"), num_pages=256)
    with engine.thread(PROMPT) as prompt:
        chains = prompt.fork(CHAINS)
        engine.think(chains, SamplingParams(temperature=0.9, max_tokens=40, seed=1))
        votes = Counter(answer_of(chain.text) for chain in chains)
        for chain in chains:
            print(f"chain {chain.number}: {chain.text[-30:]!r} -> {answer_of(chain.text)}")
            chain.close()
    answer, count = votes.most_common(1)[0]
    print(f"answer: {answer}, {count} of {CHAINS} chains")
    return dict(votes)


if __name__ == "__main__":
    main()
