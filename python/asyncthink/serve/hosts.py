"""Which names a server answers to: a page of another site must not reach it under a name of its own.

A browser lets a page read what comes from the host that the page came from. Somebody whose name resolves to their own
server first and to 127.0.0.1 later ("DNS rebinding") could have any visitor's browser ask a server that needs no key.
Such a request names their host. An address cannot be made to point elsewhere, so addresses are always let in.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection


def is_own(host: str, names: Collection[str]) -> bool:
    """Whether the value of a Host header is an IP address, localhost, or one of ``names`` (lower case).

    >>> [is_own(host, ["box.lan"]) for host in ("127.0.0.1:8000", "[::1]", "localhost:80", "Box.lan.", "evil.example")]
    [True, True, True, True, False]
    """
    text = host.strip().lower()
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        name = name.rstrip(".")
        return name == "localhost" or name.endswith(".localhost") or name in names
    return True
