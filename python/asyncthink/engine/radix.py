"""A radix tree of token sequences: finds the longest common head of a sequence and any that is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

Value = TypeVar("Value")
Tokens = tuple[int, ...]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens that two sequences of one type begin with alike.

    Slices are compared, the first ones short: sequences differ early or not at all, as a rule.

    >>> common((1, 2, 3), (1, 2, 4, 5)), common([], [1]), common((7,) * 100, (7,) * 90)
    (2, 0, 90)
    """
    shorter = min(len(a), len(b))
    known, width = 0, 16
    while known < shorter and a[known : known + width] == b[known : known + width]:
        known, width = min(known + width, shorter), 2 * width
    if known == shorter:
        return known
    last = min(known + width, shorter)  # the first difference is in [known, last), or there is none up to shorter
    while known < last:
        middle = (known + last + 1) // 2
        if a[known:middle] == b[known:middle]:
            known = middle
        else:
            last = middle - 1
    return known


class _Node(Generic[Value]):
    """The tokens of the edge that leads here; a leaf has a value and no children."""

    __slots__ = ("children", "edge", "parent", "value")

    def __init__(self, edge: Tokens, parent: _Node[Value] | None, value: Value | None = None) -> None:
        self.edge, self.parent, self.value = edge, parent, value
        self.children: dict[int, _Node[Value]] = {}  # by the first token of their edges


class RadixTree(Generic[Value]):
    """Values by token sequences, none of which is the head of another one.

    >>> tree = RadixTree()
    >>> tree.insert((1, 2, 3, 4), "a"), tree.insert((1, 2, 7), "b")
    ([], [])
    >>> tree.find((1, 2, 3, 9)), tree.find((8,)), len(tree)
    (('a', 3), (None, 0), 2)
    >>> tree.insert((1, 2, 7, 8), "c")              # (1, 2, 7) is a head of it
    ['b']
    """

    def __init__(self) -> None:
        self._root: _Node[Value] = _Node((), None)
        self._leaves: dict[Value, _Node[Value]] = {}

    def __len__(self) -> int:
        return len(self._leaves)

    def find(self, tokens: Tokens) -> tuple[Value | None, int]:
        """(value of a sequence, tokens that it has in common with ``tokens``), the most that any has; (None, 0)."""
        node, matched, fits = self._walk(tokens)
        length = matched + fits
        if not length:
            return None, 0
        while node.children:
            node = next(iter(node.children.values()))
        return node.value, length

    def insert(self, tokens: Tokens, value: Value) -> list[Value]:
        """Store a sequence under a value that is new here; returns the values that are not stored now.

        That is ``value`` itself if the sequence is a head of a stored one, or else the value of the stored sequence
        that is a head of this one, if there is one. Raises ValueError for no tokens.
        """
        if not tokens:
            raise ValueError("tokens: expected at least one, got none")
        node, matched, fits = self._walk(tokens)
        rest = tokens[matched + fits :]
        if not rest:
            return [value]
        if fits < len(node.edge):
            node = self._split(node, fits)
        replaced: list[Value] = []
        if node.value is not None:  # a leaf: its sequence is a head of the new one, so the leaf grows
            replaced.append(node.value)
            del self._leaves[node.value]
            node.edge, node.value = node.edge + rest, value
        else:
            node.children[rest[0]] = node = _Node(rest, node, value)
        self._leaves[value] = node
        return replaced

    def remove(self, value: Value) -> None:
        """Forget the sequence of a value. Raises KeyError where there is none."""
        node = self._leaves.pop(value)
        parent = node.parent
        assert parent is not None
        del parent.children[node.edge[0]]
        if len(parent.children) == 1 and parent.parent is not None:  # an inner node with one child is part of its edge
            (child,) = parent.children.values()
            child.edge, child.parent = parent.edge + child.edge, parent.parent
            parent.parent.children[child.edge[0]] = child

    def _walk(self, tokens: Tokens) -> tuple[_Node[Value], int, int]:
        """(the last node that is reached, tokens before its edge, tokens of its edge that fit)."""
        node, before, fits = self._root, 0, 0
        while fits == len(node.edge) and before + fits < len(tokens):
            child = node.children.get(tokens[before + fits])
            if child is None:
                break
            before += fits
            node, fits = child, common(child.edge, tokens[before : before + len(child.edge)])
        return node, before, fits

    def _split(self, node: _Node[Value], length: int) -> _Node[Value]:
        """A new node after the first ``length`` tokens of a node's edge, which keeps the rest."""
        assert node.parent is not None
        upper = _Node[Value](node.edge[:length], node.parent)
        node.parent.children[upper.edge[0]] = upper
        node.edge, node.parent = node.edge[length:], upper
        upper.children[node.edge[0]] = node
        return upper
