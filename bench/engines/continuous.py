"""transformers' continuous batching: requests behind one prefix, whose blocks it finds again by their hash.

It cannot be stepped, so its own time stamps are read: a step is the time between two tokens of a request while all
requests decode. It runs in a thread of its own and draws greedily.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

PAGE = 256  # tokens; its default
WAIT = 300.0  # seconds for a request


class Continuous:
    """A manager that has computed the prefix once."""

    def __init__(self, manager: Any, prefix: Sequence[int]) -> None:
        self._manager, self._prefix = manager, list(prefix)
        self._run(1, 2)

    def steps(self, branches: int, new: int) -> tuple[list[float], list[list[int]]]:
        """Seconds of the steps in which all branches decode, and each branch's tokens; branch k begins with token k."""
        results = self._run(branches, new)
        begin, end = max(r.timestamps[0] for r in results), min(r.timestamps[-1] for r in results)
        stamps = [[t for t in r.timestamps if begin <= t <= end] for r in results]
        found = [after - before for each in stamps for before, after in itertools.pairwise(each)]
        order = sorted(results, key=lambda r: r.prompt_ids[-1])
        return found, [r.generated_tokens for r in order]

    def _run(self, branches: int, new: int) -> list[Any]:
        inputs = [[*self._prefix, k] for k in range(branches)]
        ids = self._manager.add_requests(inputs, max_new_tokens=new, record_timestamps=True)
        results = [self._manager.get_result(timeout=WAIT) for _ in ids]
        for result in results:
            if result is None or result.error is not None:
                raise RuntimeError(f"continuous batching: {'no result' if result is None else result.error}")
        return results


@contextmanager
def served(model: PreTrainedModel, prefix: Sequence[int], most: int) -> Iterator[Continuous]:
    """Continuous batching with room for ``most`` branches; afterwards the model has its own attention again."""
    before = model.config._attn_implementation
    blocks = (most + 1) * (len(prefix) // PAGE + 2)  # requests that begin together share nothing yet
    batching = ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=1024, page_size=PAGE, use_cuda_graph=False)
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=2)
    try:
        with model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=batching, warmup=False
        ) as manager:
            yield Continuous(manager, prefix)
    finally:
        model.set_attn_implementation(before)
