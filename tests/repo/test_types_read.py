"""mypy skips most of some large packages (pyproject.toml); what we import of them it reads, or it would be Any."""

from __future__ import annotations

import tomllib
from pathlib import Path

from test_layering import IMPORTS

OVERRIDES = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]


def modules(follow_imports: str) -> list[str]:
    (found,) = [each["module"] for each in OVERRIDES if each.get("follow_imports") == follow_imports]
    return list(found)


def among(name: str, patterns: list[str]) -> bool:
    """As mypy reads patterns: ``a.b.*`` is ``a.b`` and all below it."""
    return any(
        name == each.removesuffix(".*") or (each.endswith(".*") and name.startswith(each[:-1])) for each in patterns
    )


def test_what_is_imported_is_read() -> None:
    skipped, read = modules("skip"), modules("normal")
    imported = {name for names in IMPORTS.values() for name in names}
    assert {name for name in imported if among(name, skipped) and not among(name, read)} == set()
    assert among("openai.types.chat", sorted(imported)) and among("openai.types.chat", skipped)
    assert not among("openai.typeset", skipped) and not among("torch", skipped)


def test_what_is_read_lies_in_what_is_skipped() -> None:
    """No line that does nothing."""
    assert [name for name in modules("normal") if not among(name.removesuffix(".*"), modules("skip"))] == []
