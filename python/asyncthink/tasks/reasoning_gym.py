"""The verified task families of the package reasoning-gym (extra ``reasoning-gym``): over a hundred of them.

A family makes puzzles and grades answers itself. https://github.com/open-thought/reasoning-gym
"""

from __future__ import annotations

import json
import random
import warnings
from dataclasses import dataclass, field
from typing import Any

from asyncthink.tasks.query import split_query
from asyncthink.tasks.script import Demonstration
from asyncthink.tasks.split import in_held_out_share

SIZE = 100_000  # puzzles of a family, by number, unless its options say otherwise
TRIES = 1000  # draws until one is on the wanted side of the split


@dataclass(frozen=True, slots=True)
class Entry:
    """A puzzle: its question, and all that the family grades by."""

    question: str
    record: dict[str, Any] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ReasoningGym:
    """The task of one family. It has no demonstrations.

    ``dataset`` is what ``reasoning_gym.create_dataset`` made; with ``test`` all puzzles are held out, else the tenth
    that the hash of the question chooses.
    """

    name: str
    dataset: Any
    test: bool = False
    asked: int = 1

    @classmethod
    def load(cls, spec: str, test: bool = False) -> ReasoningGym:
        """The family of a name, with options of its configuration behind "?": ``chain_sum?min_terms=2&max_terms=3``.

        Values are JSON, or else text. ``size`` is the number of puzzles, 100,000 unless given; ``word_ladder`` makes
        all of them at once and wants fewer.

        Raises ValueError for an unknown family, an unknown option or a value that the family refuses; ImportError
        without the package.
        """
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError as error:
            raise ImportError(f'reasoning-gym: {error}: pip install "asyncthink-kernels[reasoning-gym]"') from error
        family, options = split_query(spec)
        if family not in DATASETS:
            raise ValueError(f"reasoning-gym: expected one of {', '.join(sorted(DATASETS))}, got {family!r}")
        try:
            given = {name: _value(text) for name, text in options.items()}
            dataset = create_dataset(family, **{"seed": 0, "size": SIZE, **given})
        except (TypeError, ValueError, AssertionError) as error:
            known = sorted(DATASETS[family][1].__dataclass_fields__)
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"reasoning-gym: {family} refuses {options} ({reason}); it has the options {', '.join(known)}"
            ) from error
        return cls(f"reasoning-gym{'-test' if test else ''}:{spec}", dataset, test)

    def sample(self, seed: int, held_out: bool = False) -> Entry:
        """The puzzle of this seed, on the wanted side of the split.

        Raises ValueError where a thousand draws have none there: a family of few puzzles, or training puzzles of a
        task that is all held out.
        """
        if self.test and not held_out:
            raise ValueError(f"reasoning-gym: {self.name} has no training puzzles, all are held out")
        rng = random.Random(f"{seed} {held_out}")
        for _ in range(TRIES):
            record = self.dataset[rng.randrange(len(self.dataset))]
            if self.test or in_held_out_share(f"reasoning-gym {record['question']}") == held_out:
                return Entry(record["question"].strip(), record)
        side = "held-out" if held_out else "training"
        raise ValueError(f"reasoning-gym: {self.name} has no {side} puzzle among {TRIES}")

    def prompt(self, puzzle: Entry) -> str:
        """The question as the family writes it."""
        return puzzle.question

    def verify(self, puzzle: Entry, answer: str | None) -> float:
        """The family's ``score_answer`` of the stripped answer, in [0, 1]; some give wrong answers 0.01 or 0.05.

        0 without an answer, and, with a warning, for one at which the family's grader fails.
        """
        if answer is None or not answer.strip():
            return 0.0
        try:
            score = float(self.dataset.score_answer(answer.strip(), puzzle.record))
        except Exception as error:  # a grader that cannot read an answer must not end a run
            warnings.warn(f"{self.name}: no grade for {answer!r:.80}: {type(error).__name__}: {error}", stacklevel=2)
            return 0.0
        return min(1.0, max(0.0, score))

    def demonstrate(
        self,
        puzzle: Entry,
        seed: int,
        mode: str = "asyncthink",
        context: str = "shared",
        pool: int = 4,
        depth: int = 1,
    ) -> Demonstration:
        """Always raises ValueError: this task has no demonstrations."""
        raise ValueError(f"task: {self.name} has no demonstrations")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
