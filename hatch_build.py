"""The long description: the README without what only a checkout shows, because links into one lead nowhere elsewhere.

Once `[project.urls]` has a `Source`, pictures and links are made from it instead.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")


class Readme(MetadataHookInterface):
    """Fills in the project's `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        source = metadata.get("urls", {}).get("Source")
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": LINK.sub(lambda link: shown(link, source), text)}


def shown(link: re.Match[str], source: str | None) -> str:
    """A picture or a link to something in the checkout, as it can be shown elsewhere."""
    picture, text, target = link.groups()
    if source is None:
        return "" if picture else text
    return f"{picture}[{text}]({source}/{'raw' if picture else 'blob'}/HEAD/{target})"
