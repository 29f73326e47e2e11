"""One table: decoding by everybody, with weights of every width, of the same models on the same machine.

python bench/one_table.py --smollm2 FOLDER --out build/one_table
python bench/one_table.py --out build/one_table --only "qwen3-0.6b ours"        rows whose name holds that text
python bench/one_table.py --out build/one_table --print                         the tables of what there is

A row is an engine on a model: tokens a second of 1, 4 and 8 branches behind a prefix of 512 and of 4,096 tokens, each
the median of steps that take `--seconds` together. Rows run one after the other, each in a process of its own, so that
no row holds the memory of another. A row that is done is a line of `rows.jsonl` and is not run again; `table.md` is
written anew behind each. The time of a fixed product before and after a row (`probe ms`) shows a machine that changed.

SmolLM2's channels are shuffled (bench/shuffled.py says why); the Qwen3-0.6B shape has random weights. llama.cpp takes
part where `pip install -e ".[peers]"` was run; its files of the same weights are kept in `--out`.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import machine
import peers
from engines import MOST_BRANCHES, NEW, Engine

BRANCHES, PREFIXES = (1, 4, 8), (512, 4096)
STEPS = (5, NEW - 4)  # fewest, and most
#: engine -> its rows on each model.
ROWS = {
    "ours": ("float32", "bfloat16", "int8", "int4"),
    "ours compiled": ("float32", "bfloat16", "int8", "int4"),
    "transformers": ("float32", "bfloat16"),
    "llama.cpp": ("BF16", "Q8_0", "Q4_1"),
}
#: Ours -> llama.cpp's weights of as many bits.
BITS = {"bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_1"}
Row = dict[str, Any]


def names(models: Sequence[str]) -> Iterator[str]:
    """ "MODEL ENGINE WEIGHTS", in the order of the table."""
    for model in models:
        for engine, widths in ROWS.items():
            yield from (f"{model} {engine} {width}" for width in widths)


def parts(name: str) -> tuple[str, str, str]:
    """
    >>> parts("smollm2 ours compiled int8")
    ('smollm2', 'ours compiled', 'int8')
    """
    model, _, rest = name.partition(" ")
    engine, _, width = rest.rpartition(" ")
    return model, engine, width


def load_model(model: str, dtype: torch.dtype, smollm2: Path | None) -> Any:
    if model == "smollm2":
        from shuffled import load

        return load(smollm2, dtype)  # type: ignore[arg-type]
    from random_models import SHAPE, TINY, random_qwen3

    return random_qwen3(TINY if model == "tiny" else SHAPE, dtype)


def make(name: str, longest: int, smollm2: Path | None, folder: Path) -> tuple[Engine, int]:
    """An engine, and the size of its vocabulary."""
    model, engine, width = parts(name)
    loaded = load_model(model, torch.float32 if width == "float32" else torch.bfloat16, smollm2)
    vocabulary = int(loaded.config.vocab_size)
    if engine == "llama.cpp":
        from engines.llama_cpp_wheel import LlamaCppWheel
        from gguf_files import write_gguf

        path = folder / f"{model}.{width}.gguf"
        if not path.exists():
            write_gguf(loaded, path, width)
        del loaded
        gc.collect()
        return LlamaCppWheel(path, longest, vocabulary), vocabulary
    if engine == "transformers":
        from engines.hugging_face import HuggingFace

        return HuggingFace(loaded), vocabulary
    from engines.ours import Ours

    weights = width if width.startswith("int") else None
    return Ours(loaded, longest, compile=engine == "ours compiled", weights=weights), vocabulary


def measure(name: str, prefixes: Sequence[int], seconds: float, smollm2: Path | None, folder: Path) -> Row:
    """A row: the cells of an engine on a model."""
    begun = time.perf_counter()
    engine, vocabulary = make(name, max(prefixes), smollm2, folder)
    loaded, before, cells = time.perf_counter() - begun, probe(), dict[str, dict[str, float]]()
    tokens = torch.randint(
        vocabulary, (max(prefixes) + NEW * MOST_BRANCHES,), generator=torch.Generator().manual_seed(0)
    )
    given = tokens.tolist()
    for prefix in prefixes:
        engine.prefill(given[:prefix])
        for branches in BRANCHES:
            engine.branch(branches)
            cells[f"{branches} x {prefix}"] = cell(engine, given[-NEW * MOST_BRANCHES :], branches, seconds)
    engine.close()
    row: Row = {"name": name, "cells": cells, "load s": loaded, "probe ms": [before, probe()], "note": engine.note}
    row |= {"date": datetime.datetime.now().isoformat(timespec="seconds"), "torch": torch.__version__}
    return row | {"machine": machine.device(), "threads": machine.threads()}


def cell(engine: Engine, tokens: Sequence[int], branches: int, seconds: float) -> dict[str, float]:
    """Tokens a second of all branches, the median's; the first steps, which may compile, do not count."""

    def step(number: int) -> float:
        start = time.perf_counter()
        engine.step(tokens[number * branches :][:branches])
        return time.perf_counter() - start

    cost = min(step(number) for number in range(3))
    count = min(max(int(seconds / cost), STEPS[0]), STEPS[1])
    times = sorted(step(3 + number) for number in range(count))
    spread = {"p20": times[count // 5], "p80": times[-1 - count // 5]}
    made = {"tokens/s": branches / statistics.median(times), "steps": count}
    return made | {f"step ms {name}": 1e3 * value for name, value in spread.items()}


def probe() -> float:
    """Milliseconds of a product that every row times alike."""
    a = torch.ones(512, 1024)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        a @ a.T
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def done(out: Path) -> dict[str, Row]:
    """Rows by name. A last line that was cut off is not one."""
    path, rows = out / "rows.jsonl", dict[str, Row]()
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            row = json.loads(line)
            rows[row["name"]] = row
    return rows


def run(wanted: Sequence[str], out: Path, row_of: Callable[[str], Row]) -> None:
    """Measure what is missing of the rows ``wanted``."""
    out.mkdir(parents=True, exist_ok=True)
    missing = [name for name in wanted if name not in done(out)]
    kept = "".join(json.dumps(row) + "\n" for row in done(out).values())
    (out / "rows.jsonl").write_text(kept)
    for number, name in enumerate(missing):
        print(f"{number + 1} of {len(missing)}: {name}", flush=True)
        with (out / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row_of(name)) + "\n")
        (out / "table.md").write_text(markdown(done(out)))


def markdown(rows: dict[str, Row]) -> str:
    """Tokens a second, a table a model; then ours beside the others at equal bits."""
    lines = list[str]()
    for model in dict.fromkeys(parts(name)[0] for name in rows):
        its = {parts(name)[1:]: row["cells"] for name, row in rows.items() if parts(name)[0] == model}
        cells = list(dict.fromkeys(cell for row in its.values() for cell in row))
        lines += [
            f"{model}: tokens/s",
            "",
            f"| branches x prefix | {' | '.join(cells)} |",
            "|---|" + "---|" * len(cells),
        ]
        for (engine, width), row in its.items():
            lines.append(_line(f"{engine} {width}", [row[cell]["tokens/s"] if cell in row else None for cell in cells]))
        lines += ["", f"{model}: ours, times as fast", "", lines[2], lines[3]]
        for (engine, width), row in its.items():
            for other in (("transformers", width), ("llama.cpp", BITS.get(width, "")), (engine, "bfloat16")):
                if engine.startswith("ours") and other in its and other != (engine, width):
                    ratios = [row[cell]["tokens/s"] / its[other][cell]["tokens/s"] for cell in cells]
                    lines.append(_line(f"{engine} {width} : {' '.join(other)}", ratios))
        lines.append("")
    return "\n".join(
        [*lines, *dict.fromkeys(row["note"] for row in rows.values() if row["note"]), *_machines(rows), ""]
    )


def _line(title: str, values: Sequence[float | None]) -> str:
    return f"| {title} | {' | '.join('' if value is None else f'{value:.3g}' for value in values)} |"


def _machines(rows: dict[str, Row]) -> list[str]:
    probes = [each for row in rows.values() for each in row["probe ms"]]
    seen = dict.fromkeys(f"{row['machine']}, {row['threads']} threads, torch {row['torch']}" for row in rows.values())
    return [*seen, f"The probe took {min(probes):.2f} to {max(probes):.2f} ms."] if probes else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M-Instruct; without it only the other model")
    parser.add_argument("--prefixes", default=",".join(map(str, PREFIXES)))
    parser.add_argument("--seconds", type=float, default=2.0, help="of the steps of a cell")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="a part of the names of rows")
    parser.add_argument("--tiny", action="store_true", help="a tiny model alone, to try this program")
    parser.add_argument("--print", action="store_true", help="print the tables and end")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    prefixes = [int(prefix) for prefix in args.prefixes.split(",")]
    torch.set_num_threads(args.threads)
    if args.row:
        print(json.dumps(measure(args.row, prefixes, args.seconds, args.smollm2, args.out)))
        return
    models = ["tiny"] if args.tiny else [*(["smollm2"] if args.smollm2 else []), "qwen3-0.6b"]
    absent = peers.missing("llama.cpp")
    if absent:
        print(f"llama.cpp: {absent}")
    wanted = [name for name in names(models) if args.only in name and not (absent and "llama.cpp" in name)]

    def row_of(name: str) -> Row:
        command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--row", name]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        return dict(json.loads(lines[-1]))

    if not args.print:
        run(wanted, args.out, row_of)
    print(markdown(done(args.out)))


if __name__ == "__main__":
    main()
