"""An event loop on a seed: virtual time, and many processes that run in turn on it.

Each process of the world is what an operating system's process with an event loop of its own would be. Within one,
callbacks run first in, first out, as asyncio promises; which process runs next, and which of several events that are
due at the same time comes first, is drawn from the seed. Time passes only when nobody has anything to do, so that a
second costs what happens in it. No socket, no thread, no sleeping.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

#: Steps after which a history is given up: the longest take half of them.
MAX_STEPS = 2_000_000


class Endless(Exception):
    """A world in which things go on and on."""


class Handle:
    """A callback that is to run: what asyncio's Handle and TimerHandle are to whoever gets one, in half the time."""

    __slots__ = ("_cancelled", "_when", "args", "callback", "context", "process")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context,
        process: Process,
        when: float = 0.0,
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.process = process
        self._when = when
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self._when


class Process:
    """Something that runs by itself: it can be paused, and killed at any moment."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.ready: deque[Handle] = deque()
        self.queued = False  # whether the world knows that it has something to do
        #: Kept until the end of the world: a killed process's coroutines must not run their `finally`.
        self.tasks: list[asyncio.Task[Any]] = []
        self._world = world
        world.processes.append(self)
        self._context = copy_context()
        self._context.run(PROCESS.set, self)

    def call(self, callback: Callable[..., Any], *args: Any) -> None:
        """Have `callback` run in this process, after what it has to do already."""
        self._world.call_soon(callback, *args, context=self._context)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine in this process."""
        task: asyncio.Task[T] = self._world.create_task(coroutine, context=self._context.copy())
        return task

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._world.wake(self)

    def kill(self) -> None:
        """Nothing of it runs any more, not even what would clean up."""
        self.alive = False
        self.ready.clear()


#: The process that runs.
PROCESS: ContextVar[Process] = ContextVar("PROCESS")


class World(asyncio.AbstractEventLoop):
    """The event loop of a history.

    `errors` holds what callbacks raised: nothing here is meant to.
    """

    def __init__(self, seed: int | str) -> None:
        self.random = random.Random(f"world {seed}")
        self.errors: list[str] = []
        self.steps = 0
        self._now = 0.0
        self._timers: list[tuple[float, float, int, Handle]] = []
        self._timer_number = 0
        self._runnable: list[Process] = []
        self._closed = False
        self._running = False
        self.processes: list[Process] = []
        self.outside = Process(self, "outside")

    @classmethod
    def of(cls, seed: int | str) -> World:
        """A world; mypy doesn't let AbstractEventLoop be subclassed without what nobody here asks of a loop."""
        return cls(seed)

    # What asyncio's futures, tasks and timeouts ask of a loop.

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coroutine: Any, *, name: str | None = None, context: Context | None = None) -> Any:
        task = asyncio.Task(coroutine, loop=self, name=name or "task", context=context)
        (PROCESS.get(self.outside) if context is None else context.get(PROCESS, self.outside)).tasks.append(task)
        return task

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        if context is None:
            context = copy_context()
        process = context.get(PROCESS, self.outside)
        handle = Handle(callback, args, context, process)
        if process.alive and not self._closed:
            process.ready.append(handle)
            self.wake(process)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        if context is None:
            context = copy_context()
        timer = Handle(callback, args, context, context.get(PROCESS, self.outside), when)
        if not self._closed:
            self._timer_number += 1
            # Timers of one moment come in an order that is drawn.
            heapq.heappush(self._timers, (when, self.random.random(), self._timer_number, timer))
        return timer

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed and "never retrieved" not in context.get("message", ""):
            self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    async def shutdown_asyncgens(self) -> None:
        """None are used."""

    def close(self) -> None:
        self._closed = True

    def inspect(self) -> None:
        """Add what tasks of the service or of the simulation raised, although nobody was there to get it."""
        for process in self.processes:
            for task in process.tasks:
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    name = getattr(task.get_coro(), "__qualname__", "")
                    if name.startswith(("Link.", "Lane.", "Counters._")):
                        self.errors.append(f"{process.name}: {name}: {error!r}")

    # Running.

    def wake(self, process: Process) -> None:
        if not process.queued and process.ready and not process.paused:
            process.queued = True
            self._runnable.append(process)

    def run_until_complete(self, future: Any) -> Any:
        """Run the world until `future` is done, and return its result. Raises RuntimeError if nothing is left to do."""
        task = self.outside.start(future) if asyncio.iscoroutine(future) else future
        asyncio._set_running_loop(self)
        self._running = True
        try:
            while not task.done():
                self._run_ready()
                if not task.done():
                    self._pass_time()
        finally:
            self._running = False
            asyncio._set_running_loop(None)
        return task.result()

    def _run_ready(self) -> None:
        runnable = self._runnable
        draw = self.random.random
        while runnable:
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise Endless(f"after {self.steps:,} steps, {self._now:.0f} s have passed: {runnable[0].ready}")
            place = int(draw() * len(runnable)) if len(runnable) > 1 else 0
            process = runnable[place]
            ready = process.ready
            if ready and not process.paused:
                handle = ready.popleft()
                if not handle.cancelled():
                    try:
                        handle.context.run(handle.callback, *handle.args)
                    except Exception as error:
                        self.errors.append(f"{process.name}: {handle.callback}: {error!r}")
            if not ready or process.paused:
                process.queued = False
                runnable[place] = runnable[-1]
                runnable.pop()

    def _pass_time(self) -> None:
        """Go on to the next moment at which something happens, and let it begin."""
        timers = self._timers
        while timers and timers[0][3].cancelled():
            heapq.heappop(timers)
        if not timers:
            raise RuntimeError("the world stands still: nothing is left to happen")
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            _, _, _, timer = heapq.heappop(timers)
            process = timer.process
            if process.alive and not timer.cancelled():
                process.ready.append(timer)
                self.wake(process)
