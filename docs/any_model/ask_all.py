"""``python docs/any_model/ask_all.py MODEL [WAY ...]``: the table of docs/any_model.md, from 40 questions to one model.

Each question is asked four times, one episode at a time, greedily: as ``asyncthink run`` asks a model that was never
trained to organize (a plan of two forks, then of as many as it writes), with independent agents, and with one agent
alone in the model's own chat format. Prints the rows of the table; what the agents wrote goes to
``docs/any_model/answers.jsonl``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from asyncthink.engine.loaded import LoadedModel
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode

HERE = Path(__file__).parent
PARAMS = SamplingParams(temperature=0.0, max_tokens=128, seed=0)
WAYS = {
    "plan, 2 forks": {"guide": "plan", "forks": 2},
    "plan, up to 3 forks": {"guide": "plan", "pool": 4},
    "parallel, 3 agents": {"mode": "parallel", "pool": 3, "answer": "text"},
    "sequential": {"mode": "sequential", "answer": "text"},
}
HEAD = (
    "| | answered | format errors | forks | joins | drawn tokens | critical path, tokens | seconds "
    "| prompt tokens computed | found computed |\n|---|---|---|---|---|---|---|---|---|---|"
)


def ask(model: LoadedModel, way: str, questions: list[str]) -> tuple[list[Episode], list[float], int, int]:
    """Episodes, seconds of each, and prompt tokens of all of them: computed and found in the cache."""
    sampler = model.sampler(**WAYS[way])
    before, episodes, seconds = sampler.stats, [], []
    for number, question in enumerate(questions, 1):
        start = time.perf_counter()
        episodes += sampler.generate([question], PARAMS)
        seconds.append(time.perf_counter() - start)
        print(f"\r{way}: {number} of {len(questions)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    after = sampler.stats
    reused = after.prefix_tokens - before.prefix_tokens
    return episodes, seconds, after.prompt_tokens - before.prompt_tokens - reused, reused


def row(way: str, episodes: list[Episode], seconds: list[float], computed: int, reused: int) -> str:
    """One line of the table: sums of errors and prompt tokens, means a question of all else."""
    answered = sum(bool((episode.answer or "").strip()) for episode in episodes)
    errors = sum(len(episode.format_errors) for episode in episodes)
    figures = [
        f"{answered} of {len(episodes)}",
        str(errors),
        *(f"{mean(getattr(episode, name) for episode in episodes):.1f}" for name in ("forks", "joins")),
        f"{mean(episode.total_tokens for episode in episodes):.0f}",
        f"{mean(episode.critical_path_tokens for episode in episodes):.0f}",
        f"{mean(seconds):.2f}",
        str(computed),
        str(reused),
    ]
    return f"| {way} | {' | '.join(figures)} |"


def spoken(episode: Episode) -> dict[str, Any]:
    """What was asked, answered and written."""
    agents = [{"role": trace.role, "tokens": trace.decoded, "text": trace.text} for trace in episode.traces]
    return {"question": episode.question, "answer": episode.answer, "agents": agents}


def main() -> None:
    questions = (HERE / "questions.txt").read_text(encoding="utf-8").splitlines()
    model = LoadedModel.load(sys.argv[1])
    rows, records = [HEAD], []
    for way in sys.argv[2:] or WAYS:
        episodes, *figures = ask(model, way, questions)
        rows.append(row(way, episodes, *figures))
        records += [{"way": way, **spoken(episode)} for episode in episodes]
    print("\n".join(rows))
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (HERE / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
