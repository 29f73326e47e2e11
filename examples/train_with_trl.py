"""GRPO by TRL's AsyncGRPOTrainer, whose rollouts are an organizer and its workers. Minutes on two cores.

``pip install -e ".[train,trl]"``, then ``python examples/train_with_trl.py``. The model of the box is drawn from at
temperature 1, where a quarter of its episodes break the protocol; it learns not to, and to share out the work better.
Figures go to ``runs/trl/metrics.jsonl``, curves to ``runs/trl/curves.png``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trl.experimental.async_grpo import AsyncGRPOConfig

from asyncthink import ForkJoinSampler, SamplingParams, checkpoint_path
from asyncthink.integrations.trl import LocalPolicy, RolloutWorker, async_grpo_trainer
from asyncthink.tasks import TASKS
from asyncthink.tasks.rewards import RewardRule
from asyncthink.train.curve import plot_curves
from asyncthink.train.rollout import Grading


def main(steps: int = 60, out: str | Path = "runs/trl") -> list[dict[str, Any]]:
    model, task, folder = checkpoint_path("countdown"), TASKS["countdown"], Path(out)
    policy = LocalPolicy(ForkJoinSampler(model, pool=4, num_pages=4096))  # a thread with weights of its own
    worker = RolloutWorker(
        policy,
        [task],
        params=SamplingParams(temperature=1.0, max_tokens=300),
        grading=Grading(RewardRule(weight=0.2), scale="group"),  # what docs/trl.md has figures of
        group_size=8,
        groups=4,
        queue_size=128,
    )
    args = AsyncGRPOConfig(
        output_dir=str(folder),
        max_steps=steps,
        token_budget=8192,  # of a step's packed row
        learning_rate=3e-4,
        bf16=False,  # trainer and sampler compute in the same dtype
        gradient_checkpointing=False,
        gradient_accumulation_steps=1,
        save_strategy="no",
        report_to=[],
    )
    trainer = async_grpo_trainer(model, args, worker, policy)
    trainer.train()
    log = [{k.removeprefix("episode/"): v for k, v in line.items()} for line in trainer.state.log_history]
    log = [line for line in log if "reward" in line]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    plot_curves({"TRL": folder / "metrics.jsonl"}, folder / "curves.png", ("reward", "accuracy", "format_errors"))
    return log


if __name__ == "__main__":
    main()
