"""The page at ``/``: one self-contained document in which people ask, watch a model organize, and replay episodes.

Its parts are in ``web/``. They are joined once, at import, with the style sheet of the static timeline
(:mod:`asyncthink.view.page`), so that both look alike. The document loads nothing but the API of its own server.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from asyncthink.view.html import HUES
from asyncthink.view.page import STYLE

_WEB = Path(__file__).parent / "web"
#: In the order in which they define what later ones use.
_SCRIPTS = ("record.js", "episode.js", "dom.js", "chart.js", "texts.js", "turn.js", "player.js", "client.js", "app.js")


def _read(name: str) -> str:
    return (_WEB / name).read_text(encoding="utf-8")


def _source(content: str) -> str:
    """A content security policy's name for an inline element with this content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


_STYLE = STYLE + _read("page.css")
_SCRIPT = "\n".join(['"use strict";', f"const HUES = {json.dumps(HUES)};", *map(_read, _SCRIPTS)])

#: The document.
PAGE: bytes = _read("page.html").replace("/*style*/", _STYLE).replace("/*script*/", _SCRIPT).encode()

#: What to send with it. Only the page's own script runs, and it talks to its own server alone.
PAGE_HEADERS: dict[str, str] = {
    "content-type": "text/html; charset=utf-8",
    "cache-control": "no-cache",
    "content-security-policy": (
        f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
