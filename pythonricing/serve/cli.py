"""The command line: serve, status, reset, watch, schema."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec
from loguru import logger

from pythonricing.counting.counters import Counters
from pythonricing.counting.journal import Journal
from pythonricing.counting.model import (
    DEFAULT,
    NoSuchCounter,
    StateLost,
    StoreError,
    StoreUnavailable,
    StoreURLError,
)
from pythonricing.counting.store import trouble
from pythonricing.serve import servers
from pythonricing.serve.embedded import PATIENCE, EmbeddedError, embedded_url, embedded_valkey
from pythonricing.settings import PREFIX, Settings, SettingsError, without_password
from pythonricing.stores import create_store
from pythonricing.telemetry import logs
from pythonricing.telemetry.workers import host as host_workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from pythonricing.counting.store import Store

T = TypeVar("T")


@click.group()
@click.version_option(package_name="pythonricing")
def main() -> None:
    """A counter service that admits exactly N requests."""


@main.command()
@click.option("--server", type=click.Choice(list(servers.SERVERS)), default="granian", show_default=True)
@click.option("--workers", type=click.IntRange(1, 1024), help="Worker processes.  [default: the CPUs of this process]")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--store", help=f"Store URL; overrides {PREFIX}STORE.  [default: an embedded Valkey]")
@click.option("--limit", help=f"Limit of the counter 'default'; overrides {PREFIX}LIMIT.")
def serve(server: str, workers: int | None, host: str, port: int, store: str | None, limit: str | None) -> None:
    """Serve the counters over HTTP."""
    workers = workers or _cpus()
    if limit is not None:
        os.environ[f"{PREFIX}LIMIT"] = limit
    with _store(store, serving=True) as settings:
        _check_port(host, port)
        _with_store(settings, lambda opened: opened.ready())
        logs.configure(settings.log_level)
        host_workers()
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        shown = without_password(settings.store)
        logger.bind(url=where, store=shown, server=server, workers=workers).info(
            "{} workers of {} on {}, counting in {}", workers, server, where, shown
        )
        if sys.stderr.isatty():
            click.echo(f"pythonricing: {where}, {workers} workers of {server}, counting in {shown}", err=True)
        servers.allow_connections()
        try:
            (servers.granian if server == "granian" else servers.uvicorn)(host, port, workers)
        except ImportError:
            raise _fail("uvicorn is not installed: pip install uvicorn httptools") from None


@main.command()
@click.argument("name", default=DEFAULT)
@click.option("--store", help=f"Store URL; overrides {PREFIX}STORE.  [default: the embedded Valkey]")
def status(name: str, store: str | None) -> None:
    """Print the state of the counter NAME."""
    with _store(store) as settings:
        counter = _with_store(settings, lambda opened: opened.read(name), name)
        halted = ", halted" if counter.count >= counter.limit else ""
        click.echo(f"{counter.name}: {counter.count} of {counter.limit}{halted}")


@main.command()
@click.argument("name", default=DEFAULT)
@click.option("--store", help=f"Store URL; overrides {PREFIX}STORE.  [default: the embedded Valkey]")
def reset(name: str, store: str | None) -> None:
    """Start the counter NAME over at 0, also after its store has lost data; its limit stays."""
    with _store(store) as settings:

        async def start_over(opened: Store) -> str:
            counters = Counters(opened, Journal(), timeout=settings.store_timeout)
            await counters.open()
            counter = await counters.restart(name, settings.limit if name == DEFAULT else None)
            return f"{counter.name}: {counter.count} of {counter.limit}"

        click.echo(_with_store(settings, start_over, name))


@main.command()
@click.argument("url", default="http://127.0.0.1:8080")
def watch(url: str) -> None:
    """Watch the counters of the service at URL as they move, until Ctrl-C."""
    try:
        from pythonricing.serve import terminal
    except ImportError:
        raise _fail("watching in a terminal needs rich: pip install 'pythonricing[watch]'") from None
    try:
        terminal.watch(url)
    except (terminal.NoEvents, ValueError) as error:
        raise _fail(str(error)) from None
    except KeyboardInterrupt:
        pass


@main.command()
def schema() -> None:
    """Print the SQL that installs the PostgreSQL store's schema, for an administrator to run."""
    click.echo(resources.files("pythonricing.stores.postgres").joinpath("schema.sql").read_text(), nl=False)


def _fail(message: str, status: int = 2) -> SystemExit:
    click.echo(f"pythonricing: {message}", err=True)
    return SystemExit(status)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextmanager
def _store(url: str | None, *, serving: bool = False) -> Iterator[Settings]:
    """The settings, with the store that the option, the environment or the embedded Valkey gives, in this order."""
    variable = f"{PREFIX}STORE"
    if not serving:
        logger.disable("pythonricing.serve")
    try:
        if url is not None:
            os.environ[variable] = url
        settings = Settings.from_environ(os.environ)
    except SettingsError as error:
        raise _fail(str(error)) from None
    if not serving and settings.store.startswith("memory://"):
        raise _fail("counters in memory:// live inside the service; ask it over HTTP")
    if variable in os.environ:
        yield settings
        return
    if settings.store_replicas:
        raise _fail(f"{PREFIX}STORE_REPLICAS: the embedded Valkey has no replicas")
    used = False
    try:
        with embedded_valkey(_stop_serving if serving else lambda: None) as url:
            used = True
            os.environ[variable] = url  # workers read it from the environment
            yield msgspec.structs.replace(settings, store=url)
    except EmbeddedError as error:
        raise _fail(str(error), 1 if used else 2) from None


def _stop_serving() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _with_store(settings: Settings, act: Callable[[Store], Awaitable[T]], name: str | None = None) -> T:
    """Do one thing with the store, or with the counter `name`; what goes wrong is one line and exit status 2.

    The embedded store may pass from one process to another meanwhile, so that is waited for.
    """
    embedded = settings.store == embedded_url()
    patience = max(settings.store_timeout, PATIENCE) if embedded else settings.store_timeout

    async def attempt(store: Store) -> T:
        while True:
            await store.ready(name)
            try:
                return await act(store)
            except StoreUnavailable:
                if not embedded:
                    raise

    async def run() -> T:
        # A connection that is given up leaves futures behind whose errors interest nobody.
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        store = create_store(settings.store, settings.store_timeout, settings.store_replicas, settings.on_loss)
        await store.open()
        try:
            async with asyncio.timeout(patience):
                return await attempt(store)
        except TimeoutError:
            raise StoreError(trouble(store) or "no answer in time") from None
        finally:
            await store.close()

    logger.disable("pythonricing.stores")
    try:
        return asyncio.run(run())
    except NoSuchCounter:
        raise _fail("there is no such counter") from None
    except StateLost:
        raise _fail("the store has lost this counter's data; `pythonricing reset` starts it over") from None
    except StoreURLError as error:
        raise _fail(str(error)) from None
    except StoreError as error:
        raise _fail(f"store {without_password(settings.store)} can't be used: {error}") from None
    finally:
        logger.enable("pythonricing.stores")


def _check_port(host: str, port: int) -> None:
    """Fail if something listens there: Granian's workers share a port and would share it with a stranger too."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise _fail(f"can't listen on {host}:{port}: {error.strerror or error}") from None
