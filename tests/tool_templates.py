"""Chat templates with tools, in the three ways in which models write calls, and tokenizers for them.

Turns are ``[role]text`` and END. HERMES: JSON between marks. BARE: JSON is the whole turn, a result is a JSON string.
LISTED: a mark, a list of JSON objects with ids; results name the id.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from asyncthink.protocol.prompts import DEFAULT_INSTRUCTIONS, DEFAULT_PROMPTS
from scripted import END, tokenizer

_DECLARED = "{% if tools %}[tools]{% for t in tools %}{{ t | tojson }}{% endfor %}" + END + "{% endif %}"
_TURN = "[{{ m.role }}]{{ m.content }}" + END
_GENERATE = "{% if add_generation_prompt %}[assistant]{% endif %}"


def _template(call: str, result: str, before: str = "") -> str:
    return (
        f"{_DECLARED}{{% for m in messages %}}{before}{{% if m.role == 'tool' %}}{result}"
        f"{{% elif m.tool_calls %}}{{% set f = m.tool_calls[0].function %}}[assistant]{call}{END}"
        f"{{% else %}}{_TURN}{{% endif %}}{{% endfor %}}{_GENERATE}"
    )


HERMES = _template(
    """<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>""",
    "[user]<told>{{ m.content }}</told>" + END,
)
BARE = _template(
    """{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}""", "[ipython]{{ m.content | tojson }}" + END
)
LISTED = _template(
    """[CALLS][{"function": {"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}, """
    """"id": "{{ m.tool_calls[0].id }}"}]""",
    """[RESULTS]{"content": {{ m.content }}, "call": "{{ m.tool_call_id }}", "of": "{{ m.name }}"}[/RESULTS]""",
)
#: A template whose generation prompt closes the model's thinking, if that is off.
THINKS = HERMES.removesuffix(_GENERATE) + (
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and not enable_thinking %}<t></t>"
    "{% endif %}{% endif %}"
)
NO_TOOLS = "{% for m in messages %}" + _TURN + "{% endfor %}" + _GENERATE
#: Calls that are no JSON.
XML = _template("<call><name>{{ f.name }}</name></call>", "[user]{{ m.content }}" + END)


#: Texts of the default prompts; as one token each they keep contexts of scripted models short.
LONG = [*DEFAULT_INSTRUCTIONS.values(), *DEFAULT_PROMPTS.worker_shared.split("{subquery}")]


def chatting(template: str, *glued: str) -> PreTrainedTokenizerFast:
    tok = tokenizer(*glued, *LONG)
    tok.chat_template = template
    return tok
