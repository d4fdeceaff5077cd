"""Answers as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

NO_STORE = {"cache-control": "no-store"}

encode = msgspec.json.Encoder().encode


class JSON(Response):
    """What msgspec can encode, as an answer that no cache keeps."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(content, status_code, {**NO_STORE, **(headers or {})})

    def render(self, content: Any) -> bytes:
        return encode(content)
