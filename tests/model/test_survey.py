"""Every causal-LM type of the installed transformers is served with its own logits, or refused with a reason.

``python tests/model/test_survey.py`` writes the table of outcomes anew, for the transformers that is installed.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from survey_models import KINDS, NOT_BUILT, build, context, layer_patterns
from torch import Tensor, nn

from asyncthink.model.contract import BranchDecoder
from asyncthink.model.decoder import Decoder, DecoderError
from asyncthink.model.fallback import FallbackDecoder
from tiny_models import feed

TABLE = Path(__file__).with_name("model_survey.json")
TOLERANCE = 5e-5  # relative, float32; the largest seen is 1e-5

#: reason class -> what the error of both decoders says.
REASONS = {
    "both directions": "logits of a token depend on those behind it",
    "more than token ids": "cannot be called with token ids alone",
    "no cache of its own": "with its own cache than without",
}


def alone(model: nn.Module, tokens: Tensor) -> Tensor:
    """tokens [T] -> logits [T,V] of the model as its users call it."""
    with torch.no_grad():
        return model(input_ids=tokens[None]).logits[0].float()


def largest_difference(decoder: BranchDecoder) -> float:
    """Largest relative difference from the model's own logits: an organizer, a worker, its worker, another episode."""
    model, cache = decoder.model, decoder.cache
    if isinstance(decoder, Decoder):
        decoder.storage.poison()
        if decoder.states is not None:
            decoder.states.poison()
    trunk, own, worker, below = (context(model, count, seed) for seed, count in enumerate((24, 8, 12, 6)))
    root, other = cache.root(), cache.root()
    (first,) = feed(decoder, (root, trunk[:11]))
    second, episode = feed(decoder, (root, trunk[11:21]), (other, own))
    cache.snapshot(root)  # where recurrent layers have a state, it is kept for a fork that comes later
    (third,) = feed(decoder, (root, trunk[21:]))
    child = cache.fork(root, at=21)
    organizer, begun = feed(decoder, (root, own[:3]), (child, worker[:5]))
    cache.snapshot(child)
    (forked,) = feed(decoder, (child, worker[5:7]))
    grandchild = cache.fork(child, at=26)
    parts = [organizer], [begun, forked], []
    for i in range(5):
        work = (root, own[3 + i : 4 + i]), (child, worker[7 + i : 8 + i]), (grandchild, below[i : i + 1])
        for part, logits in zip(parts, feed(decoder, *work), strict=True):
            part.append(logits)
    (joined,) = feed(decoder, (root, worker))  # an exact join
    pairs = [
        (torch.cat([first, second, third, *parts[0], joined]), alone(model, torch.cat([trunk, own, worker]))),
        (episode, alone(model, own)),
        (torch.cat(parts[1]), alone(model, torch.cat([trunk[:21], worker]))[21:]),
        (torch.cat(parts[2]), alone(model, torch.cat([trunk[:21], worker[:5], below[:5]]))[26:]),
    ]
    return max(((got - own).norm(dim=-1) / own.norm(dim=-1)).max().item() for got, own in pairs)


def reason_class(refusal: str) -> str:
    classes = [name for name, says in REASONS.items() if says in refusal]
    assert len(classes) == 1, f"refused for a reason of no class: {refusal}"
    assert "\n" not in refusal
    return classes[0]


def movement(model: nn.Module) -> float:
    """Change of the last row of logits when the token three before it changes: it shows that attention matters."""
    tokens = context(model, 8, 9)
    other = tokens.clone()
    other[4] = tokens[3]
    before, after = alone(model, tokens)[-1], alone(model, other)[-1]
    return ((after - before).norm() / before.norm()).item()


def decoder_of(model: nn.Module) -> BranchDecoder:
    """The paged decoder, else the fallback; DecoderError of the latter where both refuse."""
    try:
        return Decoder(model, page_size=4, num_pages=120, chunk=8)
    except DecoderError:
        return FallbackDecoder(model, page_size=4, num_pages=1_000_000)


def outcome(kind: str, **changes: Any) -> dict[str, str]:
    """What happened to a type: it is served, or refused for a reason. Wrong logits and other errors are raised."""
    if kind in NOT_BUILT:
        return {"outcome": "not built"}
    try:
        decoder = decoder_of(build(kind, **changes))
    except DecoderError as refusal:
        return {"outcome": reason_class(str(refusal))}
    assert movement(decoder.model) > 200 * TOLERANCE
    error = largest_difference(decoder)
    assert error < TOLERANCE, f"{kind} is served with other logits: relative difference {error:.1e}"
    return {"outcome": "served", "decoder": name_of(decoder), "joins": " ".join(decoder.join_modes)} | copies(decoder)


def name_of(decoder: BranchDecoder) -> str:
    """``paged``; ``paged, states``, where a pass has a row for each agent; ``fallback``, with the way it is fed."""
    if isinstance(decoder, FallbackDecoder):
        return f"fallback, {decoder.feed}"
    return "paged" if decoder.states is None else "paged, states"


def copies(decoder: BranchDecoder) -> dict[str, str]:
    """What a fork copies."""
    if isinstance(decoder, FallbackDecoder):
        storage = decoder.storage
        kinds = ["tokens"] * (storage.bytes_per_token > 0) + ["state"] * (storage.state_bytes > 0)
        return {"copies": " and ".join(kinds) or "nothing"}
    return {"copies": "nothing" if decoder.states is None else "state"}


def summary(table: dict[str, dict[str, str]]) -> str:
    counts = Counter(row["outcome"] for row in table.values())
    decoders = Counter(row["decoder"] for row in table.values() if "decoder" in row)
    parts = [f"{count} {name}" for counter in (counts, decoders) for name, count in counter.most_common()]
    return f"{len(table)} types: " + ", ".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_served_with_its_own_logits_or_refused(kind: str) -> None:
    expected = json.loads(TABLE.read_text())
    got = outcome(kind)
    if expected["transformers"] == transformers.__version__:
        assert got == expected["types"][kind]


PATTERNS = [
    pytest.param(kind, changes, id=f"{kind}-{name}")
    for kind, found in json.loads(TABLE.read_text())["types"].items()
    if found.get("decoder") == "paged" and kind in KINDS
    for name, changes in layer_patterns(kind).items()
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes"), PATTERNS)
def test_layers_of_other_windows_too(kind: str, changes: dict[str, Any]) -> None:
    """Never wrong, whichever layers slide; all layers full is served where the type is."""
    got = outcome(kind, **changes)
    assert got["outcome"] == "served"
    assert got["decoder"] == "paged" or any(kind.startswith("sliding") for kind in changes["layer_types"])


def test_the_table_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    table = json.loads(TABLE.read_text())
    outcomes = {kind: row["outcome"] for kind, row in table["types"].items()}
    assert set(outcomes.values()) <= {"served", "not built", *REASONS}
    assert {kind for kind, result in outcomes.items() if result == "not built"} == NOT_BUILT.keys()
    if table["transformers"] == transformers.__version__:
        assert list(table["types"]) == sorted(KINDS)
    with capsys.disabled():
        print(f"\ntransformers {table['transformers']}, {summary(table['types'])}")


if __name__ == "__main__":
    table = {"transformers": transformers.__version__, "types": {kind: outcome(kind) for kind in sorted(KINDS)}}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    print(summary(table["types"]))
