"""Real processes of `ft` at the price of a fork, for tests that signal and kill them.

A new Python takes seconds to import torch. Here one clean process imports all that a run needs, and computes nothing;
each start of `ft` is a fork of it, with its own process id, signal handlers, standard output and working directory.

    forks = Forks(tmp_path / "forks")
    ended = forks.run(["run", "recipe.toml", "--out", "run"], cwd=tmp_path)
    assert ended.code == 0
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from support.paths import TESTS
from support.places import function_at, place_of

LIMIT = 240.0
"""Seconds after which a process that has not ended is killed, and the test fails."""
NUMBERS = 8
"""Of a board: numbers that a process shares with the one that started it, and that outlive it."""
SERIAL = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
"""A process that has computed with several threads cannot be forked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A process that has ended."""

    code: int
    """Its exit code; negative for the signal that ended it."""
    seconds: float
    board: tuple[int, ...]
    """What it has left there, by the function that prepared it."""
    output: str
    """What it printed, on standard output and standard error."""


class Forks:
    """Starts processes of `ft`; for one thread."""

    def __init__(self, home: Path) -> None:
        """`home` is a directory that is made, for what the processes print."""
        home.mkdir(parents=True)
        self.home = home
        paths = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("FT_", "COV_"))}
        environment = {**kept, **SERIAL, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
        environment |= {"XDG_STATE_HOME": str(home / "state"), "FT_ALLOW_PLUGINS": "1"}
        self._errors = (home / "server.log").open("w")
        self._server = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which then end this by closing its standard input
        )
        self._learnt = False
        self._count = 0
        self._ended: dict[int, Ended] = {}

    def start(
        self,
        arguments: Sequence[str | Path],
        *,
        cwd: Path,
        prepare: Callable[..., None] | None = None,
        kill_after: float | None = None,
        **values: Any,
    ) -> int:
        """Start `ft` with these arguments; gives the number of the process here.

        `prepare` is a function, e.g. `blows.strike`, that is called in the process before, with `values`, which JSON
        can hold. SIGKILL comes after so many seconds. Prepared data are kept in `cwd`.
        """
        self._count += 1
        self._log(self._count).touch()  # it may be killed before it could
        order = {
            "child": self._count,
            "arguments": [str(one) for one in arguments],
            "cwd": str(cwd),
            "log": str(self._log(self._count)),
            "prepare": None if prepare is None else place_of(prepare),
            "values": values,
            "kill_after": kill_after,
        }
        self._say(order)
        return self._count

    def signal(self, child: int, number: int) -> None:
        """Send a signal to a process, if it has not ended."""
        self._say({"child": child, "signal": number})

    def wait(self, child: int) -> Ended:
        """Wait until it has ended. Fails where that takes more than `LIMIT`."""
        assert self._server.stdout is not None
        while child not in self._ended:
            line = self._server.stdout.readline()
            assert line, f"the server of forks has ended: {(self.home / 'server.log').read_text()[-2000:]}"
            said = json.loads(line)
            output = self._log(said["child"]).read_text(encoding="utf-8", errors="replace")
            assert not said["late"], f"{said['child']} took more than {LIMIT:.0f} s: {output[-2000:]}"
            self._ended[said["child"]] = Ended(
                code=said["code"], seconds=said["seconds"], board=tuple(said["board"]), output=output
            )
        return self._ended.pop(child)

    def run(self, arguments: Sequence[str | Path], *, cwd: Path, **asked: Any) -> Ended:
        """Start it, and wait for its end."""
        return self.wait(self.start(arguments, cwd=cwd, **asked))

    def learn(self, recipe: Path) -> None:
        """Have everything imported that a run of this recipe imports, so that the runs to come need not; once."""
        if self._learnt:
            return
        ended = self.run(["run", recipe, "--out", self.home / "first"], cwd=self.home, prepare=learn)
        assert ended.code == 0, ended.output
        self._say({"learn": str(self.home / "modules.json")})
        self._learnt = True

    def close(self) -> None:
        """End the server, and all that it has started."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
        self._errors.close()

    def _log(self, child: int) -> Path:
        return self.home / f"{child}.log"

    def _say(self, order: Mapping[str, Any]) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()


# ------------------------------------------------------------------------------------------------- in the server


@dataclass(slots=True)
class _Child:
    number: int
    pid: int
    board: memoryview
    start: float
    kill_at: float
    """On the monotonic clock."""
    late: bool
    """Whether it is killed then because it must have ended by itself."""


def serve() -> None:
    """Start processes as they are ordered on standard input, until that is closed; tell of each that has ended."""
    import fitune.cli.main
    import fitune.train.run  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # which wakes the wait below
    children: dict[int, _Child] = {}
    rest = b""
    while True:
        soonest = min((child.kill_at for child in children.values()), default=None)
        patience = None if soonest is None else min(LIMIT, max(0.0, soonest - time.monotonic()))
        ready, _, _ = select.select([0, wake], [], [], patience)
        if wake in ready:
            os.read(wake, 4096)
        for child in children.values():
            if child.kill_at <= time.monotonic():
                os.kill(child.pid, signal.SIGKILL)  # it is not waited for yet: the id is still its own
                child.kill_at = float("inf")
        _tell_of_ended(children)
        if 0 in ready:
            read = os.read(0, 1 << 16)
            if not read:
                break
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                _obey(json.loads(line), children)
    for child in children.values():
        os.kill(child.pid, signal.SIGKILL)


def _obey(order: Mapping[str, Any], children: dict[int, _Child]) -> None:
    if "learn" in order:
        for name in json.loads(Path(order["learn"]).read_text()):
            with contextlib.suppress(Exception):  # some modules are made by others, and cannot be imported
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # else each process would look through all of it for garbage, and copy the memory that it is in
        return
    if "signal" in order:
        for child in children.values():
            if child.number == order["child"]:
                os.kill(child.pid, order["signal"])
        return
    board = memoryview(mmap.mmap(-1, 8 * NUMBERS)).cast("q")
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _be_child(order, board)
    after = order["kill_after"]
    late = after is None
    children[pid] = _Child(order["child"], pid, board, start, start + (LIMIT if after is None else after), late)


def _tell_of_ended(children: dict[int, _Child]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        child = children.pop(pid)
        killed = child.kill_at == float("inf")
        said = {
            "child": child.number,
            "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - child.start,
            "board": child.board.tolist(),
            "late": child.late and killed,
        }
        print(json.dumps(said), flush=True)


def _be_child(order: Mapping[str, Any], board: memoryview) -> NoReturn:
    """Be a process of `ft`, from its start to its end."""
    code: Any = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as of a Python that has just started
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for found, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(found, number)
        os.closerange(3, 1024)
        os.chdir(order["cwd"])
        os.environ["FT_CACHE"] = str(Path(order["cwd"]) / "cache")
        if order["prepare"]:
            function_at(order["prepare"])(board, **order["values"])
        from fitune.cli.main import main

        main(order["arguments"])
        code = 0
        if order["prepare"] == place_of(learn):
            Path(order["log"]).with_name("modules.json").write_text(json.dumps(sorted(sys.modules)))
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            code = 120  # as Python ends where that fails
        finally:
            os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def learn(board: memoryview) -> None:
    """Prepare nothing: what the process has imported is noted at its end."""
