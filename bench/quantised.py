"""Weights of 8 and 4 bits: the layer beside torch's own ops, quality on real text, and whole steps beside llama.cpp.

python bench/quantised.py layers                       one layer [3072, 1024], milliseconds
python bench/quantised.py quality --model FOLDER       KL and top-1 against the 16-bit weights, on docs/*.md
python bench/quantised.py steps   --model FOLDER       tokens a second of 1, 4 and 8 branches

``--work FOLDER`` keeps the GGUF files of the same weights. llama.cpp takes part where xllamacpp and gguf are installed.

The channels of the model are shuffled first (bench/shuffled.py says why).
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from asyncthink.model.quantized import QuantizedLinears
from asyncthink_kernels.quantized import quantize
from engines import Engine
from engines.ours import Ours
from quantised_layers import layers
from shuffled import load

ROOT = Path(__file__).resolve().parents[1]
ROWS = (1, 2, 4, 8, 16, 64, 256)
PREFIX, STEPS = 512, 24
WINDOW, WINDOWS = 512, 4  # tokens of a text, and texts
BITS = {"BF16": "16", "Q8_0": "8.5", "Q4_1": "5", "Q4_0": "4.5"}


def peer_files(model: Any, work: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """GGUF files of the model, written once; none where llama.cpp or gguf is missing."""
    try:
        import xllamacpp  # noqa: F401

        from gguf_files import write_gguf
    except ImportError as error:
        print(f"without llama.cpp: {error}")
        return {}
    work.mkdir(parents=True, exist_ok=True)
    files = {kind: work / f"shuffled.{kind}.gguf" for kind in kinds}
    for kind, path in files.items():
        if not path.exists():
            write_gguf(model, path, kind)
    return files


def texts(folder: Path) -> list[list[int]]:
    """Windows of the documentation, from places spread over all of it."""
    from transformers import AutoTokenizer

    every = "\n\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    ids = AutoTokenizer.from_pretrained(folder)(every)["input_ids"]
    apart = len(ids) // WINDOWS
    return [ids[number * apart :][:WINDOW] for number in range(WINDOWS)]


def quality(folder: Path, work: Path) -> None:
    """Mean KL(16-bit weights in float32 || it) in nats a token, and how often both have the same likeliest token."""
    from engines.llama_cpp_wheel import LlamaCppWheel

    windows = texts(folder)
    model = load(folder, torch.bfloat16)
    wide = copy.deepcopy(model).float()
    expected = [logits(wide, window).log_softmax(1) for window in windows]
    print(f"{WINDOWS} texts of {WINDOW} tokens; channels shuffled")
    print("| | bits of a linear weight | mean KL, 1e-4 nats | 99% below | top-1 agrees |\n|---|---|---|---|---|")

    def row(name: str, bits: str, run: Callable[[list[int]], Tensor]) -> None:
        found = [compare(run(window), want) for window, want in zip(windows, expected, strict=True)]
        kl, same = torch.cat([each[0] for each in found]), torch.cat([each[1] for each in found])
        tail = kl.quantile(0.99).item()
        print(
            f"| {name} | {bits} | {1e4 * kl.mean():.2f} | {1e4 * tail:.1f} | {100 * same.float().mean():.2f}% |",
            flush=True,
        )

    row("ours bfloat16", "16", lambda window: logits(model, window))
    run = functools.partial(logits, model)
    cases: list[tuple[str, str, str, bool]] = [
        ("int8", "auto", "8.5", False),
        ("int8", "stored", "8.5", False),
        ("int8", "auto", "8.5", True),
        ("int4", "auto", "5", False),
        ("int4", "stored", "5", False),
        ("int4", "int4", "5", False),
        ("int4", "auto", "5", True),
    ]
    for weights, head, bits, alone in cases:
        linears = QuantizedLinears(model, weights, head)
        if alone:
            linears._forwards = [functools.partial(functional.linear, weight=w) for w in dequantized(linears)]
        with linears.patched():
            row(f"ours {weights}, head {head}{', activations as they are' if alone else ''}", bits, run)
    given = {
        name: quantize(module.weight, 4, offset=False)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    with QuantizedLinears(model, "int4", given=given).patched():
        row("4 bits without offset (Q4_0's format)", "4.5", run)
    for kind, path in peer_files(model, work, tuple(BITS)).items():
        peer = LlamaCppWheel(path, WINDOW, model.config.vocab_size)
        row(f"llama.cpp {kind}", BITS[kind], peer.text)
        peer.close()


def dequantized(linears: QuantizedLinears) -> list[Tensor]:
    return [layer.held.dequantized(torch.bfloat16) for layer in linears.layers]


@torch.inference_mode()
def logits(model: Any, window: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([window])).logits[0].float()


def compare(got: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """(KL [T], whether the likeliest token is the same [T]); ``expected`` are log-probabilities."""
    found = got.float().log_softmax(1)
    kl = (expected.exp() * (expected - found)).sum(1)
    return kl, found.argmax(1) == expected.argmax(1)


def steps(folder: Path, work: Path, branches: Sequence[int], only: Sequence[str]) -> None:
    """Tokens a second of all branches behind one prefix; engines step in turn."""
    from engines.llama_cpp_wheel import LlamaCppWheel

    model = load(folder, torch.bfloat16)
    files = peer_files(model, work, ("BF16", "Q8_0", "Q4_1"))
    tokens = texts(folder)[0][:PREFIX]
    longest = PREFIX
    makers: dict[str, Callable[[], Engine]] = {
        "ours float32": lambda: Ours(copy.deepcopy(model).float(), longest),
        "ours bfloat16": lambda: Ours(model, longest),
        "ours int8": lambda: Ours(model, longest, weights="int8"),
        "ours int4": lambda: Ours(model, longest, weights="int4"),
        "eager bfloat16": lambda: Ours(model, longest, record=False),
        "eager int8": lambda: Ours(model, longest, record=False, weights="int8"),
        "eager int4": lambda: Ours(model, longest, record=False, weights="int4"),
        "compiled bfloat16": lambda: Ours(model, longest, compile=True),
        "compiled int8": lambda: Ours(model, longest, compile=True, weights="int8"),
        "compiled int4": lambda: Ours(model, longest, compile=True, weights="int4"),
    }
    for kind, path in files.items():
        makers[f"llama.cpp {kind}"] = lambda path=path: LlamaCppWheel(path, longest, model.config.vocab_size)
    engines = {name: make() for name, make in makers.items() if any(part in name for part in only)}
    for engine in engines.values():
        engine.prefill(tokens)
    print(f"tokens/s, prefix {PREFIX}, {torch.get_num_threads()} threads, median of {STEPS} steps in turn")
    print("| | " + " | ".join(f"{count} branches" for count in branches) + " |")
    print("|---|" + "---|" * len(branches))
    cells: dict[str, list[str]] = {name: [] for name in engines}
    for count in branches:
        times: dict[str, list[float]] = {name: [] for name in engines}
        for engine in engines.values():
            engine.branch(count)
        for number in range(STEPS + 4):
            for name, engine in engines.items():
                start = time.perf_counter()
                engine.step([tokens[(number + k) % PREFIX] for k in range(count)])
                times[name].append(time.perf_counter() - start)
        for name, every in times.items():
            cells[name].append(f"{count / statistics.median(every[4:]):.1f}")
    for name, row in cells.items():
        print(f"| {name} | {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layers", "quality", "steps"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--branches", default="1,4,8")
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--engines", default="ours,llama", help="parts of names: ours, eager, compiled, llama, ...")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "layers":
        layers([int(count) for count in args.rows.split(",")], args.seconds)
    elif args.model is None:
        parser.error(f"{args.what} needs --model")
    elif args.what == "quality":
        quality(args.model, args.work)
    else:
        steps(args.model, args.work, [int(count) for count in args.branches.split(",")], args.engines.split(","))


if __name__ == "__main__":
    main()
