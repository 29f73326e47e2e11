"""Steps of a model with recurrent layers: one row an agent, one pass for all agents with as many new tokens.

Letters: T rows (tokens) of a step, N rows whose logits are wanted, B rows of a pass, n tokens of each, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asyncthink.model.attention import PagedAttention
from asyncthink.model.checks import one_line, probe_tokens
from asyncthink.model.hook import DecoderError, HookedModel
from asyncthink.model.layers import Layers
from asyncthink.model.recorded_rows import RecordedRows, RowStep
from asyncthink.model.recurrent import StateLayout, StateStorage
from asyncthink.model.tolerance import TOLERANCE
from asyncthink_kernels.cache import Branch, KVStorage, RowPass, StatefulCache, StatefulPlan


class RowPasses:
    """Runs the passes of a :class:`StatefulPlan`: attention on the paged cache, states from their slots.

    ``recorded`` serves passes of one new token a row, where it is given.
    """

    def __init__(
        self,
        hooked: HookedModel,
        attention: PagedAttention,
        states: StateStorage,
        recorded: RecordedRows | None = None,
    ) -> None:
        self.hooked, self.attention, self.states, self.recorded = hooked, attention, states, recorded

    def forward(self, tokens: Tensor, plan: StatefulPlan, rows: Tensor) -> Tensor:
        """tokens [T], rows [N] int64 on the CPU -> logits [N,V]. States and K/V of the tokens are written."""
        with torch.inference_mode():
            self.states.copy(plan.copies)
            if len(plan.passes) == 1:
                return self._pass(tokens, plan.passes[0], rows)
            wanted: Tensor | None = None
            for each in plan.passes:
                hit = torch.isin(rows, each.rows)
                logits = self._pass(tokens, each, rows[hit])
                if wanted is None:
                    wanted = logits.new_empty(len(rows), logits.shape[-1])
                wanted[hit.to(wanted.device)] = logits
            assert wanted is not None
            return wanted

    def _pass(self, tokens: Tensor, one: RowPass, rows: Tensor) -> Tensor:
        """One pass -> the logits [*,V] of those of its rows that are wanted."""
        n = one.rows.shape[1]
        places = one.rows.flatten()
        step = self.attention.step_of(RowStep, one.plan, tokens[places])
        step.slots = one.slots
        where = (places[:, None] == rows).int().argmax(dim=0)  # of each wanted row among those of the pass
        columns = torch.unique(where % n) if len(rows) and n > 1 else torch.tensor([n - 1], device="cpu")
        if n == 1 and not one.fresh and self.recorded is not None and self.recorded.takes(step):
            logits = self.recorded.step(step, columns, self._run)
        else:
            logits = self._run(step, columns, fresh=one.fresh)
        among = torch.searchsorted(columns, where % n)
        return logits[(where // n).to(logits.device), among.to(logits.device)]

    def refresh(self, weights_only: bool) -> None:
        """The model changed: forget recorded passes; with ``weights_only``, where nothing but weights did, none."""
        if self.recorded is not None and not weights_only:
            self.recorded.clear()

    def _run(self, step: RowStep, columns: Tensor, *, fresh: bool = False) -> Tensor:
        """One pass by the model itself -> logits [B,m,V] of columns [m]."""
        B = len(step.slots)
        cache, _ = self.states.lend(step.slots, fresh=fresh)
        logits = self.hooked.run_rows(
            step, cache, step.tokens.view(B, -1), step.positions.view(B, -1), columns.to(step.tokens.device)
        )
        if step.calls != len(self.attention.layers):
            raise RuntimeError(
                f"expected {len(self.attention.layers)} attention calls, got {step.calls}: "
                "the model was changed, or used by another thread, during the step"
            )
        self.states.take_back(cache, step.slots)
        return logits


def check_row_fork(hooked: HookedModel, layers: Layers, layout: StateLayout, kind: str, page_size: int) -> bool:
    """DecoderError unless forked rows get the logits of the model called with their token ids alone.

    In a small cache of its own, poisoned with NaN: a fork at the end and one at a snapshot, siblings that step together
    and with different numbers of tokens, a new branch beside them, and an exact join. Returns whether the model
    continues a state by single tokens only; some types compute several as if nothing came before them.
    """
    a, b, c, d, e, f, g, h, last = probe_tokens(hooked.model, 9)
    contexts = [[a, b, c, d, e, last, g, h, last], [a, b, c, g, h, d, f, last], [a, b, d, c, last], [e, last]]
    device = next(hooked.model.parameters()).device
    try:
        alone = [hooked.call(torch.tensor(tokens, device=device), "eager").float() for tokens in contexts]
    except Exception as error:
        raise DecoderError(f"{kind} cannot run its own eager attention to compare with: {one_line(error)}") from error
    if not all(logits.isfinite().all() for logits in alone):
        raise DecoderError(f"{kind} gives logits that are not finite when it is called with token ids alone")
    limit = TOLERANCE[next(hooked.model.parameters()).dtype]
    why = ""
    for by_token in (False, True):
        try:
            got = _forked(hooked, layers, layout, page_size, contexts, by_token=by_token)
        except Exception as error:
            why = f"cannot run forked rows on its cache: {one_line(error)}"
            continue
        expected = torch.cat([logits[-len(part) :] for logits, part in zip(alone, got, strict=True)])
        worst = ((torch.cat(got) - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()
        if worst <= limit:
            return by_token
        why = (
            "gives other logits for rows that continue a state than for each context alone "
            f"(relative difference {worst:.1e}, expected at most {limit:.1e}): it keeps something that is not in its "
            "cache, or its attention or its positions work in a way that is not known here"
        )
    raise DecoderError(f"{kind} has recurrent layers and {why}")


def _forked(
    hooked: HookedModel,
    layers: Layers,
    layout: StateLayout,
    page_size: int,
    contexts: list[list[int]],
    *,
    by_token: bool,
) -> list[Tensor]:
    """The logits of the last tokens of each context, those that its branch computed itself."""
    device = next(hooked.model.parameters()).device
    pages = sum(-(-len(tokens) // page_size) + 1 for tokens in contexts)
    cache = StatefulCache(pages, page_size, page_size, num_states=6, by_token=by_token)
    storage = KVStorage(layers.shapes, pages, page_size, layers.dtype, device)
    states = StateStorage(layout, cache.num_states, device)
    storage.poison()
    states.poison()
    passes = RowPasses(hooked, PagedAttention([call.module for call in layers.calls], storage, None), states)
    logits: list[list[Tensor]] = [[] for _ in contexts]

    def step(*work: tuple[int, Branch, int]) -> None:
        plan = cache.plan([(branch, count) for _, branch, count in work])
        begins = [int(branch.length) - count for _, branch, count in work]
        new = [contexts[i][begin : begin + count] for (i, _, count), begin in zip(work, begins, strict=True)]
        tokens = torch.tensor([token for part in new for token in part], device="cpu")
        parts = passes.forward(tokens, plan, torch.arange(len(tokens), device="cpu")).float()
        cache.commit(plan)
        for (i, _, _), part in zip(work, torch.split(parts, [count for _, _, count in work]), strict=True):
            logits[i].append(part)

    root, other = cache.root(), cache.root()
    step((0, root, 2))
    cache.snapshot(root)
    step((0, root, 1))
    child = cache.fork(root)
    step((0, root, 2), (1, child, 4), (3, other, 1))
    late = cache.fork(root, at=2)
    step((2, late, 1), (0, root, 1), (1, child, 1), (3, other, 1))
    step((2, late, 2), (0, root, 3))  # root: as behind an exact join
    return [torch.cat(parts) for parts in logits]
