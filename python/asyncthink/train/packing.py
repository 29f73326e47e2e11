"""Packing: an episode as a tree in one long sequence, where every token is computed once.

Rows are concatenated into a single sequence of T tokens. A row attends to itself, causally, and to a prefix: the first
tokens of one other row, its organizer's or one with the same beginning. It attends to nothing else. Gradients of a
row's loss reach the keys and values of the prefix, exactly as if the row had computed the prefix itself.
:func:`visible` is the mask's specification; every attention of :mod:`asyncthink.train.packed_attention` implements it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # label of a position without loss


@dataclass(frozen=True, slots=True)
class Move:
    """An ``append`` join: the K/V of tokens ``[start, stop)`` of row ``row`` replace this row's from ``at`` on."""

    at: int
    row: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Row:
    """One agent's own tokens, and which of them it drew (``learned[k]``: token k is a training target).

    The agent also sees the first ``fork_at`` tokens of row number ``parent`` of the episode (None: of no row), which
    precede its own at their true positions. A parent has no parent itself. :func:`.rows.rows` makes the rows.
    """

    role: str
    context: str
    tokens: tuple[int, ...]
    learned: tuple[bool, ...]
    parent: int | None = None
    fork_at: int = 0
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """Row tokens ``[start, stop)`` of the sequence; they also see ``[prefix, prefix_stop)``."""

    start: int
    stop: int
    prefix: int
    prefix_stop: int


@dataclass(frozen=True, slots=True)
class Batch:
    """``tokens``, ``positions``, ``labels`` are [1, T] int64; ``labels[0, t]`` is the token after t, or IGNORED.

    ``spans`` are the rows in their given order, so token k of a row is at ``span.start + k`` and its prediction at
    ``span.start + k - 1``. The K/V of token ``moved_from[j]``, its K rotated to the new position, replace those of
    token ``moved_to[j]`` (both [N] int64).
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    spans: tuple[Span, ...]
    moved_from: Tensor
    moved_to: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """This batch with its tensors on ``device``."""
        tensors = (self.tokens, self.positions, self.labels, self.moved_from, self.moved_to)
        tokens, positions, labels, moved_from, moved_to = (tensor.to(device) for tensor in tensors)
        return Batch(tokens, positions, labels, self.spans, moved_from, moved_to)


def pack(episodes: Iterable[Sequence[Row]], batch_tokens: int) -> Batch:
    """Pack whole episodes until ``batch_tokens`` tokens are reached; the last episode may exceed it.

    Raises ValueError if there is no episode, and for rows that do not fit together.

    >>> organizer = Row("organizer", "shared", (5, 6, 7, 8), (False, False, True, True))
    >>> worker = Row("worker", "shared", (3, 9), (False, True), parent=0, fork_at=2)
    >>> batch = pack([[organizer, worker]], 1)
    >>> batch.positions.tolist(), batch.labels.tolist()
    ([[0, 1, 2, 3, 2, 3]], [[-100, 7, 8, -100, 9, -100]])
    >>> visible(batch)[5].int().tolist()
    [1, 1, 0, 0, 1, 1]
    """
    rows: list[Row] = []
    spans: list[Span] = []
    moved_from: list[int] = []
    moved_to: list[int] = []
    end = 0
    for episode in episodes:
        _check(episode)
        base = len(spans)
        for row in episode:
            prefix = spans[base + row.parent].start if row.parent is not None else end
            spans.append(Span(end, end + len(row.tokens), prefix, prefix + row.fork_at))
            rows.append(row)
            end += len(row.tokens)
        for row, span in zip(episode, spans[base:], strict=True):
            for move in row.moves:
                start = spans[base + move.row].start
                moved_from += range(start + move.start, start + move.stop)
                moved_to += range(span.start + move.at, span.start + move.at + move.stop - move.start)
        if end >= batch_tokens:
            break
    if not rows:
        raise ValueError("pack: expected at least one episode, got none")
    positions = [row.fork_at + k for row in rows for k in range(len(row.tokens))]
    labels = [label for row in rows for label in _labels(row)]
    tokens = [token for row in rows for token in row.tokens]
    return Batch(
        torch.tensor([tokens]),
        torch.tensor([positions]),
        torch.tensor([labels]),
        tuple(spans),
        torch.tensor(moved_from, dtype=torch.int64),
        torch.tensor(moved_to, dtype=torch.int64),
    )


def _labels(row: Row) -> list[int]:
    following = zip(row.tokens[1:], row.learned[1:], strict=True)
    return [token if learned else IGNORED for token, learned in following] + [IGNORED]


def _check(episode: Sequence[Row]) -> None:
    for number, row in enumerate(episode):
        where = f"rows[{number}]"
        if not row.tokens or len(row.learned) != len(row.tokens):
            raise ValueError(f"{where}: expected tokens, and as many marks, got {len(row.tokens)}, {len(row.learned)}")
        if row.learned[0]:
            raise ValueError(f"{where}: expected a first token that is given, got one to learn: nothing predicts it")
        if row.parent is None and row.fork_at:
            raise ValueError(f"{where}: expected fork_at 0 without a parent, got {row.fork_at}")
        if row.parent is not None:
            if not 0 <= row.parent < len(episode) or episode[row.parent].parent is not None:
                raise ValueError(f"{where}: expected a parent that has none itself, got row {row.parent}")
            if not 0 <= row.fork_at <= len(episode[row.parent].tokens):
                size = len(episode[row.parent].tokens)
                raise ValueError(f"{where}: expected fork_at in [0, {size}], got {row.fork_at}")
        for move in row.moves:
            known = 0 <= move.row < len(episode)
            if not known or not 0 <= move.start <= move.stop <= len(episode[move.row].tokens):
                raise ValueError(f"{where}: expected moves of tokens that other rows hold, got {move}")
            if not 0 <= move.at <= len(row.tokens) - (move.stop - move.start):
                raise ValueError(f"{where}: expected moves into its {len(row.tokens)} tokens, got {move}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Token q attends to tokens ``[own[q], q]`` and ``[prefix[q], prefix_stop[q])``; all [T] int64."""

    own: Tensor
    prefix: Tensor
    prefix_stop: Tensor

    def sees(self, q: Tensor, k: Tensor) -> Tensor:
        """Whether token q attends to the K/V at index k; q and k int64, of shapes that broadcast."""
        return ((k >= self.own[q]) & (k <= q)) | ((k >= self.prefix[q]) & (k < self.prefix_stop[q]))


def limits(batch: Batch, window: int | None = None) -> Limits:
    """The tokens that each token of a batch attends to; with a ``window`` only the last ``window`` positions."""
    device = batch.tokens.device
    sizes = torch.tensor([span.stop - span.start for span in batch.spans], device=device)
    bounds = torch.tensor([(span.start, span.prefix, span.prefix_stop) for span in batch.spans], device=device)
    own, prefix, prefix_stop = bounds.repeat_interleave(sizes, 0).unbind(1)
    if window is not None:
        # Positions are consecutive within a row and within a prefix, which begins at position 0.
        q = torch.arange(len(own), device=device)
        own = torch.maximum(own, q - window + 1)
        prefix = torch.maximum(prefix, prefix + batch.positions[0] - window + 1)
    return Limits(own, prefix, prefix_stop)


def visible(batch: Batch, window: int | None = None) -> Tensor:
    """[T, T] bool, the specification. ``visible[q, k]``: token q attends to the K/V at index k.

    Those are token k's own, except that index ``moved_to[j]`` holds the K/V of token ``moved_from[j]``.
    """
    index = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    return limits(batch, window).sees(index[:, None], index[None, :])
