"""What a tree of processes has cost: CPU, context switches, memory."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

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


def context_switches(process: psutil.Process) -> int:
    """Voluntary and involuntary, of all threads: /proc/PID/status has the main thread's alone."""
    if not LINUX:
        return sum(process.num_ctx_switches())
    total = 0
    for status in Path(f"/proc/{process.pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):
            total += sum(int(line.split()[1]) for line in status.read_text().splitlines() if "_ctxt_switches:" in line)
    return total


@dataclass(frozen=True)
class Usage:
    """What a tree of processes has used until now: for each process seconds of CPU and context switches."""

    cpu: dict[int, float]
    switches: dict[int, int]
    resident: dict[int, int]
    workers: frozenset[int]

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Read a process and all its descendants. Empty when it has ended."""
        cpu: dict[int, float] = {}
        switches: dict[int, int] = {}
        resident: dict[int, int] = {}
        helpers = set()
        try:
            root = psutil.Process(pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            tree = []
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                cpu[process.pid] = cpu_seconds(process)
                switches[process.pid] = context_switches(process)
                resident[process.pid] = process.memory_info().rss
                if any("resource_tracker" in word for word in process.cmdline()):
                    helpers.add(process.pid)
        children = cpu.keys() - helpers - {pid}
        return cls(cpu, switches, resident, frozenset(children or cpu.keys() - helpers))

    def cpu_since(self, before: Usage) -> float:
        return sum(seconds - before.cpu.get(pid, 0.0) for pid, seconds in self.cpu.items())

    def switches_since(self, before: Usage) -> int:
        return sum(count - before.switches.get(pid, 0) for pid, count in self.switches.items())

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


def machine_busy_seconds() -> float:
    """Seconds of CPU that everything on this machine has used since it started."""
    times = psutil.cpu_times()
    busy: float = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
    return busy


def stolen_seconds() -> float:
    """Seconds of CPU that this machine's host gave to others meanwhile (steal); 0 where the kernel doesn't say."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))
