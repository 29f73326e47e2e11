"""An AsyncGRPOTrainer whose rollouts are episodes of an organizer and its workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from asyncthink.integrations.trl.attention import use_tree_attention
from asyncthink.integrations.trl.worker import RolloutWorker


def async_grpo_trainer(
    model: str | Path, args: Any, worker: RolloutWorker, weight_transfer: Any, **options: Any
) -> Any:
    """TRL's trainer of the model in a folder or on the hub; ``train()`` runs it.

    On a GPU it keeps TRL's attention (FlashAttention 3); elsewhere it gets ours (:func:`.use_tree_attention`).

    Args:
        args: TRL's ``AsyncGRPOConfig``. ``max_steps`` and ``token_budget`` must be set, ``temperature`` be that of
            ``worker.params``. What concerns generation is the worker's own.
        worker: draws and grades the episodes.
        weight_transfer: what it draws them with (:class:`.policy.LocalPolicy`, :class:`.server.ServerPolicy`).
        options: more arguments of ``AsyncGRPOTrainer``: ``callbacks``, ``optimizers``, ``peft_config``.

    Raises:
        ImportError: TRL is not installed (extra ``[trl]``).
        ValueError: ``args`` that do not fit.

    >>> policy = LocalPolicy(ForkJoinSampler("path/to/checkpoint"))                               # doctest: +SKIP
    >>> worker = RolloutWorker(policy, [TASKS["countdown"]])                                      # doctest: +SKIP
    >>> args = AsyncGRPOConfig("runs/trl", max_steps=100, token_budget=8192, bf16=False)          # doctest: +SKIP
    >>> async_grpo_trainer("path/to/checkpoint", args, worker, policy).train()                    # doctest: +SKIP
    """
    from datasets import Dataset
    from trl.experimental.async_grpo import AsyncGRPOTrainer

    if args.temperature != worker.params.temperature:
        raise ValueError(f"temperature: expected the worker's {worker.params.temperature}, got {args.temperature}")
    if args.max_steps < 1:
        raise ValueError(f"max_steps: expected at least 1 (questions have no end), got {args.max_steps}")
    if args.token_budget is None:
        raise ValueError("token_budget: expected the tokens of a packed row, got None (TRL would ask a vLLM server)")
    unread = Dataset.from_dict({"prompt": [""]})  # TRL asks for a data set; questions are the worker's
    given = {"train_dataset": unread, "rollout_worker": worker, "weight_transfer": weight_transfer, **options}
    with _without_a_gpu():
        trainer = AsyncGRPOTrainer(str(model), args=args, **given)
    if trainer.accelerator.device.type != "cuda":
        use_tree_attention(trainer.model)
    return trainer


@contextmanager
def _without_a_gpu() -> Iterator[None]:
    """While TRL makes its trainer where there is no GPU, the peak of the device is unknown, in place of an error.

    TRL 1.16 asks ``torch.cuda`` for the name of the device, whatever it is, to report the share of its peak (MFU); no
    option turns that off. With None, which it takes of a GPU that it does not know, it leaves this figure out. Its
    function is replaced for that long alone, and never where there is a GPU.
    """
    if torch.cuda.is_available():
        yield
        return
    import trl.experimental.async_grpo.async_grpo_trainer as module

    peak = module.get_peak_flops_per_device
    module.get_peak_flops_per_device = lambda *_: None
    try:
        yield
    finally:
        module.get_peak_flops_per_device = peak
