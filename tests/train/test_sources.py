"""What a cold start learns from beside tasks: files of traces, and tasks that nobody organizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncthink.tasks import TASKS
from asyncthink.train.demonstrations import DemonstrationPacker, Mixture
from asyncthink.train.loading import TINY_PROMPTS, ModelOptions, Shape
from asyncthink.train.sft import SFTConfig, train_sft
from asyncthink.train.sources import Traces, demonstrated
from asyncthink.train.tokenizer import build_tokenizer
from asyncthink.train.traces import WrittenAgent, WrittenTrace, write_traces

TOKENIZER = build_tokenizer()


def written(path: Path, questions: int, depth: int = 1) -> str:
    worker = WrittenAgent("2*3=6 <RETURN>6</RETURN>", 0, 1)
    text = "<FORK-1>2*3?</FORK-1> 4*5=20 <JOIN-1> so <ANSWER>{}</ANSWER>"
    write_traces(
        path,
        [
            WrittenTrace(f"2*3 + {k}?", (WrittenAgent(text.format(6 + k)), worker), pool=3, depth=depth)
            for k in range(questions)
        ],
    )
    return f"traces:{path}"


def test_a_cold_start_from_a_file_of_traces(tmp_path: Path) -> None:
    spec = written(tmp_path / "traces.jsonl", 30)
    (source,) = demonstrated(spec)
    assert source.name == spec
    assert isinstance(source, Traces) and (len(source.training), len(source.held_out)) == (27, 3)
    seen = {source.prompt(source.sample(seed)) for seed in range(60)}
    held_out = {source.prompt(source.sample(seed, held_out=True)) for seed in range(60)}
    assert (len(seen), len(held_out)) == (27, 3) and not seen & held_out
    puzzle = source.sample(0)
    assert source.verify(puzzle, f" {puzzle.answer} ") == 1.0
    assert source.verify(puzzle, None) == source.verify(puzzle, "8 apples") == 0.0
    shape = Shape(layers=1, hidden=16, heads=1, kv_heads=1, head_dim=16, intermediate=16)
    options = {"steps": 2, "batch_tokens": 200, "evaluate_every": 1, "evaluate_episodes": 2}
    folder = train_sft(SFTConfig(tmp_path / "run", spec, ModelOptions(shape=shape, bfloat16=False), **options))  # type: ignore[arg-type]
    assert f'"task": "{spec}"' in (folder / "asyncthink.json").read_text()


@pytest.mark.parametrize("context", ["shared", "isolated"])
def test_a_trace_is_learned_in_the_context_that_the_mixture_asks_for(tmp_path: Path, context: str) -> None:
    sources = demonstrated([written(tmp_path / "traces.jsonl", 3)])
    mixture = Mixture(solo=0, shared=float(context == "shared"), isolated=float(context == "isolated"))
    packer = DemonstrationPacker(sources, TOKENIZER, TINY_PROMPTS, mixture)
    organizer, worker = next(packer.stream("x"))
    assert (worker.parent, worker.context) == (0 if context == "shared" else None, context)
    assert "<JOIN-1>6</JOIN-1> so <ANSWER>" in TOKENIZER.decode(organizer.tokens)


def test_only_one_agent_alone_demonstrates_a_solo_task() -> None:
    packer = DemonstrationPacker(
        demonstrated("solo:sudoku-4"), TOKENIZER, TINY_PROMPTS, Mixture(solo=0, shared=0.5, isolated=0.5)
    )
    stream = packer.stream("x")
    assert {tuple(row.role for row in next(stream)) for _ in range(10)} == {("solo",)}
    (alone,) = demonstrated("solo:sudoku-4")
    sudoku = TASKS["sudoku-4"]
    assert alone.sample(3, held_out=True) == sudoku.sample(3, held_out=True)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="traces: there is no file"):
        demonstrated(f"traces:{tmp_path / 'none.jsonl'}")
    with pytest.raises(ValueError, match=r"traces: expected two questions or more in .* got 1"):
        demonstrated(written(tmp_path / "one.jsonl", 1))
    (deep,) = demonstrated(written(tmp_path / "deep.jsonl", 2, depth=2))
    with pytest.raises(ValueError, match=r"depth: expected at least 2 for the trace of .*, got 1"):
        deep.demonstrate(deep.sample(0), 0)
    with pytest.raises(ValueError, match="shape: expected LAYERS,HIDDEN,HEADS,KV_HEADS,HEAD_DIM,INTERMEDIATE, got"):
        Shape.parse("4,x")
