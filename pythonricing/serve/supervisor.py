"""What the server's supervisor does before it starts a worker; Granian's log configuration names it."""

from __future__ import annotations

import os
import signal
import sys
from functools import cache
from typing import TYPE_CHECKING

# What the application imports is loaded here, for the workers to share: they start at once, and the moment in which a
# new worker would miss a SIGTERM (Granian forks first and sets its handlers later) is short.
import uvloop  # noqa: F401
from loguru import logger

from pythonricing import service  # noqa: F401
from pythonricing.serve import servers
from pythonricing.settings import Settings, SettingsError, unknown
from pythonricing.telemetry import logs, workers

if TYPE_CHECKING:
    import logging


def server_handler() -> logging.Handler:
    """The handler that makes the supervisor's own lines JSON.

    It is built in the supervisor before any worker starts, so a bad setting stops the server here, with one line and
    exit status 2.
    """
    os.register_at_fork(after_in_child=_end_on_signals)
    try:
        prepare()
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    return logs.InterceptHandler()


@cache
def prepare() -> None:
    """Make this process ready to start workers; once, whoever asks first. Raises SettingsError."""
    logs.configure(Settings.from_environ(os.environ))
    for line in unknown(os.environ):
        logger.warning("{}", line)
    workers.host()
    servers.allow_connections()


def _end_on_signals() -> None:
    """Let SIGTERM and SIGINT end a forked worker until it has handlers of its own.

    Granian's supervisor leaves it a copy of its handlers, which take note of a signal and go on: a worker told to stop
    while it starts would serve for ever, and the supervisor wait for it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
