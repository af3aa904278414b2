"""Log lines on standard error: an event and its fields, for a person or as JSON."""

import json
import logging
import sys
import time

_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


class _Formatter(logging.Formatter):
    """`12:30:01 info archived checkpoint=/a/step_1.pt ratio=93.1`, or one JSON object with the same fields."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows, or is a field of the JSON."""
        fields = {name: value for name, value in record.__dict__.items() if name not in _OWN}
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        level, message = record.levelname.lower(), record.getMessage()
        if self._as_json:
            fields |= {"traceback": trace} if trace else {}
            return json.dumps({"time": record.created, "level": level, "event": message, **fields}, default=str)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        told = " ".join(f"{name}={_plain(value)}" for name, value in fields.items())
        return f"{clock} {level} {message}{' ' if told else ''}{told}" + (f"\n{trace}" if trace else "")


def configure(*, as_json: bool) -> None:
    """Send the log to standard error, unless the program around us has set up logging itself."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(as_json=as_json))
    root.addHandler(handler)
    logging.getLogger("ckzd").setLevel(logging.INFO)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return json.dumps(text) if " " in text or not text or not text.isprintable() else text  # one line, whatever it says
