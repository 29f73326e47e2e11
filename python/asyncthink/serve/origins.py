"""Which pages may have a browser ask this server to do something: its own, and none of another site.

A page anywhere can send a POST without a body, or with a text, to any address that its visitor can reach; it only
cannot read the answer. Browsers say in ``Sec-Fetch-Site`` where the page is from, and in ``Origin`` which one it is; no
page can change these headers. Other clients send neither.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

#: Methods that change nothing.
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def foreign_page(site: str | None, origin: str | None, host: str | None, names: Collection[str]) -> str | None:
    """The page that sent a request, as far as it is known; None for a page of this server, and for no page at all.

    Args:
        site: the header Sec-Fetch-Site. Browsers send it to localhost and over TLS; where it is, it decides.
        origin: the header Origin, which otherwise must name the ``host`` of the request or one of ``names``.
        host: the header Host, which a reverse proxy may have changed.
        names: under which the server is reached (lower case).

    >>> foreign_page("same-origin", "https://box.lan", "127.0.0.1:8000", ())
    >>> foreign_page(None, "http://127.0.0.1:8000", "127.0.0.1:8000", ())
    >>> foreign_page(None, "http://127.0.0.1:3000", "127.0.0.1:8000", ())
    'http://127.0.0.1:3000'
    >>> foreign_page("same-site", None, "localhost:8000", ())
    'same-site'
    """
    if site is not None:
        return None if site in ("same-origin", "none") else origin or site
    if origin is None:
        return None
    try:
        page = urlsplit(origin.lower())
        own = page.netloc != "" and (page.netloc == (host or "").lower() or page.hostname in names)
    except ValueError:  # no address
        return origin
    return None if own else origin
