"""The damage suite: a file of a run, or of the data that it has prepared, is damaged, and the run is gone on with.

It must end as the one that nothing disturbs, to the bit, or refuse in a line to go on: nothing that is damaged decides
anything in silence. Runs that were stopped are damaged, and runs that are done, in any of their files; so are prepared
rows. `tests/train/test_damages.py` gives a few, `benchmarks/faults.py` many.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.fault_recipe import write_fault_recipe
from support.fault_suite import outcome
from support.forked import Forks

STEPS = 6
SLOTS = 2
"""Places that are worked in side by side."""
PATIENCE = 120.0
"""Seconds after which a process has waited for something that does not come."""


def flip(file: Path, draw: random.Random) -> None:
    """One bit."""
    content = bytearray(file.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def cut(file: Path, draw: random.Random) -> None:
    """The end is missing."""
    os.truncate(file, draw.randrange(file.stat().st_size or 1))


def zeros(file: Path, draw: random.Random) -> None:
    """A stretch of zeros, as a disk leaves it that has lost a block."""
    content = bytearray(file.read_bytes())
    at, size = draw.randrange(len(content) or 1), draw.randrange(1, 600)
    content[at : at + size] = bytes(len(content[at : at + size]))
    file.write_bytes(content)


def noise(file: Path, draw: random.Random) -> None:
    """Other bytes, as many."""
    file.write_bytes(draw.randbytes(file.stat().st_size))


def longer(file: Path, draw: random.Random) -> None:
    """Bytes behind the end."""
    with file.open("ab") as stream:
        stream.write(draw.randbytes(draw.randrange(1, 300)))


def empty(file: Path, draw: random.Random) -> None:
    """No bytes."""
    os.truncate(file, 0)


def gone(file: Path, draw: random.Random) -> None:
    """No file."""
    file.unlink()


def directory(file: Path, draw: random.Random) -> None:
    """A directory in its place."""
    file.unlink()
    (file / "inner").mkdir(parents=True)


def pipe(file: Path, draw: random.Random) -> None:
    """A pipe in its place, into which nobody writes."""
    file.unlink()
    os.mkfifo(file)


def dangling(file: Path, draw: random.Random) -> None:
    """A link that leads nowhere."""
    file.unlink()
    file.symlink_to("nowhere")


def link_to_itself(file: Path, draw: random.Random) -> None:
    """A link that leads to itself."""
    file.unlink()
    file.symlink_to(file.name)


def link_to_a_copy(file: Path, draw: random.Random) -> None:
    """A link to the same bytes elsewhere."""
    copy = file.parent.parent / f"copy-{file.name}"
    shutil.move(file, copy)
    file.symlink_to(copy)


def other(file: Path, draw: random.Random) -> None:
    """The bytes of another file that lies beside it."""
    beside = [place for place in sorted(file.parent.iterdir()) if place.is_file() and place != file]
    if beside:
        shutil.copy(draw.choice(beside), file)


def nested(file: Path, draw: random.Random) -> None:
    """Brackets without end."""
    file.write_text("[" * 100_000)


KINDS: tuple[Callable[[Path, random.Random], None], ...] = (
    flip, cut, zeros, noise, longer, empty, gone, directory, pipe, dangling, link_to_itself, link_to_a_copy, other,
    nested,
)  # fmt: skip
OFTEN = {"flip": 5, "cut": 2, "zeros": 2}
"""Damages that come more often than others."""

PLACES = {
    "checkpoint": "stopped/checkpoints/**/*",
    "record": "stopped/*",
    "trained": "done/adapter/*",
    "prepared rows": "cache/*/*",
}


class DamageSuite:
    """One suite of damages, in a directory of its own."""

    def __init__(self, forks: Forks, home: Path, seed: int) -> None:
        self.forks, self.place, self.seed = forks, home, seed
        self.raw: list[dict[str, Any]] = []

    def run(self, number: int, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
        """Damage so often; gives the figures. Fails where one ends otherwise."""
        start = time.perf_counter()
        for slot in range(SLOTS):
            self._prepare(self.place / str(slot))
        at_work: list[tuple[int, Path, dict[str, Any]]] = []
        for count in range(number):
            if len(at_work) == SLOTS:
                self._must_be_met(*at_work.pop(0))
            at_work.append(self._damage(count, self.place / str(count % SLOTS)))
            if count % 50 == 49:
                tell(f"{count + 1} damages, {time.perf_counter() - start:.0f} s")
        for one in at_work:
            self._must_be_met(*one)
        by_place: dict[str, Counter[str]] = {place: Counter() for place in PLACES}
        for made in self.raw:
            by_place[made["of"]][made["came"]] += 1
        return {
            "seed": self.seed,
            "damages": number,
            "came": dict(sorted(Counter(one["came"] for one in self.raw).items())),
            "by_place": {place: dict(sorted(came.items())) for place, came in by_place.items()},
            "kinds": dict(sorted(Counter(one["kind"] for one in self.raw).items())),
            "seconds": round(time.perf_counter() - start, 1),
            "raw": self.raw,
        }

    def _prepare(self, slot: Path) -> None:
        """A run that is done, and one that was killed on its way from a checkpoint to its end; their prepared rows."""
        home = slot / "home"
        recipe = write_fault_recipe(home / "recipe", STEPS)
        self.forks.learn(recipe)
        for name in ("done", "stopped"):
            ended = self.forks.run(["run", recipe, "--out", home / name], cwd=home)
            assert ended.code == 0, ended.output
        self.plain = outcome(home / "done")
        shutil.rmtree(home / "stopped" / "adapter")
        shutil.rmtree(home / "stopped" / "checkpoints" / f"step-{STEPS}")
        home.rename(slot / "kept")

    def _damage(self, count: int, slot: Path) -> tuple[int, Path, dict[str, Any]]:
        """Damage a copy, in the place where the runs were made, and go on with one in it."""
        draw = random.Random(f"{self.seed} {count}")
        home = slot / "home"
        shutil.copytree(slot / "kept", home)
        of = draw.choice(list(PLACES))
        files = sorted(place for place in home.glob(PLACES[of]) if place.is_file() and not place.name.startswith("."))
        file = draw.choice(files)
        (kind,) = draw.choices(KINDS, [OFTEN.get(kind.__name__, 1) for kind in KINDS])
        kind(file, draw)
        run = home / ("done" if of == "trained" else "stopped")
        told = {"number": count, "of": of, "file": file.relative_to(home).as_posix(), "kind": kind.__name__}
        child = self.forks.start(["run", run], cwd=home, kill_after=PATIENCE)
        return child, run, told

    def _must_be_met(self, child: int, run: Path, told: dict[str, Any]) -> None:
        """It has ended as it should, or refused."""
        ended = self.forks.wait(child)
        where = f"seed {self.seed}, {told}"
        assert "Traceback" not in ended.output, f"{where}: {ended.output[-3000:]}"
        assert ended.code in (0, 2), f"{where}: exit code {ended.code}: {ended.output[-3000:]}"
        if ended.code == 0:
            found = outcome(run)
            assert found["adapter"] == self.plain["adapter"], f"{where}: {ended.output[-3000:]}"
            assert found["curve"] == self.plain["curve"], f"{where}: {ended.output[-3000:]}"
        else:
            last = ended.output.splitlines()[-1]
            assert last.startswith("error: "), f"{where}: {ended.output[-3000:]}"
            told["said"] = last.replace(str(run.parent), "HOME")[:300]
        told["came"] = "equal to the bit" if ended.code == 0 else "refused in a line"
        self.raw.append(told)
        shutil.rmtree(run.parent)
