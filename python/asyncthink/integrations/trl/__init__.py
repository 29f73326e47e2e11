"""TRL's AsyncGRPOTrainer: whole episodes as its rollouts, its weights into our engine or our server.

Nothing here imports TRL before :func:`.trainer.async_grpo_trainer` is called: worker and policies meet its protocols.
"""

from asyncthink.integrations.trl.attention import use_tree_attention
from asyncthink.integrations.trl.policy import LocalPolicy, Policy
from asyncthink.integrations.trl.samples import Sample, samples
from asyncthink.integrations.trl.server import ServerPolicy
from asyncthink.integrations.trl.trainer import async_grpo_trainer
from asyncthink.integrations.trl.worker import RolloutWorker

__all__ = [
    "LocalPolicy",
    "Policy",
    "RolloutWorker",
    "Sample",
    "ServerPolicy",
    "async_grpo_trainer",
    "samples",
    "use_tree_attention",
]
