"""Begins a job in the background, on the machine that it was sent to, and asks after it.

    python3 ROOT/bundle/start.py begin ROOT [--seconds N] [--install] [--venv DIR] [--python PROGRAM]
    python3 ROOT/bundle/start.py status ROOT        a line: the state, and what is to be known of it
    python3 ROOT/bundle/start.py stop ROOT          asks it to save and end

`ROOT/bundle` is what was sent; what the job prints comes to `ROOT/log.txt`, its run to `ROOT/run`. With `begin`,
variables for the run are read from standard input as an object of JSON, where that is no terminal: secrets are in no
file and on no command line. Needs Linux or macOS, and Python 3.8 and nothing else.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BEGINS = 30.0
"""Seconds that a job may take to say that it is at work."""


def begin(asked: argparse.Namespace) -> int:
    """Start the job in the background, as a unit of systemd's where the user has that, so that it outlives a log-out;
    gives 0 once it is at work.
    """
    root = Path(asked.root)
    given = json.loads(sys.stdin.read() or "{}") if not sys.stdin.isatty() else {}
    environment = {**os.environ, **given}
    words = [sys.executable, str(Path(__file__).absolute().with_name("work.py")), str(root.absolute())]
    words += [
        word
        for name in ("seconds", "venv", "python")
        if getattr(asked, name)
        for word in (f"--{name}", str(getattr(asked, name)))
    ]
    words += ["--install"] if asked.install else []
    if is_at_work(root):
        return 0
    since = time.time()
    with (root / "log.txt").open("ab") as log:
        if not (shutil.which("systemd-run") and _as_unit(words, root, environment, given)):
            subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    while time.time() < since + BEGINS:
        if read(root).get("time", 0.0) >= since:
            return 0
        time.sleep(0.05)
    print(f"error: the job has not begun within {BEGINS:.0f} s: see {root / 'log.txt'}", file=sys.stderr)
    return 2


def _as_unit(words: list[str], root: Path, environment: dict[str, str], given: dict[str, str]) -> bool:
    log = f"append:{(root / 'log.txt').absolute()}"
    command = ["systemd-run", "--user", "--collect", "--quiet", f"--unit=fitune-{root.name}"]
    command += [f"--property=StandardOutput={log}", f"--property=StandardError={log}"]
    command += [f"--setenv={name}" for name in (*given, "PATH", "PYTHONPATH") if name in environment]
    return subprocess.run([*command, *words], env=environment, capture_output=True, check=False).returncode == 0


def read(root: Path) -> dict[str, Any]:
    """What is kept of how a job is."""
    try:
        found = json.loads((root / "job.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def status(root: Path) -> str:
    """A job's state and what is to be known of it, in a line. One whose process is gone, without a word, was killed."""
    if not root.is_dir():
        return "absent"
    found = read(root)
    state, what = found.get("state", "failed"), found.get("what") or ("" if found else "it has never begun")
    if state == "running" and not is_at_work(root):
        again = read(root)  # it may have ended between the two
        state, what = again.get("state", state), again.get("what", what)
        if state == "running":
            state, what = "failed", "its process is gone: it was killed, or the machine was restarted"
    return f"{state} {what}".strip()


def is_at_work(root: Path) -> bool:
    """Whether a process holds the job."""
    try:
        with (root / ".at-work").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def stop(root: Path) -> None:
    """Ask a job that is at work to end."""
    number = read(root).get("process")
    if is_at_work(root) and isinstance(number, int):
        os.kill(number, signal.SIGTERM)


def main(arguments: list[str]) -> int:
    """What the first words of this file say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("begin", "status", "stop"))
    parser.add_argument("root")
    parser.add_argument("--seconds", type=float, help="after which it is stopped")
    parser.add_argument("--install", action="store_true", help="install the exact versions of all packages first")
    parser.add_argument("--venv", help="a virtual environment to install them into, made where it is not there")
    parser.add_argument("--python", help="the Python that trains")
    asked = parser.parse_args(arguments)
    if asked.verb == "status":
        print(status(Path(asked.root)))
    elif asked.verb == "stop":
        stop(Path(asked.root))
    else:
        return begin(asked)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
