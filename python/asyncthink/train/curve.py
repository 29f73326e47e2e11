"""The learning curve of a run as a picture."""

from __future__ import annotations

import json
from pathlib import Path

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError('training draws its curve with matplotlib: pip install "asyncthink-kernels[train]"') from error


def plot_curve(metrics: Path, picture: Path) -> None:
    """Draw loss (training) and exact searches (held-out puzzles) over training tokens from a ``metrics.jsonl``."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    losses = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "held_out" in line]
    figure = Figure(figsize=(11, 4), layout="tight")
    left, right = figure.subplots(1, 2)
    left.plot([line["tokens"] / 1e6 for line in losses], [line["loss"] for line in losses], linewidth=0.8)
    left.set(title="training loss", xlabel="tokens (millions)", ylabel="nats per learned token", yscale="log")
    for name in ("solo/exact", "worker_shared/exact", "worker_isolated/exact", "organizer/final"):
        points = [line for line in checks if name in line["held_out"]]
        right.plot(
            [line["tokens"] / 1e6 for line in points], [line["held_out"][name] for line in points], ".-", label=name
        )
    right.set(title="held-out puzzles, teacher-forced", xlabel="tokens (millions)", ylabel="share right", ylim=(0, 1))
    right.legend(loc="lower right")
    draft = picture.with_name(f".{picture.name}.part.png")
    figure.savefig(draft, dpi=110)
    draft.replace(picture)
