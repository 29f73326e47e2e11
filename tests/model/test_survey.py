"""Every causal-LM type of the installed transformers is served with its own logits, or refused with a reason.

``python tests/model/test_survey.py`` writes the table of outcomes anew, for the transformers that is installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from survey_models import KINDS, NOT_BUILT, build, context, layer_patterns
from torch import Tensor, nn

from asyncthink.model.decoder import Decoder, DecoderError
from tiny_models import feed

TABLE = Path(__file__).with_name("model_survey.json")
TOLERANCE = 5e-5  # relative, float32; the largest seen is 1e-5

#: reason class -> what its error says.
REASONS = {
    "recurrent layers": "has recurrent layers",
    "other layers": "has layers that are neither full nor sliding attention",
    "own attention": "ignores the attention implementation it is given",
    "positions counted by itself": "it ignores position_ids",
    "both directions": "its attention looks in both directions",
    "own mask": "brings its own mask",
    "own window": "without telling its attention",
    "other calls than one a layer": "must call attention exactly once in each of its",
    "more than token ids": "cannot be called with token ids alone",
}


def alone(model: nn.Module, tokens: Tensor) -> Tensor:
    """tokens [T] -> logits [T,V] of the model as its users call it."""
    with torch.no_grad():
        return model(input_ids=tokens[None]).logits[0].float()


def largest_difference(decoder: Decoder) -> float:
    """Largest relative difference from the model's own logits: an organizer, a worker, its worker, another episode."""
    model, cache = decoder.model, decoder.cache
    decoder.storage.poison()
    trunk, own, worker, below = (context(model, count, seed) for seed, count in enumerate((24, 8, 12, 6)))
    root, other = cache.root(), cache.root()
    (first,) = feed(decoder, (root, trunk[:11]))
    second, episode = feed(decoder, (root, trunk[11:]), (other, own))
    child = cache.fork(root, at=21)
    organizer, forked = feed(decoder, (root, own[:3]), (child, worker[:7]))
    grandchild = cache.fork(child, at=26)
    parts = [organizer], [forked], []
    for i in range(5):
        work = (root, own[3 + i : 4 + i]), (child, worker[7 + i : 8 + i]), (grandchild, below[i : i + 1])
        for part, logits in zip(parts, feed(decoder, *work), strict=True):
            part.append(logits)
    (joined,) = feed(decoder, (root, worker))  # an exact join
    pairs = [
        (torch.cat([first, second, *parts[0], joined]), alone(model, torch.cat([trunk, own, worker]))),
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


def outcome(kind: str, **changes: Any) -> str:
    """``served``, or the class of the reason for refusal. Wrong logits and other errors are raised."""
    if kind in NOT_BUILT:
        return "not built"
    try:
        decoder = Decoder(build(kind, **changes), page_size=4, num_pages=120, chunk=8)
    except DecoderError as refusal:
        return reason_class(str(refusal))
    assert movement(decoder.model) > 200 * TOLERANCE
    error = largest_difference(decoder)
    assert error < TOLERANCE, f"{kind} is served with other logits: relative difference {error:.1e}"
    return "served"


def summary(table: dict[str, str]) -> str:
    counts = {name: list(table.values()).count(name) for name in ("served", *REASONS, "not built")}
    return f"{len(table)} types: " + ", ".join(f"{count} {name}" for name, count in counts.items())


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
    if found == "served" and kind in KINDS
    for name, changes in layer_patterns(kind).items()
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes"), PATTERNS)
def test_layers_of_other_windows_too(kind: str, changes: dict[str, Any]) -> None:
    """Never wrong, whichever layers slide; all layers full is served where the type is."""
    got = outcome(kind, **changes)
    assert got == "served" or any(kind.startswith("sliding") for kind in changes["layer_types"])


def test_the_table_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    table = json.loads(TABLE.read_text())
    assert set(table["types"].values()) <= {"served", "not built", *REASONS}
    assert {kind for kind, result in table["types"].items() if result == "not built"} == NOT_BUILT.keys()
    if table["transformers"] == transformers.__version__:
        assert list(table["types"]) == sorted(KINDS)
    with capsys.disabled():
        print(f"\ntransformers {table['transformers']}, {summary(table['types'])}")


if __name__ == "__main__":
    table = {"transformers": transformers.__version__, "types": {kind: outcome(kind) for kind in sorted(KINDS)}}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    print(summary(table["types"]))
