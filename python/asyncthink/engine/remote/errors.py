"""What can go wrong between here and a server."""

from __future__ import annotations


class RemoteError(RuntimeError):
    """A request to a server failed."""


class RefusedError(RemoteError):
    """The server has read the request and will not serve it; asking again is of no use."""


class BrokenError(RemoteError):
    """The connection failed, or the server did; another server, or this one later, may answer.

    ``seconds``: how long the server asks to wait (Retry-After); None where it does not say. ``full``: it works, and has
    too much to do (429).
    """

    def __init__(self, message: str, *, seconds: float | None = None, full: bool = False) -> None:
        super().__init__(message)
        self.seconds, self.full = seconds, full


class UnreachableError(RemoteError):
    """No server has answered, for as long as was to be waited."""
