"""Masks of rules: token by token what the rule permits, on every kind of tokenizer."""

import pytest

from asyncthink.engine.grammar import allowed
from asyncthink.engine.masks import RuleMasks
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.guide import Rule, Text
from asyncthink.protocol.tags import is_tag
from toy_tokenizers import KINDS

ACTING = ("ANSWER", "FORK", "JOIN")
RULES = [
    Rule(ACTING, tags=("<JOIN-1>", "<ANSWER>"), taken=(1,)),
    Rule(ACTING, tags=("</FORK-1>",)),
    Rule(ACTING, tags=("</FORK-1>",), text=Text.LINE, unlike=(" 42", "d")),
    Rule(ACTING, text=Text.FIRST),
    Rule(("RETURN",), tags=("</RETURN>",), text=Text.PLAIN, ends=True),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_is_the_rule_of_every_token(kind):
    codec = Codec(KINDS[kind]())
    size = max(codec.backend.get_vocab().values()) + 1
    masks = RuleMasks(codec, size + 40)
    for rule in RULES:
        for tail in ("", "<", "</", "<FORK-1", "</FORK-1", "</FORK-"):
            expected = set()
            for token, text in enumerate(masks.texts):
                if token in codec.stop_ids:
                    permitted = rule.ends
                else:
                    control = codec.control([token]) and not is_tag(text)
                    permitted = bool(text) and not control and rule.permits(tail, text)
                if permitted:
                    expected.add(token)
            assert set(allowed(masks.row(rule, tail))) == expected, (rule, tail)


def test_masks_are_computed_once_and_forgotten_in_the_end(monkeypatch):
    masks = RuleMasks(Codec(KINDS["glued"]()), 120)
    first = masks.row(RULES[0], "<")
    assert masks.row(RULES[0], "<") is first
    for number in range(2000):
        masks.row(Rule((), unlike=(f"a{number}",)), "")
    assert masks.row(RULES[0], "<") is not first
    assert len(masks._rows) <= 1024
