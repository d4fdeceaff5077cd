"""Tables of the documentation that a command writes, never a hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def markers(name: str) -> tuple[str, str]:
    """Between which a table stands."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


class PublishError(Exception):
    """A page that has no place for its table. Its text is one line."""


def publish(page: Path, table: str, name: str = "table") -> None:
    """Replace what stands between a page's two markers of that name. Raises PublishError."""
    begin, end = markers(name)
    try:
        text = page.read_text()
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
    except OSError as error:
        raise PublishError(f"{page} can't be read: {error.strerror}") from None
    if not found:
        raise PublishError(f"{page} has no line {begin} with a line {end} after it")
    page.write_text(f"{before}{begin}\n{table.strip()}\n{end}{after}")
