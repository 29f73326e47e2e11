"""Map and reduce over a long document: one fork for each part reads its part alone; a last thread joins their notes.

Run it with ``python examples/map_reduce.py``. The instructions are computed once; the parts decode in one batch.
"""

from __future__ import annotations

from itertools import pairwise

from asyncthink import ForkJoinSampler, SamplingParams, checkpoint_path

INSTRUCTIONS = "Read a part of a list and note its largest number.\n"
DOCUMENT = "\n".join(f"{(7 * k) % 90 + 3} from {k % 9 + 1} {k % 7 + 3} {k % 5 + 8}" for k in range(60))
PARTS = 6


def parts_of(document: str, count: int) -> list[str]:
    """The lines of a document in ``count`` stretches of about the same length."""
    lines = document.splitlines()
    cuts = [len(lines) * k // count for k in range(count + 1)]
    return ["\n".join(lines[a:b]) for a, b in pairwise(cuts)]


def main() -> tuple[list[str], str]:
    engine = ForkJoinSampler(checkpoint_path("countdown"), num_pages=512)
    with engine.thread(INSTRUCTIONS) as root:
        readers = root.fork(PARTS)
        for reader, part in zip(readers, parts_of(DOCUMENT, PARTS), strict=True):
            reader.write(f"{part}\nNote: ")
        engine.think(readers, SamplingParams(temperature=0.0, max_tokens=8), regex="[1-9][0-9]?\\.")
        notes = [reader.thought.text for reader in readers if reader.thought]
        root.write("Notes: ").join(readers, what="thought")  # the notes alone, not the parts
        root.write("\nThe largest number of all: ").think(SamplingParams(temperature=0.0), regex="[1-9][0-9]?\\.")
        answer = root.thought.text if root.thought else ""
        for reader in readers:
            reader.close()
    print(f"notes: {' '.join(notes)}\nanswer: {answer}")
    return notes, answer


if __name__ == "__main__":
    main()
