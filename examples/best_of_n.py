"""Best of n: several drafts, and the one that the model itself scores highest.

Run it with ``python examples/best_of_n.py``. The scorer asks behind each draft whether it is right, and takes the
log-probability of "yes" over "no": ``score`` reads what is computed and leaves the draft as it is.
"""

from __future__ import annotations

from asyncthink import ForkJoinSampler, SamplingParams, Thread, checkpoint_path

DRAFTS = 6
PROMPT = "47 from 3 5 7 8 9 10 12\n"


def value(draft: Thread) -> float:
    """How much likelier "yes" is than "no" behind the draft, as a log-ratio."""
    [judge] = draft.fork()
    with judge.write("\nIs this right? "):
        yes, no = judge.score(["yes", "no"])
    return yes.total - no.total


def main() -> tuple[str, list[float]]:
    engine = ForkJoinSampler(checkpoint_path("countdown"), num_pages=256)
    with engine.thread(PROMPT) as root:
        drafts = root.fork(DRAFTS)
        engine.think(drafts, SamplingParams(temperature=1.5, max_tokens=32, seed=3))
        values = [value(draft) for draft in drafts]
        for draft, worth in zip(drafts, values, strict=True):
            print(f"{worth:+.3f}  {draft.text[:60]!r}")
        best = drafts[values.index(max(values))]
        text = root.join(best).text
        for draft in drafts:
            draft.close()
    print(f"best: {text!r}")
    return text, values


if __name__ == "__main__":
    main()
