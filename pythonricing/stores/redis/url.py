"""What the URLs of Redis and Valkey say: redis-py reads them, and what they mean for a pipeline is decided here."""

from __future__ import annotations

import os
import re
import ssl
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

import msgspec
from redis.asyncio.connection import parse_url

from pythonricing.counting.model import StoreURLError
from pythonricing.settings import without_password

#: Options that mean something for a connection of ours.
CONNECTION = {"username", "password", "db", "client_name", "socket_timeout", "socket_connect_timeout", "eviction"}
TLS = {
    "ssl_keyfile",
    "ssl_certfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_include_verify_flags",
    "ssl_exclude_verify_flags",
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_min_version",
    "ssl_ciphers",
}
#: Options that redis-py's URLs have and one pipelined connection has no use for: accepted, so that a URL can be shared.
WITHOUT_EFFECT = {
    "decode_responses",
    "encoding",
    "encoding_errors",
    "health_check_interval",
    "lib_name",
    "lib_version",
    "legacy_responses",
    "max_connections",
    "protocol",
    "retry_on_timeout",
    "socket_read_size",
}
VERIFICATION = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class Address(NamedTuple):
    """Where a server listens: a host and a port, or the path of its socket."""

    host: str = "localhost"
    port: int = 6379
    path: str = ""

    def __str__(self) -> str:
        """How the server is called in messages and metrics."""
        return self.path or f"{self.host}:{self.port}"


class Options(msgspec.Struct, frozen=True):
    """How to connect to a server."""

    address: Address
    username: str | None
    password: str | None
    db: int
    client_name: str
    #: Seconds for the connection and for each part of the greeting; None: what the store's time-out leaves.
    connect_timeout: float | None
    reply_timeout: float | None
    keepalive: bool
    #: Whether the server may evict keys, and with them receipts, idempotency keys and counters.
    eviction: bool
    tls: ssl.SSLContext | None
    #: The URL's words about TLS, for redis-py's own clients: those that ask Sentinels and clusters.
    tls_words: dict[str, Any]


class SentinelOptions(msgspec.Struct, frozen=True):
    """How to ask Sentinels for the master of a service, and how to connect to that."""

    service: str
    sentinels: list[tuple[str, int]]
    #: The Sentinels' own.
    username: str | None
    password: str | None
    data: Options


class ClusterOptions(msgspec.Struct, frozen=True):
    """Nodes of a cluster, and how to connect to each."""

    seeds: list[tuple[str, int]]
    data: Options


def read(url: str, where: str | None = None) -> Options:
    """Read `redis://`, `rediss://` and `unix://`. Raises StoreURLError, which calls the store `where`."""
    where = where or without_password(url)
    scheme = url.partition("://")[0]
    try:
        db = urlsplit(url).path.strip("/")
        if scheme != "unix" and db and not db.isdecimal():  # redis-py would take database 0
            raise StoreURLError(f"{where}: after the host only the number of a database may follow")
        words: dict[str, Any] = dict(parse_url(url))
        words.pop("connection_class", None)
        place = {"path"} if scheme == "unix" else {"host", "port"}
        known = CONNECTION | WITHOUT_EFFECT | place
        if scheme != "unix":
            known = known | {"socket_keepalive"}
        if scheme == "rediss":
            known = known | TLS
        if unknown := words.keys() - known:
            hint = "; TLS is rediss://" if unknown & TLS else ""
            raise StoreURLError(f"{where}: {scheme}:// has no option {min(unknown)}{hint}")
        address = Address(words.get("host", "localhost"), int(words.get("port", 6379)), words.get("path", ""))
        if words.get("eviction", "allowed") != "allowed":
            raise StoreURLError(f"{where}: eviction can only be allowed, as in eviction=allowed")
        tls_words = {name: value for name, value in words.items() if name in TLS}
        tls = None
        if scheme == "rediss":  # else not even made: it reads the machine's certificates, which takes some 30 ms
            tls = _context(**{name.removeprefix("ssl_"): value for name, value in tls_words.items()})
    except (ValueError, OSError) as error:
        raise StoreURLError(f"{where}: {error}") from None
    if scheme == "unix" and not address.path:
        raise StoreURLError(f"{where}: the path must name the socket")
    return Options(
        address=address,
        username=words.get("username"),
        password=words.get("password"),
        db=words.get("db", 0),
        client_name=words.get("client_name", f"pythonricing-{os.getpid()}"),
        connect_timeout=words.get("socket_connect_timeout"),
        reply_timeout=words.get("socket_timeout"),
        keepalive=words.get("socket_keepalive", True) is not False,
        eviction="eviction" in words,
        tls=tls,
        tls_words={"ssl": True, **tls_words} if scheme == "rediss" else {},
    )


def read_sentinel(url: str) -> SentinelOptions:
    """Read `redis+sentinel://[user:password@]host:port,host:port/service[/db][?options]`. Raises StoreURLError.

    User and password are the data servers'; the Sentinels' own are the options `sentinel_username` and
    `sentinel_password`. The other options are those of `read`. `rediss+sentinel://` is TLS to both.
    """
    where, netloc, parts = without_password(url), *_split(url)
    sentinels = _addresses(netloc, 26379, where)
    service, _, db = parts.path.removeprefix("/").partition("/")
    if not service:
        raise StoreURLError(f"{where}: the path must name the service, as in /mymaster")
    if db and not db.isdecimal():
        raise StoreURLError(f"{where}: after the service only the number of a database may follow")
    query = parse_qsl(parts.query, keep_blank_values=True)
    own = {name: value for name, value in query if name.startswith("sentinel_")}
    if unknown := own.keys() - {"sentinel_username", "sentinel_password"}:
        raise StoreURLError(f"{where}: there is no option {min(unknown)}")
    rest = urlencode([(name, value) for name, value in query if name not in own])
    user, at, _ = netloc.rpartition("@")
    data = read(f"{parts.scheme.partition('+')[0]}://{user}{at}sentinel/{db}?{rest}", where)
    return SentinelOptions(service, sentinels, own.get("sentinel_username"), own.get("sentinel_password"), data)


def read_cluster(url: str) -> ClusterOptions:
    """Read `redis+cluster://[user:password@]host:port,host:port[?options]`: any of its nodes. Raises StoreURLError."""
    where, netloc, parts = without_password(url), *_split(url)
    if parts.path.strip("/"):
        raise StoreURLError(f"{where}: a cluster has no databases or services to choose by a path")
    seeds = _addresses(netloc, 6379, where)
    user, at, _ = netloc.rpartition("@")
    data = read(f"{parts.scheme.partition('+')[0]}://{user}{at}cluster?{parts.query}", where)
    if data.db:
        raise StoreURLError(f"{where}: a cluster has no databases")
    return ClusterOptions(seeds, data)


def _split(url: str) -> tuple[str, SplitResult]:
    """The servers that a URL names, with user and password, and the URL without them.

    With several of which one is an IPv6 address urlsplit refuses it whole, since CPython 3.11.12, 3.12.9 and 3.13.2.
    """
    scheme, _, rest = url.partition("://")
    netloc = re.split("[/?#]", rest, maxsplit=1)[0]
    return netloc, urlsplit(f"{scheme}://{rest[len(netloc) :]}")


def _addresses(netloc: str, port: int, where: str) -> list[tuple[str, int]]:
    """The servers that a URL names, with a port for those that have none. Raises StoreURLError."""
    found = []
    for address in netloc.rpartition("@")[2].split(","):
        try:
            parts = urlsplit(f"//{address}")
            host, given = parts.hostname, parts.port
        except ValueError as error:
            raise StoreURLError(f"{where}: {error}") from None
        if not host or parts.path:
            raise StoreURLError(f"{where}: servers are named like host:port,host:port")
        found.append((host, port if given is None else given))
    return found


def _context(
    keyfile: str | None = None,
    certfile: str | None = None,
    password: str | None = None,
    cert_reqs: str = "required",
    check_hostname: bool = True,
    include_verify_flags: list[ssl.VerifyFlags] | None = None,
    exclude_verify_flags: list[ssl.VerifyFlags] | None = None,
    ca_certs: str | None = None,
    ca_data: str | None = None,
    ca_path: str | None = None,
    min_version: int | None = None,
    ciphers: str | None = None,
) -> ssl.SSLContext:
    """What redis-py's options for TLS mean. Raises ValueError and OSError."""
    if cert_reqs not in VERIFICATION:
        raise ValueError(f"ssl_cert_reqs is one of {', '.join(VERIFICATION)}")
    context = ssl.create_default_context()
    context.check_hostname = check_hostname and cert_reqs != "none"
    context.verify_mode = VERIFICATION[cert_reqs]
    for flag in include_verify_flags or ():
        context.verify_flags |= flag
    for flag in exclude_verify_flags or ():
        context.verify_flags &= ~flag
    if certfile or keyfile:
        context.load_cert_chain(certfile or "", keyfile, password)
    if ca_certs or ca_data or ca_path:
        context.load_verify_locations(ca_certs, ca_path, ca_data)
    if min_version is not None:
        context.minimum_version = ssl.TLSVersion(min_version)
    if ciphers is not None:
        context.set_ciphers(ciphers)
    return context
