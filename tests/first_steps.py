"""Records docs/first-steps.md: what somebody sees in two terminals in the first minutes after a clone, by tmux.

`make first-steps` runs it. It clones this checkout as it is committed, and needs tmux and port 8080.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loadtests.rig.waiting import wait_until
from tests.docs_check import ROOT

PAGE = ROOT / "docs" / "first-steps.md"
#: Seconds for which any step is waited for: the first one installs everything.
PATIENCE = 300.0
#: The end of a screen on which the shell waits for the next command.
PROMPT = r"\$\Z"
HEAD = """\
# The first minutes

Two terminals on a machine with `python3`, `make` and `curl`, recorded in a fresh clone; `make first-steps` records them
anew.
"""


class Tmux:
    """Terminals side by side, each a shell in the clone."""

    def __init__(self, folder: Path, *names: str) -> None:
        self._socket = str(folder / "tmux")
        # Without colour, which the page has none of: bars show by their length, and not by it.
        shell = ["env", "-i", f"HOME={folder}", "PS1=$ ", "TERM=screen-256color", "LANG=C.UTF-8", "PATH=/usr/bin:/bin"]
        shell.append("NO_COLOR=1")
        self._home = str(folder)
        for name in names:
            size = ["-x", "100", "-y", "40"]
            self._run(
                "new-session", "-d", "-s", name, "-c", str(folder / "pythonricing"), *size, *shell, "bash", "--norc"
            )
            self.wait_for(name, PROMPT)

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-f", "/dev/null", "-S", self._socket, *words], capture_output=True, text=True, check=True
        )
        return done.stdout

    def type(self, name: str, text: str) -> None:
        self._run("send-keys", "-t", name, "-l", text)
        self._run("send-keys", "-t", name, "Enter")

    def press(self, name: str, key: str) -> None:
        self._run("send-keys", "-t", name, key)

    def screen(self, name: str) -> str:
        """What is on the screen and above it, without what is typed here and what pip says of this machine alone."""
        text = self._run("capture-pane", "-p", "-J", "-S", "-", "-t", name).replace(self._home, "~")
        lines = [line.rstrip() for line in text.splitlines() if not line.startswith(("clear; ", "WARNING: "))]
        return "\n".join(lines).strip("\n")

    def wait_for(self, name: str, pattern: str) -> str:
        """The screen, once it matches."""
        wait_until(lambda: re.search(pattern, self.screen(name), re.MULTILINE) is not None, pattern, PATIENCE)
        return self.screen(name)

    def begin(self, name: str, command: str) -> None:
        """Run a command on an empty screen."""
        self._run("send-keys", "-R", "-t", name)
        self._run("clear-history", "-t", name)
        self.type(name, f"clear; {command}")

    def do(self, name: str, command: str) -> str:
        """Run a command to its end and return what is on the screen then."""
        self.begin(name, command)
        shown = self.wait_for(name, PROMPT).removesuffix("$").rstrip()
        return f"$ {command}\n{shown}"

    def close(self) -> None:
        self._run("kill-server")


def record(tmux: Tmux) -> str:
    """The page."""
    url = "http://127.0.0.1:8080"
    program = ".venv/bin/pythonricing"
    page = [HEAD]

    def tell(text: str, *shown: str) -> None:
        page.append(text + "\n\n```text\n" + "\n\n".join(shown) + "\n```\n")

    began = time.monotonic()
    tmux.type("service", "make run")
    started = tmux.wait_for("service", "Ctrl-C")
    seconds = time.monotonic() - began
    tell(f"The first terminal, {seconds:.0f} seconds after the command, which installed everything:", started)
    tell(
        "The second one claims numbers, makes a counter, and has no claim of a misspelt `n`:",
        tmux.do("user", f"curl {url}/"),
        tmux.do("user", f"{program} set seats --limit 500"),
        tmux.do("user", f"curl -X POST '{url}/counters/seats?n=4'"),
        tmux.do("user", f"curl -X POST '{url}/counters/seats?N=4'"),
        tmux.do("user", f"{program} status seat"),
    )
    token = "$(cat ~/.local/state/pythonricing/admin-token)"
    put = f"""curl -X PUT -H "Authorization: Bearer {token}" -d '{{"limit": 3}}' {url}/counters/coupons"""
    tell("Over HTTP, with the token that the service made:", tmux.do("user", put))
    tell(
        "Two hundred ask for 100 numbers at once, of which one is gone:",
        tmux.do(
            "user", f"seq 200 | xargs -P 8 -I@ curl -s -o /dev/null -w '%{{http_code}}\\n' {url}/ | sort | uniq -c"
        ),
        tmux.do("user", f"{program} list"),
    )
    told = tmux.wait_for("service", r"default 100 of 100: .*refused").split("Ctrl-C\n")[1].strip()
    tell("What the first terminal says of that:", told)
    tmux.begin("user", f"{program} watch")
    watched = tmux.wait_for("user", r"^seats .*open")
    tmux.press("user", "C-c")
    tell(f"`{program} watch`; the page at `{url}/watch` shows the same and more:", watched)
    tmux.wait_for("user", PROMPT)
    tell("Whether all is as it should be, on this machine:", tmux.do("user", f"{program} doctor"))
    before = tmux.screen("service")
    tmux.press("service", "C-c")
    tell(
        "And Ctrl-C in the first terminal:",
        tmux.wait_for("service", PROMPT)[len(before) :].strip().removesuffix("$").rstrip(),
    )
    tell("The count is kept:", tmux.do("user", f"{program} status"))
    return "\n".join(page)


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), f"{folder}/pythonricing"], check=True)
        tmux = Tmux(Path(folder), "service", "user")
        try:
            PAGE.write_text(record(tmux))
        finally:
            tmux.press("service", "C-c")
            wait_until(lambda: tmux.screen("service").endswith("$"), "the service to end")
            tmux.close()
    print(PAGE.relative_to(ROOT), file=sys.stderr)


if __name__ == "__main__":
    main()
