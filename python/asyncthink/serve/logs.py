"""What the server logs: no text of a request, and one line when there is no place for more."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream. When that fails (a full disk), it says so once, and the server goes on without a log."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not self._failed:
            self._failed = True
            error = sys.exc_info()[1]
            print(f"asyncthink: the log cannot be written: {error}", file=sys.stderr)


def log_config(level: str) -> dict[str, Any]:
    """The configuration of logging, for uvicorn."""
    handler = {"()": LogHandler, "stream": "ext://sys.stderr", "formatter": "line"}
    line = {"format": "%(asctime)s %(levelname)s %(message)s"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": line},
        "handlers": {"stream": handler},
        "loggers": {"uvicorn": {"handlers": ["stream"], "level": level.upper(), "propagate": False}},
    }
