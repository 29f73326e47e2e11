"""The options of an episode: the only lists of modes, contexts, joins and aggregates."""

from __future__ import annotations

import json

import pytest

from asyncthink.episode.modes import STRATEGIES
from asyncthink.episode.options import Aggregate, Context, JoinMode, Mode, Options
from asyncthink.episode.records import Episode


def test_strings_become_members() -> None:
    options = Options("parallel", 2, "isolated", "link", "union")
    members = [options.mode, options.context, options.join, options.aggregate]
    assert members == [Mode.PARALLEL, Context.ISOLATED, JoinMode.LINK, Aggregate.UNION]
    assert [type(member) for member in members] == [Mode, Context, JoinMode, Aggregate]
    assert options == Options(Mode.PARALLEL, 2, Context.ISOLATED, JoinMode.LINK, Aggregate.UNION)


@pytest.mark.parametrize("name", ["mode", "context", "join", "aggregate"])
def test_another_value_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected one of [a-z, ]+, got 'glue'$"):
        Options(**{name: "glue"})  # type: ignore[arg-type]


def test_every_mode_has_a_strategy() -> None:
    assert list(STRATEGIES) == list(Mode)


def test_an_episodes_file_holds_plain_strings(tmp_path) -> None:  # type: ignore[no-untyped-def]
    Episode("q", "parallel").save(tmp_path / "e.json")
    saved = json.loads((tmp_path / "e.json").read_text())
    assert [saved[name] for name in ("mode", "context", "join_mode")] == ["parallel", "shared", "exact"]
    assert type(Episode("q", "parallel").context) is str
