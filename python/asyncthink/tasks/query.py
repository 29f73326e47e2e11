"""Options behind a task's name, in the form of a URL's query: ``dataset:train.csv?question=Q&answer=A``."""

from __future__ import annotations

from urllib.parse import parse_qsl


def split_query(spec: str) -> tuple[str, dict[str, str]]:
    """The name before the first "?", and the options behind it.

    Raises ValueError for an option without a value or one that is given twice.

    >>> split_query("gcd?max_value=50&note=a%26b")
    ('gcd', {'max_value': '50', 'note': 'a&b'})
    """
    name, _, query = spec.partition("?")
    options: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ValueError(f"task: expected name=value joined by '&' behind '?', got {query!r}") from None
    for key, value in pairs:
        if key in options:
            raise ValueError(f"task: expected {key} once behind '?', got {query!r}")
        options[key] = value
    return name, options
