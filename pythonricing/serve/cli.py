"""The command line: serve, watch, schema, doctor, and the commands about counters."""

from __future__ import annotations

import os
import sys
import threading
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from loguru import logger

from pythonricing.serve import servers
from pythonricing.serve.address import Address, free
from pythonricing.serve.commands import COMMANDS
from pythonricing.serve.doctor import cpus, doctor
from pythonricing.serve.embedded import admin_token
from pythonricing.serve.failure import Failure
from pythonricing.serve.opening import opening
from pythonricing.serve.welcome import welcome
from pythonricing.settings import PREFIX, described, without_password

if TYPE_CHECKING:
    from click import Context, HelpFormatter


class Program(click.Group):
    """Commands of which each fails in one line, also where what it prints can't be written."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        if sys.stdout is None:  # closed, as by `>&-`: what is printed must fail, as on a full disk
            os.dup2(os.open(os.devnull, os.O_RDONLY), 1)
            os.set_inheritable(1, True)  # workers have it too
            sys.stdout = os.fdopen(1, "w")
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            try:
                print(flush=True)  # is it that?
            except OSError:
                # What is left to write would fail once more at the end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                Failure(f"can't print: {error.strerror}").show()
                sys.exit(1)
            raise


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    commands={**COMMANDS, "doctor": doctor},
)
@click.version_option(package_name="pythonricing")
@click.pass_context
def main(context: Context) -> None:
    """A counter service that admits exactly N requests."""
    if os.environ.get("NO_COLOR"):
        context.color = False


class WithSettings(click.Command):
    """A command whose help names the settings too."""

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:
        with formatter.section("Settings, from the environment"):
            formatter.write_dl(described())


@main.command(cls=WithSettings)
@click.option("--server", type=click.Choice(list(servers.SERVERS)), default="granian", show_default=True)
@click.option("--workers", type=click.IntRange(1, 1024), help="Worker processes.  [default: the CPUs of this process]")
@click.option("--host", default="127.0.0.1", show_default=True, help="A name or an address.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--uds", metavar="PATH", help="Listen on a Unix socket instead.")
@click.option("--store", help=f"Store URL; overrides {PREFIX}STORE.  [default: an embedded Valkey]")
@click.option("--limit", help=f"Limit of the counter 'default'; overrides {PREFIX}LIMIT.")
def serve(
    server: str, workers: int | None, host: str, port: int, uds: str | None, store: str | None, limit: str | None
) -> None:
    """Serve the counters over HTTP."""
    workers = workers or cpus()
    with opening(serving=True, store=store, limit=limit) as opened:
        address = free(host, port, uds)
        opened.act(lambda store: store.ready())
        token = None
        if opened.embedded and opened.settings.admin_token is None:
            os.environ[f"{PREFIX}ADMIN_TOKEN"], token = admin_token()
        _serve(server, address, workers, without_password(opened.settings.store), token)


def _serve(server: str, address: Address, workers: int, store: str, token: Path | None) -> None:
    """Run the server until a signal ends it; on a terminal, say what to do next once it answers."""
    from pythonricing.serve import supervisor  # which loads what the workers share

    supervisor.prepare()
    logger.bind(url=address.url, store=store, server=server, workers=workers).info(
        "{} workers of {} on {}, counting in {}", workers, server, address.url, store
    )
    if sys.stderr.isatty():
        threading.Thread(target=welcome, args=(address, token), daemon=True).start()
    try:
        (servers.granian if server == "granian" else servers.uvicorn)(address, workers)
    except ImportError:
        raise Failure("uvicorn is not installed: pip install uvicorn httptools") from None
    finally:
        if address.uds is not None:
            Path(address.uds).unlink(missing_ok=True)


@main.command()
@click.argument("url", default="http://127.0.0.1:8080")
def watch(url: str) -> None:
    """Watch the counters of the service at URL as they move, until Ctrl-C."""
    try:
        from pythonricing.serve import terminal
    except ImportError:
        raise Failure("watching in a terminal needs rich: pip install 'pythonricing[watch]'") from None
    try:
        terminal.watch(url)
    except (terminal.NoEvents, ValueError) as error:
        raise Failure(str(error)) from None
    except KeyboardInterrupt:
        pass


@main.command()
def schema() -> None:
    """Print the SQL that installs the PostgreSQL store's schema, for an administrator to run."""
    click.echo(resources.files("pythonricing.stores.postgres").joinpath("schema.sql").read_text(), nl=False)
