"""What this process logs goes to stdout, whether it says it with Loguru or with the standard library."""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import sys
from typing import TYPE_CHECKING

from loguru import logger

from pythonricing.telemetry import lines
from pythonricing.telemetry.writer import Writer

if TYPE_CHECKING:
    from typing import Any

    from loguru import Message

    from pythonricing.settings import Settings

#: A line of text, as Loguru writes it in colour, without its place.
TEXT = "<green>{time:HH:mm:ss.SSS}</green> <level>{level: <8}</level> <level>{message}</level>"

_writer: Writer | None = None


def configure(settings: Settings) -> Writer:
    """Send everything that this process logs, with Loguru or the standard library, to stdout. Idempotent.

    As JSON, or as text where the settings or a terminal ask for it.
    """
    global _writer
    if _writer is None:
        _writer = Writer(sys.stdout.fileno())
        atexit.register(close)
        logger.remove()
        options: dict[str, Any] = {"level": settings.log_level, "backtrace": False, "diagnose": False}
        if is_text(settings):
            colorize = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
            logger.add(_text_sink, format=TEXT, colorize=colorize, **options)
        else:
            logger.add(_sink, format="{message}", **options)
    logging.root.handlers = [InterceptHandler()]
    logging.root.setLevel(logging.INFO)
    for name in ("_granian", "granian.access", "uvicorn", "uvicorn.error", "uvicorn.access"):
        server_logger = logging.getLogger(name)
        if server_logger.handlers:  # without one it is off, or passes its lines on as it is
            server_logger.handlers.clear()
            server_logger.propagate = True
    return _writer


def is_text(settings: Settings) -> bool:
    """Whether lines are text for a person, and no JSON."""
    return settings.log_format == "text" or (settings.log_format == "auto" and sys.stdout.isatty())


def shows_info(level: str) -> bool:
    """Whether lines of level INFO are written at this level."""
    return logger.level(level).no <= lines.INFO.no


def close() -> None:
    """Write the last lines."""
    if _writer is not None:
        _writer.close()


def _forget_writer() -> None:
    """A forked child has no writer thread: it makes its own when it configures its logs."""
    global _writer
    _writer = None


os.register_at_fork(after_in_child=_forget_writer)


def _sink(message: Message) -> None:
    if _writer is not None:
        _writer.write([lines.encode(message.record)])


def _text_sink(message: Message) -> None:
    if _writer is not None:
        _writer.write([message.encode()])


class InterceptHandler(logging.Handler):
    """Hands the standard library's log records to Loguru, with the place they come from (Loguru's own recipe)."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        frame, depth = inspect.currentframe(), 0
        while frame and (depth == 0 or frame.f_code.co_filename == logging.__file__):
            frame, depth = frame.f_back, depth + 1
        logger.opt(depth=depth, exception=record.exc_info).log(level, "{}", record.getMessage())
