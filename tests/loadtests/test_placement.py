from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.placement import CPUS, PLACEMENTS, affinity, listed, pin, placements
from loadtests.rig.processes import spawn, stop
from loadtests.rig.waiting import wait_until


def test_the_cores_decide_which_ways_there_are() -> None:
    assert list(placements([3])) == ["free"]
    if "apart" not in PLACEMENTS and len(CPUS) < 2:
        pytest.skip("this machine can't pin")
    two, four = placements([0, 1]), placements([0, 1, 2, 3])
    assert list(two) == ["free", "apart", "alone"]
    assert (two["apart"].generator, two["apart"].server, two["apart"].store) == ((0,), (1,), (1,))
    assert (two["alone"].generator, two["alone"].server, two["alone"].store) == ((0,), (1,), (0,))
    assert (four["each"].generator, four["each"].store, four["each"].server) == ((0,), (1,), (2, 3))
    assert two["apart"].prefix() == ["taskset", "-c", "0"]
    assert two["free"].prefix() == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this machine can't pin")
def test_every_thread_of_a_tree_is_pinned_and_let_go() -> None:
    child = "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)"
    process = spawn(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"],
        output=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: len(list(Path(f"/proc/{_child(process.pid)}/task").iterdir())) == 2, "the child's thread")
        pin(process.pid, (CPUS[-1],))
        assert affinity(process.pid) == str(CPUS[-1])
        pin(process.pid, ())
        assert affinity(process.pid) == listed(CPUS)
    finally:
        stop(process)
    assert affinity(process.pid) == ""


def _child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid
