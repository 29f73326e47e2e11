"""What a server's answer means: an error to give up on, or one after which to ask again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import httpx

from asyncthink.engine.remote.errors import BrokenError, RefusedError

#: Statuses with which a server says that it cannot serve now, or at all any more.
_BROKEN = frozenset({408, 409, 425, 429, *range(500, 600)}) - {501}


@contextlib.contextmanager
def named(url: str) -> Iterator[None]:
    """Errors with the server's address, and those of the connection as BrokenError."""
    try:
        yield
    except RefusedError as error:
        raise RefusedError(f"{url}: {error}") from error
    except BrokenError as error:
        raise BrokenError(f"{url}: {error}", seconds=error.seconds, full=error.full) from error
    except httpx.HTTPError as error:
        raise BrokenError(f"{url}: {type(error).__name__}: {error}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RefusedError(f"{url}: expected an answer of its kind, got {error!r}") from error


async def check(response: httpx.Response) -> None:
    """Raises BrokenError for a status after which the same request may succeed, RefusedError for other errors."""
    if response.status_code < 400:
        return
    text = (await response.aread()).decode(errors="replace")
    try:
        told = json.loads(text)
        error = told.get("error", told)
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, AttributeError):
        pass
    message = f"{response.status_code}: {' '.join(text.split())[:500]}"
    if response.status_code not in _BROKEN:
        raise RefusedError(message)
    raise BrokenError(message, seconds=_retry_after(response), full=response.status_code == 429)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds; a date is not read."""
    given = response.headers.get("retry-after", "")
    return float(given) if given.isdigit() else None
