"""Sampling parameters: how tokens are drawn, and when agents and episodes stop. Checked when they are made."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asyncthink.protocol.messages import check_text


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn, and when an agent or an episode must stop.

    Args:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches p; 1 keeps all.
        min_p: keep tokens at least ``min_p`` times as likely as the most likely one; 0 keeps all.
        max_tokens: tokens that one agent may draw.
        max_episode_tokens: tokens that all agents of an episode may draw together; None for no limit.
        stop: an agent that writes one of these strings ends there.
        seed: key of the random streams. The same seed gives the same episode whatever else is in the batch.
        timeout: seconds from an episode's admission to its forced end; None for no limit.

    Raises:
        ValueError: a value outside its range. temperature, top_p and min_p are checked as rounded to float32.

    Example:
        >>> SamplingParams(temperature=0.8, top_p=0.95, seed=7).with_seed(8).seed
        8
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 1024
    max_episode_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0
    timeout: float | None = None

    def __post_init__(self) -> None:
        _expect_number("temperature", self.temperature, ">= 0, finite", lambda t: 0 <= _single(t) < math.inf)
        _expect_number("top_k", self.top_k, "an integer >= 0 (0 keeps all)", lambda k: k >= 0, whole=True)
        _expect_number("top_p", self.top_p, "in (0, 1]", lambda p: 0 < _single(p) <= 1)
        _expect_number("min_p", self.min_p, "in [0, 1]", lambda p: 0 <= _single(p) <= 1)
        _expect_number("max_tokens", self.max_tokens, "an integer >= 1", lambda n: n >= 1, whole=True)
        if self.max_episode_tokens is not None:
            expected = "an integer >= 1 or None"
            _expect_number("max_episode_tokens", self.max_episode_tokens, expected, lambda n: n >= 1, whole=True)
        strings = isinstance(self.stop, tuple | list) and all(isinstance(text, str) and text for text in self.stop)
        _expect(strings, "stop", "a tuple of non-empty strings", self.stop)
        for number, text in enumerate(self.stop):
            check_text(f"stop[{number}]", text)
        _expect_number("seed", self.seed, "an integer in [0, 2**64)", lambda seed: 0 <= seed < 2**64, whole=True)
        if self.timeout is not None:
            _expect_number("timeout", self.timeout, "> 0 seconds or None", lambda seconds: seconds > 0)

    def with_seed(self, seed: int) -> SamplingParams:
        """These parameters with another seed."""
        return dataclasses.replace(self, seed=seed)


def _expect(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


def _expect_number(
    name: str, value: object, expected: str, fits: Callable[[Any], bool], *, whole: bool = False
) -> None:
    kinds = numbers.Integral if whole else numbers.Real
    _expect(isinstance(value, kinds) and not isinstance(value, bool) and fits(value), name, expected, value)


def _single(value: float) -> float:
    """Rounded to float32."""
    return ctypes.c_float(value).value
