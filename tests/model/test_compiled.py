"""A compiled Decoder: one graph for steps of all sizes, K and V updated in place, the logits of the plain one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from asyncthink.model.decoder import Decoder
from asyncthink_kernels.cache import Branch
from tiny_models import eager, feed, same, tiny, tokens


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled before, nothing left behind."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


class Pair:
    """A compiled and a plain decoder of one model that go through the same steps."""

    def __init__(self, family: str, **options: Any) -> None:
        self.model = tiny(family, **{"num_hidden_layers": 1, **options})
        self.compiled = Decoder(self.model, page_size=4, num_pages=60, chunk=8, compile="aot_eager")
        self.plain = Decoder(self.model, page_size=4, num_pages=60, chunk=8)
        for decoder in (self.compiled, self.plain):
            decoder.storage.poison()
        self._seed = 0

    def each(self, do: Callable[..., Any], *pairs: tuple[Any, Any]) -> tuple[Any, Any]:
        """``do`` with the decoder, and with each pair's first or second."""
        return do(self.compiled, *(pair[0] for pair in pairs)), do(self.plain, *(pair[1] for pair in pairs))

    def step(self, *work: tuple[tuple[Branch, Branch], int], rows: list[int] | None = None) -> None:
        """The same tokens through both: the same logits, K and V, to the last bit."""
        count = sum(new for _, new in work)
        self._seed += 1
        ids = tokens(count, self._seed)
        wanted = list(range(count)) if rows is None else rows
        got: list[Tensor] = []
        for side, decoder in enumerate((self.compiled, self.plain)):
            plan = decoder.cache.plan([(branches[side], new) for branches, new in work])
            got.append(decoder.forward(ids, plan, wanted))
        assert torch.equal(*got)
        for ours, theirs in zip(self.compiled.storage.groups, self.plain.storage.groups, strict=True):
            torch.testing.assert_close((ours.k, ours.v), (theirs.k, theirs.v), rtol=0, atol=0, equal_nan=True)


def root(decoder: Decoder) -> Branch:
    return decoder.cache.root()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3", {"num_hidden_layers": 2}),
        ("gemma2", {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}),
        ("stablelm", {}),  # hands no keywords to its layers
    ],
)
def test_one_graph_serves_steps_of_all_sizes(family: str, options: dict[str, Any]) -> None:
    """Rows, logits, items, entries: 1 or many, in all combinations, and equal by chance."""
    pair = Pair(family, **options)
    first = pair.each(root)
    pair.step((first, 6))  # as many rows as an item has columns
    pair.step((first, 1))
    pair.step((first, 5), rows=[])
    pair.step((first, 3), rows=[2])
    child = pair.each(lambda decoder, branch: decoder.cache.fork(branch, at=10), first)
    other = pair.each(root)
    pair.step((other, 1))  # one row, item, entry
    pair.step((first, 1), (child, 4), (other, 7), rows=[0, 4, 11])
    for _ in range(3):  # plans updated in place, into the next page
        pair.step((first, 1), (child, 1))
    pair.step((child, 1))
    assert graphs() == 1


def test_links_take_a_second_graph_and_appends_none() -> None:
    pair = Pair("llama")
    first = pair.each(root)
    pair.step((first, 12))
    child = pair.each(lambda decoder, branch: decoder.cache.fork(branch), first)
    pair.step((first, 3), (child, 7))
    pair.each(lambda decoder, dst, src: decoder.join(dst, src, 13, 17, "append"), first, child)
    pair.step((first, 2), (child, 1))
    assert graphs() == 1
    pair.each(lambda decoder, dst, src: decoder.join(dst, src, 13, 18, "link"), first, child)
    pair.step((first, 1), (child, 1))
    pair.each(lambda decoder, dst, src: decoder.join(dst, src, 0, 5, "link"), child, first)
    pair.step((first, 2), (child, 4), rows=[5])
    assert graphs() == 2


def test_a_model_that_is_trained_meanwhile() -> None:
    """Dropout is off in steps only, new values of the weights are seen, and nothing is compiled again."""
    model = tiny("llama", num_hidden_layers=1, attention_dropout=0.5).train()
    decoder = Decoder(model, num_pages=20, compile="aot_eager")
    modes = {name: module.training for name, module in model.named_modules()}
    for _ in range(2):
        (got,) = feed(decoder, (decoder.cache.root(), tokens(9, 1)))
        assert {name: module.training for name, module in model.named_modules()} == modes
        same(got, eager(model.eval(), tokens(9, 1)))
        with torch.no_grad():
            for parameter in model.train().parameters():
                parameter.mul_(0.9)
    assert graphs() == 1
    assert model.config._attn_implementation == "sdpa"
    assert type(model).__name__ == "LlamaForCausalLM" and "_compiled_call_impl" not in vars(model)


def test_decoders_do_not_use_up_each_others_graphs() -> None:
    """torch compiles one piece of code a limited number of times, and all models share transformers' forward."""
    with torch._dynamo.config.patch(recompile_limit=1):
        for family in ("llama", "olmo2"):
            model = tiny(family, num_hidden_layers=1)
            decoder = Decoder(model, num_pages=20, compile="aot_eager")
            same(feed(decoder, (decoder.cache.root(), tokens(9, 1)))[0], eager(model, tokens(9, 1)))
    assert graphs() == 2


def test_static_buffers_go_with_it() -> None:
    model = tiny("llama", num_hidden_layers=1)
    decoder = Decoder(model, num_pages=20, compile="aot_eager", graphs=True)
    context = tokens(12, 1)
    first = decoder.cache.root()
    got = feed(decoder, (first, context[:7])) + [feed(decoder, (first, one[None]))[0] for one in context[7:]]
    same(torch.cat(got), eager(model, context))
    assert graphs() == 1


def test_code_that_cannot_be_one_graph_is_an_error_that_leaves_everything_as_it_was() -> None:
    model = tiny("llama", num_hidden_layers=1)
    decoder = Decoder(model, num_pages=20, compile="aot_eager")
    decoder.storage.poison()
    broken = model.model.layers[0].mlp.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    plan = decoder.cache.plan([(decoder.cache.root(), 3)])
    with pytest.raises(Unsupported, match="graph_break"):
        decoder.forward(tokens(3, 1), plan, [2])
    broken.remove()
    assert decoder.storage.k(0).isnan().all()
    assert model.config._attn_implementation == "sdpa"
    same(decoder.forward(tokens(3, 1), plan, [0, 1, 2]), eager(model, tokens(3, 1)))


def test_inductor_copies_no_cache() -> None:
    """The default backend (in C++ here), whose generated code must hand attention the cache itself."""
    model = tiny("llama", num_hidden_layers=1)
    decoder = Decoder(model, num_pages=20, compile=True)
    first = decoder.cache.root()
    context = tokens(12, 1)
    # Stored graphs are no use: torch looks them up without regard to which tensors share memory.
    with torch._inductor.config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
        got, (code,) = run_and_get_code(feed, decoder, (first, context[:7]))
    child = decoder.cache.fork(first)
    got += feed(decoder, (child, context[7:9]), (first, context[7:8]))[:1]
    got += [feed(decoder, (child, one[None]))[0] for one in context[9:]]
    same(torch.cat(got), eager(model, context))
    assert graphs() == 1
    calls = re.findall(r"append_kv\.default\((.*)\)", code)
    assert len(calls) == 1 and re.search(r", arg\d+_1, arg\d+_1, arg\d+_1$", calls[0]), calls
