"""What a model does in a pass: the masks that it builds, and the position tables that it reads.

Both are taken from the calls themselves, because a config may name windows and positions that no layer uses.

Letters: T tokens of the pass, R rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionMaskInterface
from transformers.masking_utils import eager_mask

PROBE = "asyncthink_probe"
"""Another name of our attention, for which transformers does build masks, so that a pass shows them."""

_FARTHEST = 1 << 21  # a larger window counts as none
_LOOKUPS = (torch.ops.aten.embedding.default, torch.ops.aten.index_select.default, torch.ops.aten.index.Tensor)


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask that transformers built in a pass: the ``tensor``, and the rule that it was computed from.

    ``sees(batch, head, query position, key position)`` is that rule, for positions beyond the pass too. ``local_size``
    is its window or chunk, if any.
    """

    tensor: Tensor
    sees: Callable[..., Tensor]
    local_size: int | None

    def is_window(self, window: int | None) -> bool:
        """Whether a query sees exactly the last ``window`` keys up to its own; None: all of them.

        The rule is evaluated at positions up to four million, so a window longer than the pass is detected. A rule that
        indexes a table of the pass's tokens (their images, say) is evaluated at the positions of the pass alone.
        """
        sizes = [1 << bit for bit in range(22)] + [size for size in (window, self.local_size) if size]
        distances = torch.tensor(sorted({size + near for size in sizes for near in (-1, 0, 1)} | {-5}), device="cpu")
        try:
            return all(self._agrees(window, last, last - distances) for last in (5, _FARTHEST + 3, 2 * _FARTHEST + 2))
        except IndexError:
            T = self.tensor.shape[-1]
            positions = torch.arange(T, device="cpu")
            return self.local_size == window and all(self._agrees(window, last, positions) for last in range(T))

    def _agrees(self, window: int | None, query: int, keys: Tensor) -> bool:
        keys = keys[keys >= 0]
        expected = keys <= query if window is None else (keys <= query) & (keys > query - window)
        zero = torch.zeros((), dtype=torch.int64, device=self.tensor.device)  # the batch, and the head
        keys = keys.to(zero.device)
        seen = self.sees(zero, zero, torch.full_like(keys, query), keys)
        return torch.equal(seen.cpu().expand_as(expected), expected)


_masks: ContextVar[list[Mask]] = ContextVar("asyncthink_masks")


def _note_mask(*, mask_function: Callable[..., Tensor], local_size: int | None = None, **given: Any) -> Tensor:
    tensor: Tensor = eager_mask(mask_function=mask_function, local_size=local_size, **given)
    _masks.get().append(Mask(tensor, mask_function, local_size))
    return tensor


AttentionMaskInterface.register(PROBE, _note_mask)


@contextmanager
def watched_masks() -> Iterator[list[Mask]]:
    """The masks that transformers builds for attention :data:`PROBE` in the body of the ``with`` statement."""
    token = _masks.set([])
    try:
        yield _masks.get()
    finally:
        _masks.reset(token)


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share an allocation: a view of a mask counts as that mask."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


class WatchedTables(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the lookups of T rows in longer tables. :meth:`positions` selects those that are indexed by position."""

    def __init__(self, T: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._T = T
        self._lookups: list[tuple[int, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LOOKUPS:
            table = args[0]
            index = args[2] if func is torch.ops.aten.index_select.default else args[1]
            index = index[0] if isinstance(index, list) and len(index) == 1 else index
            # A tensor with one row for each token is a hidden state, not a table.
            whole = isinstance(index, Tensor) and index.dtype in (torch.int32, torch.int64)
            if whole and index.numel() == self._T < table.shape[0] and table.ndim >= 2:
                self._lookups.append((table.shape[0], index.detach().flatten().to("cpu", torch.int64)))
        return func(*args, **(kwargs or {}))

    def positions(self, positions: Sequence[int]) -> set[tuple[int, int]]:
        """(R, row of position 0) of each table that was indexed by the ``positions`` [T] of the pass.

        The token ids of the pass must not look like its positions: for positions 0, 1, ... no consecutive ids.
        """
        expected = torch.tensor(positions, device="cpu")
        tables = set()
        for rows, index in self._lookups:
            first = index - expected
            if bool((first == first[0]).all()):
                tables.add((rows, int(first[0])))
        return tables
