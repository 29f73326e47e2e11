"""verl's agent loop "asyncthink": an episode on verl's rollout servers, one row an agent, the organizer's last.

It runs on protocol, episode, tasks and :mod:`asyncthink.engine.remote` alone, because verl pins another transformers
than the rest of the package needs. docs/verl.md says how to configure a run.

Importing this module registers nothing: verl imports what a file of agent loops names when the first rollout begins,
and a name that is registered then takes the place of the file's entry, with its settings.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.utils.fs import copy_to_local
from verl.utils.model import get_generation_config

from asyncthink.engine.prompting import encode_template, texts_for
from asyncthink.engine.remote.driver import Driver, Order
from asyncthink.engine.remote.tokenizer import model_folder
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.modes import opening
from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.integrations.verl_outputs import PUZZLE, outputs, reward_of
from asyncthink.integrations.verl_transport import ServerTransport
from asyncthink.protocol.chat import prompts_for
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.messages import turns
from asyncthink.protocol.prompts import PromptFormat
from asyncthink.tasks.rewards import Reward, RewardRule


class AsyncThinkLoop(AgentLoopBase):  # type: ignore[misc]  # verl is not installed where types are checked
    """One episode a rollout (AsyncThink, arXiv 2510.26658): organizer and workers on one replica of verl's servers.

    Args:
        mode, pool, context, depth: see :class:`asyncthink.episode.options.Options`; joins are exact, and the model is
            free to write what it will (no guide), as reinforcement learning needs it.
        max_tokens: tokens that one agent may draw; None: ``rollout.response_length``.
        max_episode_tokens: tokens that all agents may draw together; None: no limit.
        timeout: seconds of an episode; None: no limit.
        reward: arguments of :class:`asyncthink.tasks.rewards.RewardRule`, for data rows that name a puzzle of ours.
        name: the loop's name in a configuration file.
        args, kwargs: what verl gives to every agent loop.

    A context ends at ``rollout.max_model_len``, or at ``prompt_length + response_length`` tokens if that is less.

    Raises ValueError for a configuration under which an episode cannot run.
    """

    def __init__(
        self,
        *args: Any,
        name: str = "asyncthink",
        mode: str = "asyncthink",
        pool: int = 4,
        context: str = "shared",
        depth: int = 1,
        max_tokens: int | None = None,
        max_episode_tokens: int | None = None,
        timeout: float | None = None,
        reward: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._check()
        self.options = Options(mode, pool, context, depth=depth)
        self.rule = RewardRule(**(reward or {}))
        rollout = self.rollout_config
        longest = rollout.prompt_length + rollout.response_length
        self.max_length = min(longest, rollout.get("max_model_len") or longest)
        self.limits: dict[str, Any] = {
            "max_tokens": max_tokens or rollout.response_length,
            "max_episode_tokens": max_episode_tokens,
            "timeout": timeout,
        }
        self.codec, self.prompts = _texts(self.tokenizer, self.config.actor_rollout_ref.model.path)

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **row: Any) -> list[AgentLoopOutput]:
        """Run the episode of a data row. verl counts what this raises as a failed rollout.

        Args:
            sampling_params: verl's, of this rollout.
            priority: for vLLM's scheduler.
            row: ``raw_prompt``, the conversation that asks; ``extra_info["asyncthink"]``, where a puzzle of ours is
                asked, which then gives the reward; ``index``, ``session_id`` and ``global_steps`` key its seed.

        Raises:
            ValueError: a prompt that leaves no room for a token.
            RuntimeError: an aborted answer, and what the servers raise.
        """
        question = [dict(message) for message in row["raw_prompt"]]
        prompt = encode_template(self.codec, self.prompts, opening(self.options), question=question)
        if len(prompt) >= self.max_length:
            raise ValueError(f"raw_prompt: expected fewer than {self.max_length} tokens, got {len(prompt)}")
        rollout = self.rollout_config
        transport = ServerTransport(
            self.server_manager,
            rollout.name,
            sampling_params,
            deterministic=bool(rollout.get("full_determinism", False)),
            priority=int(priority),
        )
        core = EpisodeCore(
            turns(question)[-1][1],
            prompt,
            self._params(sampling_params, row),
            self.options,
            texts_for(self.codec, self.prompts),
            max_length=self.max_length,
        )
        episode = await Driver(core, transport, order=Order.ARRIVAL).run()
        begun = time.perf_counter()
        reward = await self._reward(row, episode)
        seconds = time.perf_counter() - begun
        given = bool(sampling_params.get("logprobs"))
        fields = outputs(episode, transport.usage, reward, logprobs=given, graded_in=seconds)
        return [AgentLoopOutput(**own | {"metrics": AgentLoopMetrics(**own["metrics"])}) for own in fields]

    def _params(self, sampling: Mapping[str, Any], row: Mapping[str, Any]) -> SamplingParams:
        """verl's parameters in our words: its ``top_k`` is -1 where all tokens are kept."""
        seed = [self.rollout_config.get("seed", 0), *(row.get(key) for key in ("global_steps", "index", "session_id"))]
        return SamplingParams(
            temperature=float(sampling.get("temperature", 1.0)),
            top_k=max(int(sampling.get("top_k", -1)), 0),
            top_p=float(sampling.get("top_p", 1.0)),
            min_p=float(sampling.get("min_p", 0.0)),
            seed=int.from_bytes(hashlib.blake2b(repr(list(map(str, seed))).encode(), digest_size=8).digest()),
            **self.limits,
        )

    async def _reward(self, row: Mapping[str, Any], episode: Episode) -> Reward | None:
        """By the task whose puzzle the row names; None: verl's reward path grades."""
        puzzle = (row.get("extra_info") or {}).get(PUZZLE)
        if puzzle is None:
            return None
        grading = asyncio.get_running_loop().run_in_executor(_grader(), reward_of, self.rule, dict(puzzle), episode)
        return await grading

    def _check(self) -> None:
        rollout, wanted = self.rollout_config, "expected {}, got {}"
        if not self.config.get("trainer", {}).get("use_v1", True):
            why = "true (an episode is several rows, and the older trainer takes one a rollout)"
            raise ValueError(f"trainer.use_v1: {wanted.format(why, False)}")
        if rollout.name == "sglang" and rollout.get("skip_tokenizer_init", True):
            why = "false (SGLang finds stop strings by its tokenizer)"
            raise ValueError(f"rollout.skip_tokenizer_init: {wanted.format(why, True)}")
        if rollout.get("enable_rollout_routing_replay", False):
            why = "false (routing is not recorded through forks and joins)"
            raise ValueError(f"rollout.enable_rollout_routing_replay: {wanted.format(why, True)}")
        if self.apply_chat_template_kwargs:
            why = "none (the prompts of agents are made with the chat template as it is, its thinking switched off)"
            got = dict(self.apply_chat_template_kwargs)
            raise ValueError(f"data.apply_chat_template_kwargs: {wanted.format(why, got)}")


@functools.lru_cache(maxsize=4)
def _texts(tokenizer: Any, path: str) -> tuple[Codec, PromptFormat]:
    """Codec and templates, once for all rollouts of a process: verl makes an agent loop for each of them."""
    model = copy_to_local(path)  # a folder, or a hub id as it is
    ends = getattr(get_generation_config(model), "eos_token_id", None)
    stop_ids = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return Codec(tokenizer, stop_ids), prompts_for(tokenizer, PromptFormat.find(model_folder(model)))


@functools.cache
def _grader() -> ProcessPoolExecutor:
    """A process that grades: it keeps the event loop free, and time limits need a main thread."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
