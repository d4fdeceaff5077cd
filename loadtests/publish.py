"""Tables of the documentation that a command writes, never a hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


class PublishError(Exception):
    """A page that has no place for its table. Its text is one line."""


def publish(page: Path, table: str) -> None:
    """Replace what stands between a page's two markers. Raises PublishError."""
    try:
        text = page.read_text()
        before, _, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
    except OSError as error:
        raise PublishError(f"{page} can't be read: {error.strerror}") from None
    if not end:
        raise PublishError(f"{page} has no line {BEGIN} with a line {END} after it")
    page.write_text(f"{before}{BEGIN}\n{table.strip()}\n{END}{after}")
