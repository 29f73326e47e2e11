"""Tiny models of many families, whole and divided among gloo processes. Usage: divided_families.py OUT PROCESSES

OUT/FAMILY is a model's folder. ``figures-one`` there holds logits and the norm of a gradient, ``figures-many`` those of
several processes, and ``figures-again`` those from the weights that these wrote again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from forked import finished
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from asyncthink.model.files import device_for
from asyncthink.train.distributed import World
from asyncthink.train.loading import ModelOptions, load
from asyncthink.train.sharding import whole
from asyncthink.train.stored_weights import write_config, write_weights
from asyncthink.train.tokenizer import build_tokenizer
from tiny_models import FAMILIES, tiny, tokens

CHOSEN = ("qwen3", "qwen3_moe", "llama3_rope", "yarn_rope", "gemma3", "gpt_oss", "phi3", "cohere2", "gemma4", "gpt2")


def figures(model: Any) -> dict[str, Tensor]:
    """Logits of a few tokens, and the norm of the gradient of their squares."""
    model.set_attn_implementation("eager")
    model.train(False)
    logits = model(input_ids=tokens(24, seed=1)[None], use_cache=False).logits
    logits.square().sum().backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return {"logits": logits.detach(), "norm": whole(norm)}


def write_all(out: Path) -> None:
    for family in CHOSEN:
        model = tiny(family)
        model.save_pretrained(out / family)
        build_tokenizer().save_pretrained(out / family)
        save_file(figures(model), out / family / "figures-one")


def divide_all(out: Path) -> None:
    with World.start(device_for("cpu")) as world:
        for family in CHOSEN:
            folder = out / family
            model = load(ModelOptions(str(folder), bfloat16=False, device="cpu"), world=world).model
            made = figures(model)
            if world.is_main:
                (folder / "again").mkdir()
            world.barrier()
            write_weights(folder / "again", model, world)
            if world.is_main:
                write_config(folder / "again", model)
                made["norm"] /= world.size  # gradients are sums over processes, which all computed the same
                save_file(made, folder / "figures-many")


def read_all(out: Path) -> None:
    for family in CHOSEN:
        model = AutoModelForCausalLM.from_pretrained(out / family / "again")
        save_file(figures(model), out / family / "figures-again")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    assert set(CHOSEN) <= set(FAMILIES)
    finished(1, write_all, folder)
    finished(int(sys.argv[2]), divide_all, folder)
    finished(1, read_all, folder)
