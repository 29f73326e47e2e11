"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path``; on failure an older file stays as it was and nothing half-written is left.

    A path that exists and is no regular file (a pipe, a device) is written directly. Raises OSError.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def check_writable(*paths: Path | None) -> None:
    """ValueError for a path that is a folder or lies in none: minutes of work must not end there."""
    for path in paths:
        if path is not None and path.is_dir():
            raise ValueError(f"{path}: expected a file to write, got a folder")
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: expected an existing folder to write into, got {path.parent}")
