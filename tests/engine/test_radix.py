"""The radix tree of token sequences, against a plain dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from asyncthink.engine.radix import RadixTree, common

#: Few tokens, so that sequences often begin alike; long runs of one token cross the widths that are compared at once.
SEQUENCES = st.lists(st.integers(0, 2) | st.just(0), max_size=8).map(tuple) | st.builds(
    lambda n, rest: (0,) * n + tuple(rest), st.integers(0, 120), st.lists(st.integers(0, 1), max_size=3)
)


def plainly(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@given(SEQUENCES, SEQUENCES)
def test_common_length(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert common(a, b) == common(b, a) == plainly(a, b)
    assert common(list(a), list(b)) == plainly(a, b)


class Tree(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree: RadixTree[int] = RadixTree()
        self.stored: dict[int, tuple[int, ...]] = {}
        self.next = 1

    @rule(tokens=SEQUENCES.filter(bool))
    def insert(self, tokens: tuple[int, ...]) -> None:
        number, self.next = self.next, self.next + 1
        covered = any(other[: len(tokens)] == tokens for other in self.stored.values())
        heads = [value for value, other in self.stored.items() if tokens[: len(other)] == other]
        assert self.tree.insert(tokens, number) == ([number] if covered else heads)
        if not covered:
            for value in heads:
                del self.stored[value]
            self.stored[number] = tokens

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.stored:
            value = data.draw(st.sampled_from(sorted(self.stored)))
            self.tree.remove(value)
            del self.stored[value]

    @rule(tokens=SEQUENCES)
    def find(self, tokens: tuple[int, ...]) -> None:
        value, length = self.tree.find(tokens)
        assert length == max((plainly(other, tokens) for other in self.stored.values()), default=0)
        assert value is None if not length else plainly(self.stored[value], tokens) == length

    @invariant()
    def holds_what_was_stored(self) -> None:
        assert len(self.tree) == len(self.stored)
        for value, tokens in self.stored.items():
            assert self.tree.find(tokens) == (value, len(tokens))


TestTree = Tree.TestCase
TestTree.settings = settings(max_examples=40, deadline=None)


def test_refusals() -> None:
    tree: RadixTree[str] = RadixTree()
    with pytest.raises(ValueError, match="tokens: expected at least one, got none"):
        tree.insert((), "a")
    with pytest.raises(KeyError):
        tree.remove("a")
