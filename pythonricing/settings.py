"""The service's settings: the environment, read once at start."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PREFIX = "PYTHONRICING_"
#: How the variables go on that Kubernetes gives to pods where a Service is called pythonricing.
SERVICE_LINK = re.compile(r"(SERVICE_HOST|SERVICE_PORT|PORT)(_.*)?")

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
    lease: Annotated[float, Meta(ge=0, le=10, description="a number of seconds from 0 to 10")] = 0.01
    get_claims: Annotated[Literal["on", "off"], Meta(description="on or off")] = "on"
    request_log: Annotated[Literal["on", "off"], Meta(description="on or off")] = "on"
    log_format: Annotated[Literal["auto", "json", "text"], Meta(description="auto, json or text")] = "auto"
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
    def from_environ(cls, environ: Mapping[str, str], options: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from `environ`, or where a command line gives them, from its `options` by field.

        Raises SettingsError for the first value that can't be used.
        """
        options = options or {}
        values: dict[str, object] = {}
        for field, kind in get_type_hints(cls, include_extras=True).items():
            named = f"--{field}" if field in options else PREFIX + field.upper()
            if (text := options.get(field, environ.get(named))) is None:
                continue
            try:
                values[field] = msgspec.convert(text, kind, strict=False)
                if values[field] is None:
                    raise ValueError("the word for nothing is not a value")
            except ValueError:
                shown = "its value" if field == "admin_token" else repr(without_password(text))
                raise SettingsError(f"{named}: {shown} is not {_allowed(kind)}") from None
        settings = cls(**values)  # type: ignore[arg-type]
        scheme = settings.store.partition("://")[0]
        if settings.store_replicas and scheme in NO_REPLICAS:
            hint = "; PostgreSQL itself waits for its standbys (synchronous_commit)" if scheme == "postgresql" else ""
            raise SettingsError(f"{PREFIX}STORE_REPLICAS: {scheme}:// has no replicas that confirm{hint}")
        return settings


def unknown(environ: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable that looks like a setting and is none."""
    fields = [field.upper() for field in Settings.__struct_fields__]
    for variable in sorted(environ):
        name = variable.removeprefix(PREFIX)
        if name != variable and name not in fields and not SERVICE_LINK.fullmatch(name):
            near = difflib.get_close_matches(name, fields, 1)
            yield f"{variable} is no setting" + (f"; {PREFIX}{near[0]} is" if near else "")


def described() -> list[tuple[str, str]]:
    """The variables, and what is allowed in each and what it is without one."""
    defaults = Settings()
    return [
        (PREFIX + field.upper(), f"{_allowed(kind)}  [default: {_shown(getattr(defaults, field))}]")
        for field, kind in get_type_hints(Settings, include_extras=True).items()
    ]


def _allowed(kind: Any) -> str:
    """What a setting's description says."""
    return next(meta.description for meta in get_args(kind) if isinstance(meta, Meta) and meta.description)


def _shown(default: object) -> str:
    return "unset" if default is None else f"{default:g}" if isinstance(default, float) else str(default)
