"""GRPO in plain torch: roll out with the sampler, reward, and step on weights that sampler and loss share.

Run it with ``python examples/train_loop.py``. The trainer of ``asyncthink train grpo`` does the same with checkpoints,
several processes and LoRA.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncthink import ForkJoinSampler, PromptFormat, SamplingParams, checkpoint_path
from asyncthink.tasks import TASKS
from asyncthink.tasks.rewards import RewardRule
from asyncthink.train.logprobs import token_logprobs
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packing import IGNORED, pack
from asyncthink.train.rows import rows

STEPS, GROUP = 2, 4


def main() -> list[dict[str, float]]:
    path, task, reward_of = checkpoint_path("countdown"), TASKS["countdown"], RewardRule()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    use_packed_attention(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    sampler = ForkJoinSampler(model, tokenizer, prompts=PromptFormat.load(path))
    log = []
    for step in range(STEPS):
        puzzle = task.sample(seed=step)
        params = [SamplingParams(temperature=1.0, seed=GROUP * step + k) for k in range(GROUP)]
        episodes = sampler.generate([task.prompt(puzzle)] * GROUP, params)

        # An organizer and its workers are one unit: all their tokens carry the episode's advantage.
        rewards = torch.tensor([reward_of(task, puzzle, episode).total for episode in episodes])
        advantages = rewards - rewards.mean()
        traces = [(trace, a) for episode, a in zip(episodes, advantages, strict=True) for trace in episode.traces]
        drawn = [(logp, a) for t, a in traces for logp, own in zip(t.logprobs, t.sampled, strict=True) if own]
        old, advantage = torch.tensor(drawn).T

        batch = pack([rows(episode) for episode in episodes], batch_tokens=2**30)  # each prefix is computed once
        logp = token_logprobs(model, batch, temperature=1.0)[batch.labels[0] != IGNORED]
        ratio = (logp - old).exp()
        loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sampler.refresh()  # K/V of the old weights are stale
        log.append({"reward": float(rewards.mean()), "off_policy": float((logp - old).detach().abs().max())})
        print(f"step {step}: {log[-1]}")
    return log


if __name__ == "__main__":
    main()
