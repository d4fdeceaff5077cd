"""`python -m loadtests.open_model URL --rate 1000`: load in the open model, and what it measured as JSON.

No tool from PyPI, Debian or npm does all of this: vegeta and autocannon know no Poisson arrivals and check no answer,
wrk2 isn't packaged, Locust is a closed loop, and none of them reports its own lateness.
"""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import time
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import click
import uvloop

from loadtests.latencies import Latencies
from loadtests.open_model.generator import Generator
from loadtests.open_model.outcome import judged
from loadtests.open_model.schedule import Arrivals, schedule


@click.command()
@click.argument("url")
@click.option("--rate", type=click.FloatRange(min=1), required=True, help="Requests a second.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True)
@click.option("--arrivals", type=click.Choice(["poisson", "constant"]), default="poisson", show_default=True)
@click.option("--connections", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--fresh", is_flag=True, help="A new connection for each request, at most so many at once.")
@click.option("--timeout", type=click.FloatRange(min=0.01), default=2.0, show_default=True, help="Seconds.")
@click.option("--limit", type=int, help="As it was set; without it, any 200 is right.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--ca", type=click.Path(path_type=Path), help="Certificates that https is checked against.")
@click.option("--output", type=click.Path(path_type=Path), help="File for the figures, as JSON.")
@click.option("--hgrm", type=click.Path(path_type=Path), help="File for the percentiles.")
def main(
    url: str,
    rate: float,
    seconds: float,
    arrivals: Arrivals,
    connections: int,
    fresh: bool,
    timeout: float,
    limit: int | None,
    seed: int,
    ca: Path | None,
    output: Path | None,
    hgrm: Path | None,
) -> None:
    """Ask URL at a rate, whatever it answers."""
    parts = urlsplit(url)
    tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
    close = "Connection: close\r\n" if fresh else ""
    request = f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n{close}\r\n".encode()
    port = parts.port or (443 if tls else 80)
    generator = Generator(
        parts.hostname or "127.0.0.1", port, request, connections=connections, timeout=timeout, tls=tls, fresh=fresh
    )
    moments = schedule(rate, seconds, arrivals, seed)
    gc.disable()  # nothing that it makes goes in circles, and a collection would be lateness
    cpu = time.process_time()
    try:
        asked = uvloop.run(generator.run(moments))
    except (OSError, asyncio.CancelledError) as error:
        raise click.ClickException(f"{url} can't be reached: {error}") from None
    cpu = time.process_time() - cpu
    found = judged(asked, rate, seconds, limit)
    found.generator_seconds = cpu
    if output is not None:
        output.write_text(json.dumps(asdict(found)))
    if hgrm is not None:
        Latencies(found.latencies).write_hgrm(hgrm)
    words = {name: value for name, value in asdict(found).items() if name not in ("latencies", "lateness")}
    click.echo(json.dumps(words | {"void": found.void}))


if __name__ == "__main__":
    main()
