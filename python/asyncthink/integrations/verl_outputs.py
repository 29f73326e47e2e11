"""An episode as what verl wants of an agent loop, without verl: rows, figures, a reward by one of our tasks."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from asyncthink.episode.records import Episode
from asyncthink.integrations.agent_rows import AgentRow, agent_rows
from asyncthink.integrations.verl_transport import Usage
from asyncthink.tasks import task
from asyncthink.tasks.rewards import Reward, RewardRule

#: The entry of a data row's ``extra_info`` that names a puzzle: {"task": ..., "seed": ..., "held_out": ...}.
PUZZLE = "asyncthink"


def reward_of(rule: RewardRule, puzzle: Mapping[str, Any], episode: Episode) -> Reward:
    """The reward of an episode for the puzzle that a data row names. Raises ValueError as ``task`` and ``rule`` do."""
    known = task(puzzle["task"])
    return rule(known, _sample(puzzle["task"], int(puzzle["seed"]), bool(puzzle["held_out"])), episode)


@functools.lru_cache(maxsize=4096)
def _sample(name: str, seed: int, held_out: bool) -> Any:
    """The puzzle, made once for all rollouts of it."""
    return task(name).sample(seed, held_out)


def figures(episode: Episode, usage: Usage) -> dict[str, float]:
    """Numbers of an episode, as validation averages them. ``cached`` is the share of the prompts found computed."""
    return {
        "answered": float(episode.answer is not None),
        "format_errors": float(len(episode.format_errors)),
        "forks": float(episode.forks),
        "joins": float(episode.joins),
        "total_tokens": float(episode.total_tokens),
        "critical_path_tokens": float(episode.critical_path_tokens),
        "concurrency": episode.concurrency,
        "requests": float(usage.requests),
        "cached": usage.cached_tokens / usage.prompt_tokens if usage.prompt_tokens else 0.0,
    }


def outputs(
    episode: Episode, usage: Usage, reward: Reward | None = None, *, logprobs: bool = True, graded_in: float = 0.0
) -> list[dict[str, Any]]:
    """The fields of one ``AgentLoopOutput`` an agent, the organizer's last; none if no agent drew a token.

    No prompt is longer than the organizer's: what else a worker saw stands in its response, with mask 0. verl's reward
    managers find the end of the organizer's response by widths that all rows share, and would cut it off otherwise.

    verl spreads the last one's score and advantage over all. Seconds and preemptions of the episode stand in the last
    one alone, so that sums count them once. ``extra_fields["asyncthink"]`` tells a reward function of verl's (as
    ``extra_info["asyncthink"]``) the answer, the figures, how the episode ended and its format errors.

    Args:
        episode: the record.
        usage: of its requests.
        reward: by one of our tasks; None: verl computes one.
        logprobs: whether the servers gave log-probabilities.
        graded_in: seconds that the reward took.
    """
    numbers = figures(episode, usage)
    rows = agent_rows(episode)
    widest = len(rows[-1].prompt) if rows else 0
    about = {"answer": episode.answer, "finish": episode.finish, "errors": list(episode.format_errors), **numbers}
    return [
        {
            "prompt_ids": row.prompt[:widest],
            "response_ids": row.prompt[widest:] + row.response,
            "response_mask": [0] * len(row.prompt[widest:]) + row.mask,
            "response_logprobs": [0.0] * len(row.prompt[widest:]) + row.logprobs if logprobs else None,
            "reward_score": None if reward is None else reward.total,
            "num_turns": _turns(episode, row),
            "metrics": _metrics(episode, usage, graded_in) if row.agent == 0 else {},
            "extra_fields": {
                "turn_scores": [],
                "tool_rewards": [],
                "min_global_steps": min(usage.versions, default=None),
                "max_global_steps": max(usage.versions, default=None),
                "asyncthink": about | {"agent": row.agent, "role": row.role},
            }
            | ({} if reward is None else {"reward_extra_info": _terms(reward) | numbers}),
        }
        for row in rows
    ]


def _turns(episode: Episode, row: AgentRow) -> int:
    """As verl counts: the prompt, what the agent says, and for each join what it is told and says behind it."""
    return 2 + 2 * len(episode.traces[row.agent].joins)


def _metrics(episode: Episode, usage: Usage, graded_in: float) -> dict[str, Any]:
    return {
        "generate_sequences": episode.wall_seconds,
        "compute_score": graded_in,
        "num_preempted": usage.preempted,
    }


def _terms(reward: Reward) -> dict[str, float]:
    """``acc`` is the name under which verl's validation looks for the accuracy."""
    return {"acc": reward.accuracy, "eta": reward.eta, "broken": float(reward.broken), "score": reward.total}
