"""``python -m asyncthink_kernels``: which backend runs which op here, which cannot and why, and what prefills."""

from __future__ import annotations

import platform

import torch

from asyncthink_kernels import dispatch


def table(device: str) -> str:
    """Ops down, backends across; ``*`` marks the default, and notes below say what runs or why not.

    The last line says what computes the prefill of new branches.
    """
    rows = [row for row in dispatch.explain(device=device) if row.op in dispatch.OPS]
    names = list(dict.fromkeys(row.backend for row in rows))
    width = max(map(len, dispatch.OPS))
    column = max(len("available *"), *map(len, names))
    lines = ["  ".join(["op".ljust(width), *(name.ljust(column) for name in names)]).rstrip()]
    for op in dispatch.OPS:
        cells = [("available" if row.available else "no") + " *" * row.default for row in rows if row.op == op]
        lines.append("  ".join([op.ljust(width), *(cell.ljust(column) for cell in cells)]).rstrip())
    lines.append("")
    for name in names:
        reasons: dict[str, list[str]] = {}
        for row in rows:
            if row.backend == name:
                reasons.setdefault(row.reason, []).append(row.op)
        for reason, ops in reasons.items():
            which = "" if len(reasons) == 1 else f" ({', '.join(ops)})"
            lines.append(f"{name}{which}: {reason}")
    flash, ours = dispatch.explain(dispatch.PREFILL, device)
    lines.append(f"{flash.op}: {flash.backend if flash.default else ours.backend} ({flash.backend}: {flash.reason})")
    return "\n".join(lines)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"Backends on {device} (* default), torch {torch.__version__}, Python {platform.python_version()}\n")
    print(table(device))


if __name__ == "__main__":
    main()
