"""Follow one episode as it happens: tokens of all agents, forks, joins, the answer.

Run it with ``python examples/stream.py``.
"""

from __future__ import annotations

from asyncthink import Episode, ForkJoinSampler, SamplingParams, TokenEvent, checkpoint_path


def main() -> Episode:
    sampler = ForkJoinSampler(checkpoint_path("countdown"))
    written: dict[int, str] = {}  # the line that each agent is writing
    # Leaving the block early cancels the episode and gives its K/V pages back.
    with sampler.stream("47 from 3 5 7 8 9 10 12", SamplingParams(temperature=0.0)) as stream:
        for event in stream:
            if isinstance(event, TokenEvent):
                if event.sampled:
                    *lines, written[event.agent] = (written.get(event.agent, "") + event.text).split("\n")
                    for line in lines:
                        print(f"step {event.step:3}  agent {event.agent}  {line}")
            else:
                peer = "" if event.peer is None else f" (agent {event.peer})"
                print(f"step {event.step:3}  agent {event.agent}  [{event.kind}]{peer} {event.text}")
        episode = stream.episode
    print(f"answer: {episode.answer}")
    return episode


if __name__ == "__main__":
    main()
