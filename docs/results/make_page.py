"""``python docs/results/make_page.py docs/results.md [NAME ...]``: make its tables and pictures, all or those named.

The data of a page ``NAME.md`` lies in the folder ``NAME``: ``eval/*.json`` what ``asyncthink eval --json`` prints.
Curves are drawn from the ``metrics.jsonl`` of the training runs, in ``runs/``. Tables stand between
``<!-- table: NAME -->`` and ``<!-- end -->`` and are replaced there; all other lines of the page stay.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from asyncthink.files import write_whole
from page_pictures import PICTURES, draw
from page_tables import SHEETS, table

RUNS = Path(__file__).parents[2] / "runs"
_BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def insert(page: str, tables: dict[str, str]) -> str:
    """The page with each of ``tables`` (name -> markdown) between its markers.

    Raises ValueError for a table without markers in the page, or with more than one pair.

    >>> insert("Words.\\n<!-- table: a -->\\nold\\n<!-- end -->\\nMore.", {"a": "new"})
    'Words.\\n<!-- table: a -->\\nnew\\n<!-- end -->\\nMore.'
    """
    there = [match[2] for match in _BLOCK.finditer(page)]
    for name in tables:
        if there.count(name) != 1:
            raise ValueError(f"page: expected one '<!-- table: {name} -->' ... '<!-- end -->', got {there.count(name)}")
    return _BLOCK.sub(lambda m: f"{m[1]}{tables[m[2]]}\n{m[4]}" if m[2] in tables else m[0], page)


def update(page: Path, only: Sequence[str] = (), runs: Path = RUNS) -> list[str]:
    """Make the tables and pictures named (all of them, if none is) and put them into ``page`` and beside its data.

    Returns their names. Tables are computed before anything is written. Raises ValueError for an unknown name, a
    missing file or markers that are not there.
    """
    known = [*SHEETS, *PICTURES]
    for name in only:
        if name not in known:
            raise ValueError(f"only: expected some of {', '.join(known)}, got {name!r}")
    wanted, data = list(only) or known, page.with_suffix("")
    tables = {name: table(name, data / "eval") for name in wanted if name in SHEETS}
    changed = insert(page.read_text(encoding="utf-8"), tables)
    for name in wanted:
        if name in PICTURES:
            draw(name, data / "eval", runs, data / f"{name}.png")
    write_whole(page, changed)
    return wanted


def main() -> int:
    """Exit code 1 and one line where a file or a marker is missing."""
    parser = argparse.ArgumentParser(prog="python docs/results/make_page.py", description=__doc__)
    parser.add_argument("page", type=Path, help="the page; its reports lie in the folder of the same name")
    parser.add_argument("names", nargs="*", help="tables and pictures; all of them by default")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the training runs (%(default)s)")
    options = parser.parse_args()
    try:
        made = update(options.page, options.names, options.runs)
    except (ValueError, OSError, ImportError) as error:
        print(f"make_page.py: {error}", file=sys.stderr)
        return 1
    print(f"{options.page}: {', '.join(made)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
