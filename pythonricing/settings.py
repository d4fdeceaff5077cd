"""The service's settings: the environment, read once at start."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "PYTHONRICING_"

#: The largest limit and count: above it, JSON readers and Lua lose whole numbers (IEEE 754 doubles).
MAX_COUNT = 2**53 - 1

#: The stores' schemes whose replicas confirm nothing to the service.
NO_REPLICAS = ("memory", "postgresql")
#: What a loss of data does to a counter: nothing more is admitted, or it counts on from the highest known count.
OnLoss = Literal["halt", "raise"]
Limit = Annotated[int, Meta(ge=0, le=MAX_COUNT)]


def without_password(url: str) -> str:
    """The URL as a log may show it: a user and password are replaced by `***`, in a query too."""
    return re.sub(r"([?&]\w*password=)[^&]*", r"\1***", re.sub(r"//[^/]*@", "//***@", url))


class SettingsError(ValueError):
    """A setting that can't be used. Its text is one line for the operator."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One field a variable: `PYTHONRICING_STORE` is `store`. A description says what is allowed, for the error line."""

    store: Annotated[
        str,
        Meta(
            pattern=r"^(memory|rediss?(\+sentinel|\+cluster)?|unix|postgresql)://",
            description="a URL that starts with memory://, redis://, rediss://, redis+sentinel://, rediss+sentinel://, "
            "redis+cluster://, rediss+cluster://, unix:// or postgresql://",
        ),
    ] = "redis://127.0.0.1:6379/0"
    limit: Annotated[Limit | None, Meta(description=f"a whole number from 0 to {MAX_COUNT}, or unset")] = None
    store_timeout: Annotated[float, Meta(ge=0.01, le=3600, description="a number of seconds from 0.01 to 3600")] = 2.0
    store_replicas: Annotated[Annotated[int, Meta(ge=0, le=100)], Meta(description="a whole number from 0 to 100")] = 0
    on_loss: Annotated[OnLoss, Meta(description="halt or raise")] = "halt"
    halt_cache: Annotated[float, Meta(ge=0, le=60, description="a number of seconds from 0 to 60")] = 0.1
    get_claims: Annotated[Literal["on", "off"], Meta(description="on or off")] = "on"
    request_log: Annotated[Literal["on", "off"], Meta(description="on or off")] = "on"
    log_level: Annotated[
        Literal["TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL"],
        Meta(description="TRACE, DEBUG, INFO, SUCCESS, WARNING, ERROR or CRITICAL"),
    ] = "INFO"
    watch: Annotated[Literal["on", "off"], Meta(description="on or off")] = "on"
    allowed_origins: Annotated[
        Annotated[str, Meta(pattern=r"^https?://[^/,\s]+( *, *https?://[^/,\s]+)*$")] | None,
        Meta(description="origins like https://shop.example, separated by commas, or unset"),
    ] = None
    admin_token: Annotated[
        Annotated[str, Meta(pattern=r"^[!-~]+$")] | None,
        Meta(description="visible ASCII characters without spaces, or unset"),
    ] = None

    @property
    def origins(self) -> tuple[str, ...]:
        """The allowed origins."""
        return tuple(origin.strip() for origin in (self.allowed_origins or "").split(",") if origin.strip())

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings from `environ`. Raises SettingsError for the first value that can't be used."""
        values: dict[str, object] = {}
        for field, kind in get_type_hints(cls, include_extras=True).items():
            variable = PREFIX + field.upper()
            if (text := environ.get(variable)) is None:
                continue
            try:
                values[field] = msgspec.convert(text, kind, strict=False)
                if values[field] is None:
                    raise ValueError("the word for nothing is not a value")
            except ValueError:
                allowed = next(meta.description for meta in get_args(kind) if isinstance(meta, Meta))
                shown = "its value" if field == "admin_token" else repr(without_password(text))
                raise SettingsError(f"{variable}: {shown} is not {allowed}") from None
        settings = cls(**values)  # type: ignore[arg-type]
        scheme = settings.store.partition("://")[0]
        if settings.store_replicas and scheme in NO_REPLICAS:
            hint = "; PostgreSQL itself waits for its standbys (synchronous_commit)" if scheme == "postgresql" else ""
            raise SettingsError(f"{PREFIX}STORE_REPLICAS: {scheme}:// has no replicas that confirm{hint}")
        return settings
