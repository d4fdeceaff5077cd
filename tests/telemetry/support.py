"""What this process would log, from one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def run(code: str) -> list[dict[str, Any]]:
    """Run code in a process of its own and return the objects on its stdout."""
    script = f"""
from pythonricing.settings import Settings
from pythonricing.telemetry import logs
writer = logs.configure(Settings())
{code}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]
