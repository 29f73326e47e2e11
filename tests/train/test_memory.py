"""The memory estimate: exact in what is exact, near what autograd really keeps in packed training."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import Qwen3Config

from asyncthink.cli.train import app
from asyncthink.tasks import tasks
from asyncthink.train.demonstrations import DemonstrationPacker
from asyncthink.train.distributed import World
from asyncthink.train.loading import ModelOptions, Shape, load, optimizer
from asyncthink.train.logprobs import token_logprobs
from asyncthink.train.memory import estimate
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.sharding import shard

DOCS = Path(__file__).resolve().parents[2] / "docs" / "training.md"
SHAPE = Shape(layers=4, hidden=128, heads=4, kv_heads=2, head_dim=32, intermediate=384)
CHOICES = [
    ModelOptions(shape=SHAPE),
    ModelOptions(shape=SHAPE, checkpointing=True),
    ModelOptions(shape=SHAPE, lora=4),
    ModelOptions(shape=SHAPE, lora=4, weights="bfloat16", checkpointing=True),
]
#: As https://huggingface.co/Qwen/Qwen3-4B has it.
QWEN3_4B = Qwen3Config(
    vocab_size=151936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40960,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    tie_word_embeddings=True,
)


@pytest.mark.parametrize("options", CHOICES, ids=lambda o: f"lora {o.lora} {o.weights} {o.checkpointing}")
def test_it_is_what_training_holds(options: ModelOptions) -> None:
    loaded = load(options)
    use_packed_attention(loaded.model)
    batch = DemonstrationPacker(tasks("countdown"), loaded.tokenizer, loaded.prompts).batch(0, 0, 1500)
    found = estimate(loaded.model.config, options, batch.tokens.numel(), cache_tokens=1000)
    adam = optimizer(loaded.model, 1e-3, 0.0)
    token_logprobs(loaded.model, batch).sum().backward()  # type: ignore[no-untyped-call]
    adam.step()
    parameters = list(loaded.model.parameters())
    assert found["weights"] == sum(each.nbytes for each in parameters)
    assert found["gradients"] == sum(each.grad.nbytes for each in parameters if each.grad is not None)
    moments = [entry[name].nbytes for entry in adam.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert found["moments"] == sum(moments)
    assert found["cache"] == 1000 * SHAPE.layers * 2 * SHAPE.kv_heads * SHAPE.head_dim * parameters[0].element_size()
    assert found["total"] == sum(size for name, size in found.items() if name != "total")


@pytest.mark.parametrize("options", CHOICES[1:3], ids=lambda o: f"lora {o.lora}")
def test_several_processes_hold_shares(options: ModelOptions) -> None:
    """Three of them, of which only the first exists: collectives do nothing."""
    model = load(options).model
    whole = estimate(model.config, options, 500, cache_tokens=9)
    found = estimate(model.config, options, 500, cache_tokens=9, processes=3)
    layer = sum(each.nbytes for each in model.model.layers[0].parameters())
    sizes = {"all": sum(each.nbytes for each in model.parameters())}
    distributed.init_process_group("fake", rank=0, world_size=3, store=FakeStore())
    try:
        shard(model, World(0, 3), torch.device("cpu"))
        shares = [(each.to_local().nbytes, each.requires_grad) for each in model.parameters()]  # type: ignore[attr-defined]
    finally:
        distributed.destroy_process_group()
    assert found["weights"] == sum(size for size, _ in shares)
    assert found["gradients"] == sum(size for size, learned in shares if learned)
    assert found["moments"] == 2 * found["gradients"]
    assert found["copy"] == sizes["all"] == whole["weights"]
    assert found["gathered"] >= sizes["all"] - (SHAPE.layers - 2) * layer
    assert all(found[name] == whole[name] for name in ("activations", "logits", "cache"))
    assert found["total"] == sum(size for name, size in found.items() if name != "total")
    assert estimate(model.config, options, 500, processes=3)["copy"] == 0
    with pytest.raises(ValueError, match="processes: expected at least 1, got 0"):
        estimate(model.config, options, 500, processes=0)


@pytest.mark.parametrize("options", CHOICES, ids=lambda o: f"lora {o.lora} {o.weights} {o.checkpointing}")
def test_activations_are_near_what_autograd_keeps(options: ModelOptions) -> None:
    loaded = load(options)
    use_packed_attention(loaded.model)
    batch = DemonstrationPacker(tasks("countdown"), loaded.tokenizer, loaded.prompts).batch(0, 0, 1500)
    found = estimate(loaded.model.config, options, batch.tokens.numel())
    kept = saved(loaded.model.base_model, lambda: token_logprobs(loaded.model, batch))
    expected = found["activations"]
    if options.checkpointing:  # the layer that is computed again is there in the backward pass only
        config = copy.deepcopy(loaded.model.config)
        all_kept = dataclasses.replace(options, checkpointing=False)
        sizes = []
        for layers in (3, 4):
            config.num_hidden_layers, config.layer_types = layers, config.layer_types[:1] * layers
            sizes.append(estimate(config, all_kept, batch.tokens.numel())["activations"])
        expected -= sizes[1] - sizes[0]
    assert kept == pytest.approx(expected, rel=0.3)


def saved(body: nn.Module, run: object) -> int:
    """Bytes that autograd keeps of the layers alone."""
    own = {each.untyped_storage().data_ptr() for each in body.parameters()}
    memory: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            memory[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    context = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    handles = [body.register_forward_pre_hook(lambda *_: context.__enter__() and None)]
    handles += [body.register_forward_hook(lambda *_: context.__exit__(None, None, None))]
    run()  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    return sum(tensor.untyped_storage().nbytes() for tensor in memory.values())


def test_the_documented_table_is_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every "$ asyncthink train memory" block of docs/training.md, run on Qwen3-4B's configuration."""
    QWEN3_4B.save_pretrained(tmp_path)
    blocks = re.findall(r"^\$ asyncthink train (memory .*)\n((?:\w+ .*GiB\n)+)", DOCS.read_text(), re.MULTILINE)
    assert len(blocks) == 3
    for command, shown in blocks:
        app(command.replace("Qwen/Qwen3-4B", str(tmp_path)).split(), standalone_mode=False)
        assert capsys.readouterr().out == shown


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model: cannot load a causal language model"):
        app(["memory", "--model", str(tmp_path)], standalone_mode=False)
