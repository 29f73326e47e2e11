"""Registers verl's agent loop "asyncthink" with its defaults.

``actor_rollout_ref.model.external_lib`` names this module; a file of agent loops names
:class:`asyncthink.integrations.verl_loop.AsyncThinkLoop` instead, with settings.
"""

from __future__ import annotations

from verl.experimental.agent_loop.agent_loop import register

from asyncthink.integrations.verl_loop import AsyncThinkLoop

register("asyncthink")(AsyncThinkLoop)
