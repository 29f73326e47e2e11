"""Packing: an episode as a tree in one long sequence, where every token is computed once.

Rows are concatenated into a single sequence of T tokens. A row attends to itself, causally, and to a prefix: the first
tokens of one other row (its parent's, or one with the same beginning) behind that row's own prefix, and so on up the
tree. It attends to nothing else. Gradients of a
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

    The agent also sees the first ``fork_at`` tokens of row number ``parent`` of the episode (None: of no row), and what
    these see. They precede its own at their true positions. A parent is an earlier row. :func:`.rows.rows` makes them.
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
    """Row tokens ``[start, stop)`` of the sequence; they also see each ``[first, last)`` of ``seen``.

    ``seen`` are the row's prefix, from the top of the tree down: the ranges are not empty, and their lengths add up to
    the position of the row's first token.
    """

    start: int
    stop: int
    seen: tuple[tuple[int, int], ...] = ()

    @property
    def position(self) -> int:
        """The position of the first token."""
        return sum(last - first for first, last in self.seen)


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
            seen = () if row.parent is None else _prefix(spans[base + row.parent], row.fork_at)
            spans.append(Span(end, end + len(row.tokens), seen))
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
    # A returned text may hold one that its worker was given, whose K/V are those of another row again.
    sources = dict(zip(moved_to, moved_from, strict=True))
    moved_from = [_source(sources, token) for token in moved_from]
    positions = [span.position + k for span in spans for k in range(span.stop - span.start)]
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


def _prefix(parent: Span, fork_at: int) -> tuple[tuple[int, int], ...]:
    """What a row sees that continues the first ``fork_at`` tokens of its parent."""
    return (*parent.seen, (parent.start, parent.start + fork_at)) if fork_at else parent.seen


def _source(sources: dict[int, int], token: int) -> int:
    """The token whose K/V stand at ``token`` once all moves are made."""
    while token in sources:
        token = sources[token]
    return token


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
            if not 0 <= row.parent < number:
                raise ValueError(f"{where}: expected a parent among the rows before it, got row {row.parent}")
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
    """Token q attends to tokens ``[own[q], q]`` and to ``[first[q], last[q])`` of each pair in ``seen``; all [T] int64.

    There are as many pairs as the longest prefix has ranges, at least one; others are empty.
    """

    own: Tensor
    seen: tuple[tuple[Tensor, Tensor], ...]

    def sees(self, q: Tensor, k: Tensor) -> Tensor:
        """Whether token q attends to the K/V at index k; q and k int64, of shapes that broadcast."""
        sees = (k >= self.own[q]) & (k <= q)
        for first, last in self.seen:
            sees = sees | ((k >= first[q]) & (k < last[q]))
        return sees


def limits(batch: Batch, window: int | None = None) -> Limits:
    """The tokens that each token of a batch attends to; with a ``window`` only the last ``window`` positions."""
    device = batch.tokens.device
    sizes = torch.tensor([span.stop - span.start for span in batch.spans], device=device)

    def each_token(values: Iterable[int]) -> Tensor:
        """[T] from one value for each row."""
        return torch.tensor(list(values), device=device).repeat_interleave(sizes)

    own = each_token(span.start for span in batch.spans)
    if window is not None:
        own = torch.maximum(own, torch.arange(len(own), device=device) - window + 1)
    seen = []
    for number in range(max(1, *(len(span.seen) for span in batch.spans))):
        ranges = [span.seen[number] if number < len(span.seen) else (span.start, span.start) for span in batch.spans]
        first, last = (each_token(ends) for ends in zip(*ranges, strict=True))
        if window is not None:
            # Positions are consecutive within a row and within a range, which begins where those before it end.
            begin = each_token(Span(0, 0, span.seen[:number]).position for span in batch.spans)
            first = torch.maximum(first, first + batch.positions[0] - window + 1 - begin)
        seen.append((first, last))
    return Limits(own, tuple(seen))


def visible(batch: Batch, window: int | None = None) -> Tensor:
    """[T, T] bool, the specification. ``visible[q, k]``: token q attends to the K/V at index k.

    Those are token k's own, except that index ``moved_to[j]`` holds the K/V of token ``moved_from[j]``.
    """
    index = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    return limits(batch, window).sees(index[:, None], index[None, :])
