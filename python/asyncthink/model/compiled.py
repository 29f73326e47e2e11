"""The model as one compiled graph (``torch.compile``) for steps of all sizes: :class:`CompiledModel`.

Every size that differs from step to step is declared a symbol that nothing may ask about, so that torch compiles once,
and not again for one row, one item or no logits (its symbols are at least 2 otherwise), nor where two sizes are equal
by chance (it takes them for one symbol otherwise). Links add tables to attention: with them there is a second graph.

Letters: T rows, N rows whose logits are wanted, I items, E entries, P page ids, K shifts of a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from asyncthink.model.attention import Step

_PLAN = {"items": "I", "pages": "P", "entries": "E", "row_ptr": "T+1", "positions": "T", "shifts": "K"}


class CompiledModel:
    """Calls of ``model``, whole, through torch.compile: a graph break is an error (torch's, which says where).

    The model itself is left as it is. ``backend`` is that of torch.compile. The first step compiles.
    """

    def __init__(self, model: nn.Module, backend: str | Callable[..., Any]) -> None:
        def forward(**keywords: Any) -> Any:
            return model(**keywords)

        # torch counts graphs by code object, and more than 8 of one are an error: each decoder gets its own.
        own = FunctionType(forward.__code__.replace(), forward.__globals__, closure=forward.__closure__)
        self._forward = torch.compile(own, fullgraph=True, backend=backend)

    def __call__(self, step: Step, **keywords: Any) -> Any:
        """What the model returns: ``keywords`` are its own, among them input_ids, position_ids [1,T]."""
        for tensor, dim, letter in _sizes(step, keywords):
            torch._dynamo.decorators.mark_unbacked(tensor, dim, shape_id=letter)
        return self._forward(**keywords)


def _sizes(step: Step, keywords: dict[str, Any]) -> Iterator[tuple[Tensor, int, str]]:
    """Every tensor that the model and attention take, its dimension that changes, and the letter of that size."""
    yield keywords["input_ids"], 1, "T"
    yield keywords["position_ids"], 1, "T"
    if "logits_to_keep" in keywords:
        yield keywords["logits_to_keep"], 0, "N"
    yield step.plan.slots, 0, "T"
    for name, letter in _PLAN.items():
        yield getattr(step.plan, name), 0, letter
    for rotation in step.rotations:
        if rotation:
            yield rotation["cos"], 0, "K"
            yield rotation["sin"], 0, "K"
