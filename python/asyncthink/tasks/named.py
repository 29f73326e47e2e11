"""Objects by name: ``module:name`` is imported, so that a task or a reward of one's own needs no registration."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def imported(kind: str, name: str) -> Any:
    """The object ``name`` of a module, ``package.module:name``; a class is called without arguments.

    The current folder is searched as well, behind the installed packages, as the command line is mostly called where
    one's own module lies. Raises ValueError for a module that is not there and for a name that it lacks. What the
    module itself raises is passed on.

    >>> imported("task", "asyncthink.tasks.sudoku:Sudoku").name
    'sudoku-4'
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        value: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{kind}: there is no module {module!r} to import {name!r} from") from None
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise ValueError(f"{kind}: expected {attribute!r} in the module {module}, which lacks it")
        value = getattr(value, part)
    return value() if isinstance(value, type) else value
