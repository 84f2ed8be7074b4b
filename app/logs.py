"""Log lines: text for people or one JSON object a line for machines; never a body, a path, a key or an address."""

import contextvars
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""Id of the request that the running code serves; on every line logged meanwhile."""

_access = logging.getLogger("alignet.access")
QUIET_ROUTES = frozenset({"/health/live", "/health/ready", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Asked every few seconds by machines: their access lines are for the debug level."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, request_id, and the fields of an access line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record. A record may carry `fields`, a mapping that joins the object."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _encodable(record.getMessage()),
        }
        if id_ := request_id.get():
            line["request_id"] = id_
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = _encodable(self.formatException(record.exc_info))
        return orjson.dumps(line, default=str).decode()


class TextLines(logging.Formatter):
    """Time, level, logger and message; the request's id at the end where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s%(id)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        record.id = f" [{id_}]" if (id_ := request_id.get()) else ""
        return super().format(record)


def configure(log_format: Literal["text", "json"], level: str) -> None:
    """Send every line to standard error in this format; `level` is of our own lines and the server's.

    Other libraries stay at info: at debug level Pillow and the form parser log what is inside a photo.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    logging.basicConfig(level="INFO", handlers=[handler], force=True)
    for name in ("alignet", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())


def access(method: str, route: str, status: int, seconds: float, stages: Mapping[str, float]) -> None:
    """The one line of a finished request.

    Args:
        method: HTTP method, one of a few names.
        route: the route's template, never the path that was asked for.
        status: HTTP status; 499 where the client went away.
        seconds: from the request's first byte to the reply's last.
        stages: seconds in each stage.
    """
    level = logging.DEBUG if route in QUIET_ROUTES else logging.INFO
    if not _access.isEnabledFor(level):
        return
    milliseconds = round(seconds * 1000, 2)
    fields: dict[str, Any] = {"method": method, "route": route, "status": status, "ms": milliseconds}
    if stages:
        fields["stages_ms"] = {stage: round(value * 1000, 2) for stage, value in stages.items()}
    _access.log(level, "%s %s %d %.1f ms", method, route, status, milliseconds, extra={"fields": fields})


def _encodable(text: str) -> str:
    """UTF-8 always: a lone surrogate, as in a file name that is no UTF-8, is written out."""
    return text.encode("utf-8", "backslashreplace").decode()
