"""Earlier revisions of this project, each in a folder of its own for as long as this process lives."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from functools import cache
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

from loadtests.rig.processes import Unavailable

ROOT = Path(__file__).resolve().parent.parent


@cache
def checkout(revision: str) -> Path:
    """The files of a revision, as git has them. Raises Unavailable where there is none of that name."""
    try:
        archive = subprocess.run(
            ["git", "-C", ROOT, "archive", "--format=zip", resolve(revision)], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"git can't bring revision {revision}: {error}") from None
    folder = tempfile.mkdtemp(prefix="loadtests-revision-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with ZipFile(BytesIO(archive.stdout)) as files:
        files.extractall(folder)
    return Path(folder)


@cache
def resolve(revision: str) -> str:
    """The commit that it names. Raises Unavailable."""
    try:
        done = subprocess.run(
            ["git", "-C", ROOT, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise Unavailable(f"no git: {error.strerror}") from None
    if done.returncode != 0:
        raise Unavailable(f"there is no revision {revision}")
    return done.stdout.strip()
