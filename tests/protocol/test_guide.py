"""Rules: what they permit is what the parser reads without an error."""

import dataclasses
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.protocol.guide import Rule, Text
from asyncthink.protocol.parser import Parser
from asyncthink.protocol.tags import VOCABULARY, FormatError

TAGS = [
    f"<{slash}{name}>" for name in ("FORK-1", "FORK-2", "JOIN-1", "JOIN-2", "ANSWER", "RETURN") for slash in ("", "/")
]
pieces = st.one_of(
    st.sampled_from([*TAGS, *(tag[:-1] for tag in TAGS), ">", "<", "</", "FORK-", "1>", "2>", "x", " y", "\n"]),
    st.text("<>/-12FORKJIN", max_size=4),
)


def rule_of(parser: Parser) -> Rule:
    """All that is legal, for an organizer with free seats and for the others."""
    acting = tuple(sorted(VOCABULARY[parser.role]))
    if parser.open is not None:
        return Rule(acting, tags=(f"</{parser.open[1:]}",))
    joins = tuple(f"<JOIN-{index}>" for index in sorted(parser.forked - parser.joined))
    result = "<RETURN>" if parser.role == "worker" else "<ANSWER>"
    taken = tuple(sorted(parser.forked)) if parser.role == "organizer" else None
    return Rule(acting, tags=(*joins, result), taken=taken)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["organizer", "worker", "solo"]), st.lists(pieces, max_size=30))
def test_permitted_pieces_make_no_format_error_and_others_do_or_go_on_behind_a_tag(role, given_):
    parser = Parser(role)
    for piece in given_:
        permitted = rule_of(parser).permits(parser.tail, piece)
        trial = Parser(role)
        trial.__dict__.update(
            {name: value.copy() if hasattr(value, "copy") else value for name, value in vars(parser).items()}
        )
        actions = trial.feed(piece)
        if permitted:
            assert not any(isinstance(action, FormatError) for action in actions)
            parser.feed(piece)
        else:
            spans = [action.span.overrun for action in actions if not isinstance(action, FormatError)]
            opened = trial.open != parser.open
            assert len(spans) < len(actions) or any(spans) or opened
        if parser.done:
            return


def test_lines():
    first, line = Rule((), text=Text.FIRST), Rule(("FORK",), ("</FORK-1>",), text=Text.LINE)
    assert [first.permits("", text) for text in ("a", " a", " ", "\n", "a\n", "<")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert [line.permits("", text) for text in ("a\n", "\n\n", "a\nb", "a</FORK", "<b")] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert [line.permits("</FORK", text) for text in ("-1>", "-2>", "x", "-1> ")] == [True, False, False, False]


def test_plain_text_has_no_look_alikes_of_tags():
    rule = Rule(("ANSWER",), ("</ANSWER>",), text=Text.PLAIN, ends=True)
    texts = ("</b>", "1 < 2", "<ANSWER", "<FORK", "</ANS", "</", "</FORK-1", "\n\n")
    assert [rule.permits("", text) for text in texts] == [True, True, False, False, True, True, False, True]


def test_unlike_forbids_both_ways_of_going_on():
    rule = Rule((), text=Text.LINE, unlike=(" France",))
    assert [rule.permits("", text) for text in (" Fr", " France?", " Spain", "\n")] == [False, False, True, True]


@given(
    st.builds(Rule, st.just(("FORK",)), st.just(("<JOIN-1>",)), st.sampled_from([None, (1, 2)]), unlike=st.just(("a",)))
)
def test_rules_survive_json(rule):
    assert Rule.from_dict(json.loads(json.dumps(dataclasses.asdict(rule)))) == rule
