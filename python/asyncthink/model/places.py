"""Memory for the results of programs, used again by all of them: :class:`Memory`, :class:`Places`.

One program runs at a time and nothing of a run is read after it, so all programs of a decoder lie in the same bytes.
What they hold together is a little more than the biggest of them needs, however many there are.
"""

from __future__ import annotations

import bisect

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes: a cache line
_LEAST = 1 << 16  # bytes of a chunk

_Span = tuple[int, int, int]  # chunk, first byte, bytes


class Memory:
    """Chunks of bytes that stay where they are; each new one is as large as all before it, or as asked for.

    >>> memory = Memory()
    >>> of_one_program = memory.places().take(torch.zeros(8))
    >>> of_the_next = memory.places().take(torch.zeros(4))
    >>> of_one_program.data_ptr() == of_the_next.data_ptr()
    True
    """

    def __init__(self) -> None:
        self.chunks: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        return sum(chunk.numel() for chunk in self.chunks)

    def grow(self, nbytes: int) -> int:
        """A chunk of at least so many bytes; its number."""
        size = max(nbytes, self.nbytes, _LEAST)
        self.chunks.append(torch.empty(size, dtype=torch.uint8, device="cpu"))
        return len(self.chunks) - 1

    def places(self) -> Places:
        """The whole memory as it is now, free, for one program."""
        return Places(self)


class Places:
    """Places of one program: taken where they fit first, given back to be taken again."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._free: list[_Span] = [(number, 0, chunk.numel()) for number, chunk in enumerate(memory.chunks)]
        self._taken: dict[int, _Span] = {}  # by address

    def take(self, sample: Tensor) -> Tensor:
        """A tensor of the sample's shape, strides and dtype, with arbitrary contents."""
        if not sample.numel():
            return torch.empty_strided(sample.shape, sample.stride(), dtype=sample.dtype, device="cpu")
        reach = 1 + sum((size - 1) * stride for size, stride in zip(sample.shape, sample.stride(), strict=True))
        nbytes = -(-reach * sample.itemsize // _ALIGNMENT) * _ALIGNMENT
        chunk, begin, _ = span = self._span(nbytes)
        place = self._memory.chunks[chunk][begin : begin + reach * sample.itemsize].view(sample.dtype)
        tensor = place.as_strided(sample.shape, sample.stride())
        self._taken[tensor.data_ptr()] = span
        return tensor

    def give(self, tensor: Tensor) -> None:
        """Nobody reads ``tensor``, which was taken here, any more."""
        span = self._taken.pop(tensor.data_ptr(), None)
        if span is None:  # an empty one
            return
        at = bisect.bisect(self._free, span)
        self._free.insert(at, span)
        for left in (at, at - 1):  # with the place behind it, then with the one before
            if 0 <= left < len(self._free) - 1:
                (chunk, begin, size), (next_chunk, next_begin, more) = self._free[left : left + 2]
                if chunk == next_chunk and begin + size == next_begin:
                    self._free[left : left + 2] = [(chunk, begin, size + more)]

    def _span(self, nbytes: int) -> _Span:
        at = next((at for at, (_, _, size) in enumerate(self._free) if size >= nbytes), None)
        if at is None:
            number = self._memory.grow(nbytes)
            at = len(self._free)
            self._free.append((number, 0, self._memory.chunks[number].numel()))
        chunk, begin, size = self._free[at]
        self._free[at : at + 1] = [(chunk, begin + nbytes, size - nbytes)] if size > nbytes else []
        return chunk, begin, nbytes
