"""``looked_up.py MODEL ... [--puzzles N] [--within TOKENS]``: which numbers a model finds among the puzzle's.

In held-out searches by one agent, as demonstrated, a third number stands where it reaches the target, and a label
follows if the puzzle has it: ``102+13 a:``. First the share of third numbers that are the model's most likely ones
there. Then for each number the model's mean probability of a label where one follows, less that where none does: 1 is a
model that looks the number up, 0 one that guesses. Only the first TOKENS of a search count: behind the longest text
that a model was trained on it is wrong, and no episode within the budget comes there.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncthink import PromptFormat
from asyncthink.tasks import task
from asyncthink.train.demonstrations import encode

TASK: Any = task("countdown-10x4")


def thirds(words: list[str]) -> list[int]:
    """Where a third number stands: behind a result, which may be of two tokens, and an operator."""
    found = []
    for at in range(4, len(words) - 1):
        behind = "".join(words[at - 4 : at + 1]).rpartition("=")
        if behind[1] and re.fullmatch(r"\d+[-+*/]\d+", behind[2]):
            found.append(at)
    return found


def looked_up(folder: str, puzzles: int, within: int) -> tuple[float, dict[int, float]]:
    """The share of right third numbers, and look-ups by number from 2, for the model in ``folder``."""
    tokenizer, prompts = AutoTokenizer.from_pretrained(folder), PromptFormat.load(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    labels = [i for i in range(len(tokenizer)) if re.fullmatch(r" [a-i]:", tokenizer.decode([i]))]
    seen: dict[tuple[int, bool], list[float]] = defaultdict(list)
    right: list[bool] = []
    for seed in range(puzzles):
        said = TASK.demonstrate(TASK.sample(seed, held_out=True), seed, "sequential")
        trace = encode(said, tokenizer, prompts).traces[0]
        words = [tokenizer.decode([token]) for token in trace.tokens]
        with torch.no_grad():
            logits = model(torch.tensor([trace.tokens])).logits[0]
        likely, probability = logits.argmax(-1).tolist(), logits.softmax(-1)[:, labels].sum(-1)
        for at in thirds(words[:within]):
            if trace.sampled[at]:
                seen[int(words[at]), trace.tokens[at + 1] in labels].append(float(probability[at]))
                right.append(likely[at - 1] == trace.tokens[at])
    numbers = sorted(number for number, label in seen if label and (number, False) in seen)
    return fmean(right), {number: fmean(seen[number, True]) - fmean(seen[number, False]) for number in numbers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--puzzles", type=int, default=250)
    parser.add_argument("--within", type=int, default=460)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for folder in options.models:
        right, numbers = looked_up(folder, options.puzzles, options.within)
        shown = " ".join(f"{number}:{value:.2f}" for number, value in numbers.items())
        print(f"{folder}\nthird numbers right: {right:.3f}\n{shown}")


if __name__ == "__main__":
    main()
