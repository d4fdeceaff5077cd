"""What a tree of processes has cost: CPU and memory."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass

import psutil

LINUX = sys.platform == "linux"


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time that a process has used.

    On Linux from its CPU clock, to the nanosecond (clock_getcpuclockid(3) gives the identifier); /proc/PID/stat counts
    in ticks of 10 ms, which in 16 workers and a run of a second is as much as what is to be measured.
    """
    if LINUX:
        try:
            return time.clock_gettime((~process.pid << 3) | 2)
        except OSError:
            raise psutil.NoSuchProcess(process.pid) from None
    times = process.cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True)
class Usage:
    """What a tree of processes has used until now: for each process seconds of CPU, and its memory."""

    cpu: dict[int, float]
    resident: dict[int, int]
    workers: frozenset[int]

    @classmethod
    def of(cls, *pids: int) -> Usage:
        """Read processes and all their descendants. Empty when they have ended."""
        cpu: dict[int, float] = {}
        resident: dict[int, int] = {}
        helpers = set()
        for process in [process for pid in pids for process in _tree(pid)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                cpu[process.pid] = cpu_seconds(process)
                resident[process.pid] = process.memory_info().rss
                if any("resource_tracker" in word for word in process.cmdline()):
                    helpers.add(process.pid)
        children = cpu.keys() - helpers - set(pids)
        return cls(cpu, resident, frozenset(children or cpu.keys() - helpers))

    def cpu_since(self, before: Usage) -> float:
        return sum(seconds - before.cpu.get(pid, 0.0) for pid, seconds in self.cpu.items())

    def same_processes(self, before: Usage) -> bool:
        return self.cpu.keys() == before.cpu.keys()

    @property
    def resident_mb(self) -> float:
        return sum(self.resident.values()) / 1e6

    @property
    def worker_mb(self) -> float:
        """Mean resident memory of a worker; servers with a single worker may serve from their first process."""
        sizes = [self.resident.get(pid, 0) for pid in self.workers]
        return sum(sizes) / len(sizes) / 1e6 if sizes else 0.0


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def machine_busy_seconds() -> float:
    """Seconds of CPU that everything on this machine has used since it started."""
    times = psutil.cpu_times()
    busy: float = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
    return busy


def stolen_seconds() -> float:
    """Seconds of CPU that this machine's host gave to others meanwhile (steal); 0 where the kernel doesn't say."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))
