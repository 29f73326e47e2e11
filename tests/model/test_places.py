"""Places of programs: what is held does not overlap, and all programs share one memory."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asyncthink.model.places import Memory

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool]
SAMPLES = st.builds(
    lambda shape, dtype, order: torch.empty(shape, dtype=dtype).permute(order),
    st.tuples(st.integers(0, 40), st.integers(1, 40)),
    st.sampled_from(DTYPES),
    st.sampled_from([(0, 1), (1, 0)]),
)
#: Take a sample, or (an int) give the one of so many that are held back.
ACTIONS = st.lists(SAMPLES | st.integers(0, 1000), max_size=40)


def span(tensor: Tensor) -> tuple[int, int]:
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.itemsize


def run(memory: Memory, actions: list[Tensor | int]) -> list[Tensor]:
    places, held = memory.places(), list[Tensor]()
    for action in actions:
        if isinstance(action, Tensor):
            taken = places.take(action)
            assert (taken.shape, taken.stride(), taken.dtype) == (action.shape, action.stride(), action.dtype)
            held.append(taken)
        elif held:
            places.give(held.pop(action % len(held)))
        spans = sorted(span(tensor) for tensor in held if tensor.numel())
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    return held


@given(ACTIONS)
def test_what_is_held_does_not_overlap_and_the_same_program_needs_no_more(actions: list[Tensor | int]) -> None:
    memory = Memory()
    run(memory, actions)
    held, chunks = memory.nbytes, list(memory.chunks)
    run(memory, actions)
    assert memory.nbytes == held
    assert all(now is before for now, before in zip(memory.chunks, chunks, strict=True))


def test_what_is_given_back_is_one_place_again() -> None:
    memory = Memory()
    places = memory.places()
    parts = [places.take(torch.empty(4096)) for _ in range(4)]  # 64 KiB: one chunk
    for part in (parts[1], parts[3], parts[2], parts[0]):
        places.give(part)
    whole = places.take(torch.empty(4 * 4096))
    assert whole.data_ptr() == parts[0].data_ptr()
    assert memory.nbytes == 1 << 16
