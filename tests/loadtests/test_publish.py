from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadtests.publish import PublishError, markers, publish

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = markers("table")


def test_a_table_replaces_the_one_between_the_markers_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{BEGIN}\n| old |\n{END}\n\nMore.\n")
    for _ in range(2):
        publish(page, "| new |\n| --- |\n\n")
        assert page.read_text() == f"# Page\n\n{BEGIN}\n| new |\n| --- |\n{END}\n\nMore.\n"


@pytest.mark.parametrize("text", ["# Page\n", f"{BEGIN}\n", f"{END}\n{BEGIN}\n"])
def test_a_page_without_markers_is_named_and_left_alone(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(PublishError, match=r"page\.md has no line"):
        publish(page, "| new |")
    assert page.read_text() == text


def test_a_missing_page_is_named(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r"page\.md can't be read"):
        publish(tmp_path / "page.md", "| new |")
