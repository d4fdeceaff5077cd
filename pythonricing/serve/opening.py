"""The store that a command works on, as its option, the environment or their absence says, and what is done there."""

from __future__ import annotations

import asyncio
import difflib
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import click
import msgspec
from loguru import logger

from pythonricing.counting.model import (
    NoSuchCounter,
    StateLost,
    StoreError,
    StoreUnavailable,
    StoreURLError,
    ZoneUnknown,
)
from pythonricing.counting.store import trouble
from pythonricing.serve.embedded import PATIENCE, EmbeddedError, embedded_valkey
from pythonricing.serve.failure import Failure
from pythonricing.settings import PREFIX, Settings, SettingsError, unknown, without_password
from pythonricing.stores import create_store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from pythonricing.counting.store import Store

T = TypeVar("T")

#: Counters among which one is looked for whose name is near a name that there isn't.
MAX_NEAR = 10_000


class Opening(NamedTuple):
    """The settings with the store that is chosen, and whether that is the embedded one."""

    settings: Settings
    embedded: bool

    def act(self, act: Callable[[Store], Awaitable[T]], name: str | None = None) -> T:
        """Do one thing with the store, or with the counter `name`; what goes wrong is a Failure.

        The embedded store may pass from one process to another meanwhile, so that is waited for.
        """
        settings = self.settings
        patience = max(settings.store_timeout, PATIENCE) if self.embedded else settings.store_timeout

        async def attempt(store: Store) -> T:
            while True:
                await store.ready(name)
                try:
                    return await act(store)
                except NoSuchCounter:
                    raise Failure(await _no_such_counter(store, name)) from None
                except StoreUnavailable:
                    if not self.embedded:
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
        except StateLost:
            raise Failure("the store has lost this counter's data; `pythonricing reset` starts it over") from None
        except (StoreURLError, ZoneUnknown) as error:
            raise Failure(str(error)) from None
        except StoreError as error:
            raise Failure(f"store {without_password(settings.store)} can't be used: {error}") from None
        finally:
            logger.enable("pythonricing.stores")


@contextmanager
def opening(*, serving: bool = False, **options: str | None) -> Iterator[Opening]:
    """The settings, of which a command's options come first, with the store that they, or their absence, choose.

    Also in this process's environment, where workers read them.
    """
    variable = f"{PREFIX}STORE"
    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings = Settings.from_environ(os.environ, given)
    except SettingsError as error:
        raise Failure(str(error)) from None
    if not serving:
        logger.disable("pythonricing.serve")
        for line in unknown(os.environ):
            click.echo(f"pythonricing: {line}", err=True)
        if settings.store.startswith("memory://"):
            raise Failure("counters in memory:// live inside the service; ask it over HTTP")
    os.environ.update({PREFIX + name.upper(): value for name, value in given.items()})
    if variable in os.environ:
        yield Opening(settings, False)
        return
    if settings.store_replicas:
        raise Failure(f"{PREFIX}STORE_REPLICAS: the embedded Valkey has no replicas")
    used = False
    try:
        with embedded_valkey(_stop_serving if serving else lambda: None) as url:
            used = True
            os.environ[variable] = url
            yield Opening(msgspec.structs.replace(settings, store=url), True)
    except EmbeddedError as error:
        raise Failure(str(error), 1 if used else 2) from None


async def _no_such_counter(store: Store, name: str | None) -> str:
    """That there is no such counter, and which ones have names like it."""
    names = [counter.name for counter in await store.browse(MAX_NEAR, reachable_only=True)]
    near = difflib.get_close_matches(name or "", names)
    return f"there is no counter {name}" + (f"; near it: {', '.join(near)}" if near else "")


def _stop_serving() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
