"""What validation says: `copied MODEL LIMIT`, `found REPORT`, `budget REPORTS LIMITS`, `temperature REPORTS ARM`.

The first two exit with status 3 if a rule of plan.md is missed, so that a crash does not look like that.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from asyncthink.train.demonstrations import DemonstrationPacker, Mixture
from asyncthink.train.evaluate import evaluate, held_out_episodes
from asyncthink.train.loading import ModelOptions, load
from asyncthink.train.packed_attention import use_packed_attention
from drills import EVEN

COPIED, FOUND = 0.98, 0.85
MISSED = 3
BUDGET = (0.65, 0.73)
SMOKE = bool(os.environ.get("SMOKE"))  # tiny runs meet no rule


def copied(model: Path, limit: str, puzzles: int = 200) -> int:
    """Whether organizers copy their answers right in held-out demonstrations of the cold start's last part."""
    loaded = load(ModelOptions(model=str(model), weights="float32"))
    use_packed_attention(loaded.model)
    organizers = Mixture(solo=0, part=0, shared=1, isolated=0, workers=0)
    packer = DemonstrationPacker([EVEN], loaded.tokenizer, loaded.prompts, organizers, max_tokens=int(limit))
    episodes = held_out_episodes(packer, 0, 2 if SMOKE else puzzles)
    share = evaluate(loaded.model, episodes, loaded.tokenizer)["organizer/final"]
    print(f"{model}: {share:.3f} of {len(episodes)} held-out organizers end right (expected at least {COPIED})")
    return 0 if share >= COPIED or SMOKE else MISSED


def found(report: Path) -> int:
    """Whether greedy organizers of the cold start find enough of the solutions."""
    share = fmean(json.loads(report.read_text())["rows"][0]["per_puzzle"]["accuracy"])
    print(f"{report.stem}: {share:.3f} of the solutions of validation puzzles are found (expected at least {FOUND})")
    return 0 if share >= FOUND or SMOKE else MISSED


def budget(reports: Path, budgets: str) -> int:
    """Print `fits N` for the budget N at which `parallel` solves what the rule asks for, else the next one to try.

    ``budgets`` are tried first, in their order, without those that would be too small or too large; then the budgets
    between which the rule's share lies are interpolated. Of several temperatures the best one counts. A single budget
    is taken whatever it gives.
    """
    solved: dict[int, float] = {}
    for file in reports.glob("budget-*.json"):
        made: Any = json.loads(file.read_text())
        share = made["rows"][0]["at_least"]["4"]["value"]
        solved[made["budget"]] = max(share, solved.get(made["budget"], 0))
    for limit, share in sorted(solved.items()):
        print(f"budget {limit}: parallel solves {share:.3f} (expected {BUDGET[0]} to {BUDGET[1]})", file=sys.stderr)
    given = [int(limit) for limit in budgets.split()]
    only = given if len(given) == 1 else []
    fitting = [limit for limit, share in solved.items() if BUDGET[0] <= share <= BUDGET[1] or limit in only]
    if fitting:
        print("fits", min(fitting))
        return 0
    least = max((limit for limit, share in solved.items() if share < BUDGET[0]), default=0)
    most = min((limit for limit, share in solved.items() if share > BUDGET[1]), default=sys.maxsize)
    left = [limit for limit in given if least < limit < most]
    following = left[0] if left else interpolated(solved)
    if following is None or following in solved:
        print("choose.py: no budget fits: add one to `budgets` of settings.sh", file=sys.stderr)
        return 1
    print(following)
    return 0


def interpolated(solved: dict[int, float]) -> int | None:
    """The budget at which a straight line reaches the middle of the rule's range; None if all are on one side of it.

    >>> interpolated({380: 0.65, 410: 0.74})
    393
    """
    aim = fmean(BUDGET)
    below = max((limit for limit, share in solved.items() if share < aim), default=None)
    above = min((limit for limit, share in solved.items() if share > aim), default=None)
    if below is None or above is None:
        return None
    return round(below + (above - below) * (aim - solved[below]) / (solved[above] - solved[below]))


def temperature(reports: Path, arm: str) -> int:
    """Print the temperature at which the sweep of the arm solves most, then has the shortest path."""
    figures: dict[float, tuple[float, float]] = {}
    for file in sorted(reports.glob(f"sweep-{arm}-*.json")):
        made: Any = json.loads(file.read_text())
        row = made["rows"][0]
        figures[made["temperature"]] = row["at_least"]["4"]["value"], -row["critical_path_tokens"]["value"]
    if not figures:
        print(f"choose.py: there is no sweep of {arm} in {reports}; run `run.sh sweep {arm}`", file=sys.stderr)
        return 1
    print(max(figures, key=lambda heat: figures[heat]))
    return 0


if __name__ == "__main__":
    what, path, *rest = sys.argv[1:]
    sys.exit({"copied": copied, "found": found, "budget": budget, "temperature": temperature}[what](Path(path), *rest))
