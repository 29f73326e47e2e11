"""sample: what does not fit."""

from __future__ import annotations

import math

import pytest
import torch
from samples import build, on

from asyncthink_kernels import sample
from targets import Target


def test_a_vocabulary_that_is_too_large() -> None:
    with pytest.raises(ValueError, match=r"sample: logits must have V in \[1, 8388607\], got V=8388608"):
        sample(**build(torch.zeros(1, 1, dtype=torch.bfloat16).expand(1, 2**23).contiguous()))


@pytest.mark.parametrize("bad", ["NaN", "negative NaN", "inf", "all -inf"])
def test_logits_that_are_not_finite(bad: str, target: Target, dtype: torch.dtype) -> None:
    logits = torch.zeros(4, 600, dtype=dtype)
    logits[2, 599] = {"NaN": math.nan, "negative NaN": -math.nan, "inf": math.inf, "all -inf": 0.0}[bad]
    if bad == "all -inf":
        logits[2] = -math.inf
    if target.backend == "cuda" or target.device == "cuda":
        tokens, logprobs = on(target, build(logits))
        assert (tokens >= 0).tolist() == logprobs.isfinite().tolist() == [True, True, False, True]
        assert tokens[2] == -1 and logprobs[2].isnan()
    else:
        with pytest.raises(ValueError, match=r"logits\b.* finite.*, got maximum .* in row 2"):
            on(target, build(logits))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", math.nan), ("temperature", math.inf), ("top_k", -1), ("top_p", 0.0),
     ("top_p", 1.1), ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.5), ("min_p", math.nan)],
)  # fmt: skip
def test_values_out_of_range(name: str, value: float, target: Target) -> None:
    """Looked at everywhere under ASYNCTHINK_CHECK=1, which the tests set."""
    arguments = build(torch.zeros(3, 5))
    arguments[name][1] = value
    with pytest.raises(ValueError, match=rf"{name}\b.* got .*"):
        on(target, arguments)


METADATA = {
    "logits of one dimension": ("logits", lambda a: a["logits"][0]),
    "logits of float64": ("logits", lambda a: a["logits"].double()),
    "logits with a stride": ("logits", lambda a: a["logits"].repeat(1, 2)[:, ::2]),
    "logits of no token": ("logits", lambda a: a["logits"][:, :0]),
    "logits that require grad": ("logits", lambda a: a["logits"].clone().requires_grad_()),
    "seeds of another length": ("seeds", lambda a: a["seeds"][1:]),
    "agents of int32": ("agents", lambda a: a["agents"].int()),
    "positions elsewhere": ("positions", lambda a: a["positions"].to("meta")),
    "temperature of float64": ("temperature", lambda a: a["temperature"].double()),
    "top_k of int64": ("top_k", lambda a: a["top_k"].long()),
    "top_p with a stride": ("top_p", lambda a: a["top_p"].repeat_interleave(2)[::2]),
    "min_p of two dimensions": ("min_p", lambda a: a["min_p"][None]),
}


@pytest.mark.parametrize("name", METADATA)
def test_bad_metadata_names_the_tensor(name: str) -> None:
    culprit, change = METADATA[name]
    arguments = build(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=rf"sample: .*\b{culprit}\b.*, got "):
        sample(**arguments | {culprit: change(arguments)})
