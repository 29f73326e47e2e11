"""The masks under which an episode's tokens were drawn, so that a trainer normalises over the same tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asyncthink.engine.masks import RuleMasks
from asyncthink.episode.records import Episode, Trace
from asyncthink.protocol.guide import Rule
from asyncthink.protocol.tags import read_tag


@dataclass(frozen=True, slots=True)
class DrawnMasks:
    """Masks of N drawn tokens: row ``index[n]`` of ``rows`` [U, ceil(V / 32)] int32; both on one device."""

    rows: Tensor
    index: Tensor

    def __getitem__(self, tokens: Tensor | slice) -> Tensor:
        """[n, ceil(V / 32)] int32, the masks of these tokens."""
        return self.rows[self.index[tokens]]

    def to(self, device: torch.device | str) -> DrawnMasks:
        """These masks on ``device``."""
        return DrawnMasks(self.rows.to(device), self.index.to(device))


def drawn_masks(episodes: Iterable[Episode], masks: RuleMasks) -> DrawnMasks | None:
    """The masks of all drawn tokens in packed order: episode by episode, trace by trace. None if none had a rule.

    A rule is in the record (:attr:`Trace.rules`), and the characters of a begun tag are read from the pieces again.
    """
    known: dict[tuple[Rule | None, str], int] = {}
    rows: list[np.ndarray] = []
    index: list[int] = []
    for episode in episodes:
        for trace in episode.traces:
            for rule, tail in _drawn_under(trace):
                number = known.setdefault((rule, tail), len(rows))
                if number == len(rows):
                    free = np.full(-(-masks.vocabulary // 32), -1, np.int32)
                    rows.append(free if rule is None else masks.row(rule, tail))
                index.append(number)
    if all(rule is None for rule, _ in known):
        return None
    return DrawnMasks(torch.from_numpy(np.stack(rows)), torch.tensor(index, device="cpu"))


def _drawn_under(trace: Trace) -> list[tuple[Rule | None, str]]:
    """(rule, characters of a begun tag) of each drawn token of a trace, in order."""
    rules, forced = dict(trace.rules), set(trace.forced)
    rule: Rule | None = None
    tail, under = "", list[tuple[Rule | None, str]]()
    for token, (piece, drawn) in enumerate(zip(trace.pieces, trace.sampled, strict=True)):
        rule = rules.get(token, rule)
        if not drawn and token not in forced:
            tail = ""
            continue
        if drawn:
            under.append((rule, tail if rule is not None else ""))
        read = 0
        while read < len(piece):
            tail, read, _ = read_tag(tail, piece, read)
    return under
