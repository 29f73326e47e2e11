"""The command ``asyncthink profile``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from asyncthink.cli.options import Device, Dtype, Revision, loading

if TYPE_CHECKING:
    from asyncthink.model.decoder import Decoder

SHAPES: dict[str, dict[str, int]] = {
    "qwen3-0.6b": {
        "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    },
}  # fmt: skip
COMPILED: dict[str, Any] = {"compile": True, "pack": True}


def profile_step(
    model: Annotated[str | None, typer.Option(help="A model; by default the one in the box.")] = None,
    shape: Annotated[
        str | None, typer.Option(help=f"Random weights of a shape in the place of a model: {', '.join(SHAPES)}.")
    ] = None,
    agents: Annotated[int, typer.Option(min=1, help="Agents that decode together.")] = 8,
    prefix: Annotated[int, typer.Option(min=1, help="Words of the prompt that all of them share.")] = 512,
    tokens: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 24,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Run the model through torch.compile, on packed weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show where the time of a decode step goes."""
    if model is not None and shape is not None:
        raise ValueError("give --model or --shape, got both")
    if shape is not None and shape not in SHAPES:
        raise ValueError(f"--shape: expected one of {', '.join(SHAPES)}, got {shape!r}")
    if shape is not None and revision is not None:
        raise ValueError(f"--revision: expected none beside --shape, got {revision!r}")
    console = Console(quiet=as_json)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else torch's profiler writes two lines of its own to stderr
    with loading(quiet=as_json) as progress:
        from asyncthink import checkpoint_path
        from asyncthink.engine.loaded import LoadedModel
        from asyncthink.eval.profiling import profile

        if shape is None:
            options: dict[str, Any] = {"device": device, "dtype": dtype, "revision": revision, "progress": progress}
            served = LoadedModel.load(model or checkpoint_path(), **options, **COMPILED if compile else {})
            decoder, tokenizer = served.decoder, served.tokenizer
        else:
            decoder, tokenizer = random_model(SHAPES[shape], dtype, agents, prefix, tokens, compile, device)
    with console.status(f"{agents} agents decode {tokens} steps, twice"):
        found = profile(decoder, tokenizer, agents=agents, prefix=prefix, tokens=tokens)
    if as_json:
        print(json.dumps(found))
    else:
        _print(console, found)


def random_model(
    shape: dict[str, Any],
    dtype: str,
    agents: int,
    prefix: int,
    tokens: int,
    compile: bool = False,
    device: str = "cpu",
) -> tuple[Decoder, Any]:
    """A Qwen3 model of random weights on a cache with room for all, and a tokenizer of one token a word.

    ``dtype`` "auto" is what a model stored in bfloat16 would run in.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from asyncthink.model.auto_dtype import choose_dtype
    from asyncthink.model.decoder import Decoder
    from asyncthink.model.files import device_for, dtype_for

    place = device_for(device)
    length = prefix + tokens + 64
    config: Any = Qwen3Config(**shape, tie_word_embeddings=True, max_position_embeddings=max(length, 4096))
    config.dtype = dtype_for(dtype) or choose_dtype(place, torch.bfloat16, use="decoding").dtype
    torch.manual_seed(0)
    made: Any = Qwen3ForCausalLM  # its own annotations are partial
    network = made._from_config(config).to(place).eval()
    words = {str(k): k for k in range(10)}
    words |= {f"word{k}": k for k in range(len(words), shape["vocab_size"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="word10"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    pages = length // 16 + agents * ((tokens + 64) // 16 + 2)
    fast: Any = PreTrainedTokenizerFast
    options = COMPILED if compile else {}
    return Decoder(network, num_pages=pages, **options), fast(tokenizer_object=backend)


def _print(console: Console, found: dict[str, Any]) -> None:
    from asyncthink.eval.profiling import PARTS

    table = Table("part", "ms", "%")
    for part, name in PARTS.items():
        table.add_row(name, f"{found['parts'][part]:.3f}", f"{100 * found['shares'][part]:.1f}")
    table.add_section()
    table.add_row("whole step, watched", f"{found['ms_watched']:.3f}", "100.0")
    console.print(table)
    console.print(
        f"{found['agents']} agents, prefix {found['prefix']}: {found['ms']:.2f} ms a step unwatched (median of "
        f"{found['steps']}), {found['tokens_per_second']:.0f} tokens/s",
        highlight=False,
    )
