"""``seconds.py OUT --task NAME --puzzles N MODE=MODEL=TEMPERATURE=LIMIT ...``: seconds of one episode at a time.

The modes take turns, puzzle by puzzle (:func:`asyncthink.eval.evaluation.measure_seconds`), each at its own
temperature.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

from asyncthink.engine.loaded import LoadedModel
from asyncthink.engine.sampler import SamplingParams
from asyncthink.eval.evaluation import measure_seconds
from asyncthink.files import write_whole
from asyncthink.tasks import task
from asyncthink.tasks.held_out import held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("modes", nargs="+")
    parser.add_argument("--task", required=True)
    parser.add_argument("--puzzles", type=int, required=True)
    options = parser.parse_args()
    known = task(options.task)
    puzzles = held_out(known, options.puzzles, 1_000_000, "test")
    samplers, params = {}, {}
    for text in options.modes:
        mode, model, heat, limit = text.split("=")
        samplers[mode] = LoadedModel.load(model).sampler(mode=mode, pool=4)
        params[mode] = SamplingParams(temperature=float(heat), max_tokens=int(limit))
    seconds = measure_seconds(samplers, known, puzzles, params)
    rounded = {mode: [round(value, 5) for value in column] for mode, column in seconds.items()}
    write_whole(options.out, json.dumps({"machine": platform.processor() or platform.machine(), "seconds": rounded}))


if __name__ == "__main__":
    main()
