"""Skeleton of thought: first the points of an answer, then all points at the same time, then one text.

Run it with ``python examples/skeleton_of_thought.py``. Any instruct model serves in place of the small checkpoint.
"""

from __future__ import annotations

from asyncthink import ForkJoinSampler, SamplingParams, checkpoint_path

PROMPT = "47 from 3 5 7 8 9 10 12\nThree points to look at:"
POINTS = 3


def main() -> str:
    engine = ForkJoinSampler(checkpoint_path("countdown"), num_pages=256)
    with engine.thread(PROMPT) as root:
        for number in range(1, POINTS + 1):  # the guide keeps a point short and on one line
            root.write(f"\n{number}. ").think(SamplingParams(temperature=0.7, seed=number), regex=r"[0-9 +*-]{3,12}")
            print(f"point {number}: {root.thought.text}")
        points = root.fork(POINTS)
        for number, point in enumerate(points, 1):
            point.write(f"\n\nPoint {number} in detail: ")
        engine.think(points, SamplingParams(temperature=0.7, max_tokens=24, stop=("\n",)))
        # What each point wrote is appended by its K and V: nothing of it is computed again.
        root.join(points, mode="append").write("\n\nTogether: ").think(SamplingParams(max_tokens=16))
        for point in points:
            point.close()
        print(root.text)
        return root.text


if __name__ == "__main__":
    main()
