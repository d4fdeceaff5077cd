"""How a command fails: one line on stderr, and an exit status."""

from __future__ import annotations

from typing import IO, Any

import click


class Failure(click.ClickException):
    """Something that the user must see to; exit status 2, or 1 for what ended a running service."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(" ".join(message.splitlines()))  # a driver's may be several
        self.exit_code = status  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"pythonricing: {self.message}", file=file, err=True)
