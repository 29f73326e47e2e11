"""verl's servers as the engine of an episode: token ids in and out, one answer a request. Imports nothing of verl."""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from asyncthink.engine.remote.transport import Ask, Chunk

_ABORTED = ("abort", "aborted")  # SGLang's word and vLLM's


class Servers(Protocol):
    """verl's ``LLMServerClient``, as far as a rollout needs it; the answer is its ``TokenOutput``."""

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **kwargs: Any
    ) -> Any: ...


@dataclass(slots=True)
class Usage:
    """What the servers told about the requests of one episode.

    ``preempted`` is -1 where no server counts, as in verl. ``versions`` are the versions of the weights that the
    requests were drawn from (verl's global steps).
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    preempted: int = -1
    versions: set[int] = field(default_factory=set)

    def add(self, prompt_tokens: int, output: Any) -> None:
        """Count a request with ``prompt_tokens`` tokens of prompt, and the TokenOutput that answered it."""
        self.requests += 1
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += output.extra_fields.get("num_cached_tokens") or 0
        if output.num_preempted is not None:
            self.preempted = max(self.preempted, 0) + output.num_preempted
        steps = (output.extra_fields.get(name) for name in ("min_global_steps", "max_global_steps"))
        self.versions |= {step for step in steps if step is not None}


class ServerTransport:
    """The requests of one episode to verl's servers (:class:`asyncthink.engine.remote.transport.Transport`).

    All of them have one ``request_id``, so verl sends them to one replica, whose prefix cache knows the context.

    Args:
        servers: verl's server manager.
        engine: ``rollout.name``, "vllm" or "sglang", whose words for stop strings are used.
        sampling: verl's sampling parameters of this rollout. Those of a request's own (temperature, top_k, top_p,
            min_p, max_tokens, stop) take their place; the others are passed on.
        deterministic: ``rollout.full_determinism``: requests have seeds made of the episode's, the agent and its
            position, and each has a name of its own, since vLLM is then given the name as it is.
        priority: passed on to vLLM's scheduler.

    Raises ValueError for another engine: how it would report the tokens of a stop string is not known.
    """

    streams = False

    def __init__(
        self,
        servers: Servers,
        engine: str,
        sampling: Mapping[str, Any],
        *,
        deterministic: bool = False,
        priority: int = 0,
    ) -> None:
        if engine not in ("vllm", "sglang"):
            raise ValueError(f"rollout.name: expected 'vllm' or 'sglang', whose stop strings are known, got {engine!r}")
        self.usage = Usage()
        self._servers, self._engine, self._sampling = servers, engine, dict(sampling)
        self._deterministic, self._priority = deterministic, priority

    async def draw(self, ask: Ask) -> AsyncGenerator[Chunk, None]:
        """One chunk with all tokens of the answer.

        Log-probabilities are NaN where verl does not ask for them (``rollout.calculate_log_probs``).

        Raises:
            ValueError: a guide's rule, which these servers are not given.
            RuntimeError: an answer that was aborted, is empty, or has another number of log-probabilities than tokens.
        """
        if ask.rule is not None:
            raise ValueError("guide: expected 'off' (verl's servers take no rules of what may be drawn)")
        name = f"{ask.session}-{ask.agent}-{ask.position}" if self._deterministic else ask.session
        output = await self._servers.generate(
            request_id=name,
            prompt_ids=list(ask.prompt),
            sampling_params=self._params(ask),
            priority=self._priority,
        )
        self.usage.add(len(ask.prompt), output)
        tokens = [int(token) for token in output.token_ids]
        if output.stop_reason in _ABORTED or not tokens:
            raise RuntimeError(f"expected drawn tokens from the server, got {len(tokens)} and {output.stop_reason!r}")
        logprobs = [math.nan] * len(tokens)
        if self._sampling.get("logprobs"):
            logprobs = list(map(float, output.log_probs or ()))
        if len(logprobs) != len(tokens):
            raise RuntimeError(f"expected {len(tokens)} log-probabilities from the server, got {len(logprobs)}")
        yield Chunk(tokens, logprobs)

    def _params(self, ask: Ask) -> dict[str, Any]:
        """A new dictionary for each request: the servers take things out of it."""
        params = self._sampling | {
            "temperature": ask.params.temperature,
            "top_k": ask.params.top_k or -1,
            "top_p": ask.params.top_p,
            "max_tokens": ask.max_tokens,
            "stop": list(ask.stop),
        }
        if ask.params.min_p:
            params["min_p"] = ask.params.min_p
        vllm = self._engine == "vllm"
        if self._deterministic:
            params["seed" if vllm else "sampling_seed"] = request_seed(ask.params.seed, ask.agent, ask.position)
        # Neither may cut the stop string off: its tokens were drawn.
        return params | {"include_stop_str_in_output" if vllm else "no_stop_trim": True}


def request_seed(seed: int, agent: int, position: int) -> int:
    """The seed in [0, 2**63) of a request for what ``agent`` draws from its token number ``position`` on.

    >>> request_seed(1, 0, 0) == request_seed(1, 0, 0) != request_seed(1, 1, 0)
    True
    """
    digest = hashlib.blake2b(f"{seed} {agent} {position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
