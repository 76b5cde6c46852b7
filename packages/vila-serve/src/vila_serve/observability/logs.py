"""The server's log on stderr: lines of text for people, or one JSON object per line for log collectors."""

import json
import logging
import time
from typing import Any

from vila_core.errors import printable
from vila_serve.request_id import request_id
from vila_serve.settings import LogFormat


class AddRequestId(logging.Filter):
    """Gives each record the id of the request that is being answered."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Set `record.request_id`; keep every record."""
        record.request_id = request_id.get()
        return True


class TextFormatter(logging.Formatter):
    """One line per record, tracebacks below it. Control characters, which clients can send, become escapes."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line."""
        record.message = printable(record.message)
        number = vars(record).get("request_id")
        return super().formatMessage(record) + (f" [{number}]" if number else "")


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, message, request_id, the fields of `data`, and the exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON on one line."""
        fields: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": vars(record).get("request_id"),
        }
        fields |= vars(record).get("data", {})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def log_to_stderr(level: str, form: LogFormat) -> None:
    """Write the records of all loggers from `level` on, and Python's warnings, to stderr."""
    handler = logging.StreamHandler()
    handler.addFilter(AddRequestId())
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.captureWarnings(True)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
