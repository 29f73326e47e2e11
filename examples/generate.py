"""Answer questions with an organizer and its workers, and show what each agent wrote.

Run it with ``python examples/generate.py``. Any causal language model of transformers serves in place of the small
checkpoint in the box: ``ForkJoinSampler("HuggingFaceTB/SmolLM2-135M-Instruct")``.
"""

from __future__ import annotations

from asyncthink import Episode, ForkJoinSampler, SamplingParams, checkpoint_path

QUESTIONS = ["47 from 3 5 7 8 9 10 12", "55 from 4 5 6 8 9 10 11"]


def main() -> list[Episode]:
    sampler = ForkJoinSampler(checkpoint_path("countdown"), pool=4, context="shared", join="exact")
    for topic, choice in sampler.explain().items():
        print(f"{topic}: {choice}")
    episodes = sampler.generate(QUESTIONS, SamplingParams(temperature=0.0))
    for episode in episodes:
        print(f"\n{episode.question}: {episode.answer}")
        print(f"critical path: {episode.critical_path_tokens} of {episode.total_tokens} drawn tokens")
        for trace in episode.traces:
            name = f"worker {trace.fork_index}" if trace.role == "worker" else trace.role
            print(f"  {name:10} {trace.decoded:4} tokens  {trace.text[:70]!r}")
    return episodes


if __name__ == "__main__":
    main()
