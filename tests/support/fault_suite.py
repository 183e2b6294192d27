"""The fault suite: a run that is killed at random moments, again and again, ends as the one that nothing disturbs.

A chain is one run from its beginning to its end, with as many kills as befall it. Each start of it gets one blow, drawn
from a seeded generator: SIGKILL at the n-th change of a file in the run's directory, after the n-th flush to the disk,
or after so many seconds; the first ones fall in phases too short to be met by chance. Of two processes that train
together either is killed, and then the other, as launchers do. `tests/train/test_faults.py` gives 60 to one process and
20 to two; more are given on demand:

    FT_FAULTS=2000 FT_SEED=7 pytest tests/train/test_faults.py
    python benchmarks/faults.py --kills 2000 --seed 7
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitune.checkpoint.manifest import damage
from fitune.runs.atomic import is_left_over
from fitune.runs.lock import LEFT_OVER
from support.blows import FLUSHES, OPERATIONS, PHASE, PHASES, Blow, strike, strike_together
from support.fault_recipe import STEPS, write_fault_recipe
from support.forked import Ended, Forks

AT_ONCE = 2
"""Chains that are at work side by side."""
LEAST_LEFT = 0.15
"""Of a run's changes of files, in one that only has to save."""
MOST = 30
"""Starts of a chain, after which it is left in peace."""
AIMED = ("step", "checkpoint", "cleaning")
"""Phases that the first starts of the first chain are killed in, however few kills there are."""
OF_SECOND = ("loading", "step", "evaluation", "checkpoint")
"""Phases that the second of two processes is killed in; it changes few files."""


@dataclass(slots=True, kw_only=True)
class Figures:
    """What came of a suite."""

    seed: int
    processes: int = 1
    kills: int = 0
    starts: int = 0
    chains: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    """In which a kill fell: how many."""
    kinds: Counter[str] = field(default_factory=Counter)
    ranks: Counter[int] = field(default_factory=Counter)
    """Which of the processes was killed first: how often."""
    raw: list[dict[str, Any]] = field(default_factory=list)
    """Each kill: its run, start, blow, phase and the steps that were saved by then."""
    went_back: list[int] = field(default_factory=list)
    """For each kill, the steps that were to be made again."""
    most_kills: int = 0
    """Of one run."""
    seconds: float = 0.0

    def values(self) -> dict[str, Any]:
        """As JSON holds them."""
        return {
            "seed": self.seed,
            "processes": self.processes,
            "kills": self.kills,
            "runs": self.chains,
            "starts": self.starts,
            "most_kills_of_a_run": self.most_kills,
            "kills_in": {phase: self.phases[phase] for phase in PHASES},
            "kills_by": dict(sorted(self.kinds.items())),
            **({"kills_of_process": dict(sorted(self.ranks.items()))} if self.processes > 1 else {}),
            "steps_made_again": {"mean": round(statistics.mean(self.went_back), 2), "most": max(self.went_back)},
            "adapters_equal_to_the_bit": self.chains,
            "loss_curves_equal_to_the_bit": self.chains,
            "seconds": round(self.seconds, 1),
        }

    def ended(self, kills: int) -> None:
        """A chain has come to its end."""
        self.chains += 1
        self.most_kills = max(self.most_kills, kills)


class Suite:
    """One suite of kills, in a directory of its own."""

    def __init__(
        self,
        forks: Forks,
        home: Path,
        *,
        kills: int,
        seed: int,
        processes: int = 1,
        sharded: bool = False,
        objective: Mapping[str, object] | None = None,
    ) -> None:
        self.forks, self.home, self.kills, self.seed, self.processes = forks, home, kills, seed, processes
        self.at_once = AT_ONCE if processes == 1 else 1
        self.recipe = write_fault_recipe(home / "recipe", sharded=sharded, objective=objective)
        self.figures = Figures(seed=seed, processes=processes)
        self.plain: dict[str, Any] = {}
        """What came of a run that nothing disturbed."""
        self._most = (0, 0, 0.0)
        """Its changes of files, flushes and seconds."""

    def run(self, tell: Callable[[str], None] = lambda line: None) -> Figures:
        """Kill until there were enough kills, and each chain has come to its end. Fails where one ends otherwise."""
        start = time.perf_counter()
        self.forks.learn(self.recipe)
        plain = self._start([self.recipe, "--out", self.home / "plain"], self.home / "plain")
        ended, *others = [self.forks.wait(child) for child in plain]
        assert ended.code == 0, ended.output
        assert not any(other.code for other in others)
        self._most = (ended.board[OPERATIONS], ended.board[FLUSHES], ended.seconds)
        self.plain = outcome(self.home / "plain")
        at_work: list[tuple[Generator[int, Ended, None], int]] = []
        count = 0
        while at_work or self.figures.kills < self.kills:
            while len(at_work) < self.at_once and self.figures.kills < self.kills:
                chain = self._chain(count)
                at_work.append((chain, next(chain)))
                count += 1
            chain, child = at_work.pop(0)
            try:
                at_work.append((chain, chain.send(self.forks.wait(child))))
            except StopIteration:
                tell(f"{self.figures.kills} kills, {self.figures.chains} runs, {time.perf_counter() - start:.0f} s")
        self.figures.seconds = time.perf_counter() - start
        return self.figures

    def _chain(self, number: int) -> Generator[int, Ended, None]:
        """One run: gives the processes that it starts, and is sent how they ended."""
        draw = random.Random(f"{self.seed} {number}")
        directory = self.home / f"run-{number}"
        given: list[str | Path] = [self.recipe, "--out", directory]
        kills = 0
        for starts in range(1, 10 * MOST):
            in_peace = starts > MOST or self.figures.kills >= self.kills
            if in_peace:
                blow = Blow()
            elif number == 0 and starts <= len(AIMED):
                blow = self._aimed(draw, AIMED[starts - 1])
            else:
                blow = self._draw(draw, directory)
            where = f"seed {self.seed}, run {number}, start {starts}, {blow}"
            children = self._start(given, directory, blow)
            ended = yield children.pop(blow.rank)
            for companion in children:
                if ended.code != 0:
                    self.forks.signal(companion, signal.SIGKILL)
                yield companion
            self.figures.starts += 1
            if ended.code == 0:
                break
            assert ended.code == -signal.SIGKILL, f"{where}: exit code {ended.code}: {ended.output[-3000:]}"
            kills += 1
            self._count(blow, ended, directory)
            self.figures.raw[-1] |= {"run": number, "start": starts}
            must_be_sound(directory, self.plain, where)
            whole = (directory / "identity.json").exists() and draw.random() < 0.5
            given = [directory] if whole else [self.recipe, "--out", directory, "--resume"]
        found = outcome(directory)
        other = {key: (self.plain[key], found[key]) for key in self.plain if self.plain[key] != found[key]}
        assert not other, f"seed {self.seed}, run {number} of {kills} kills ends otherwise: {other}"
        self.figures.ended(kills)
        shutil.rmtree(directory)

    def _start(self, given: list[str | Path], directory: Path, blow: Blow | None = None) -> list[int]:
        """Start all processes, one of which gets the blow."""
        port = free_port() if self.processes > 1 else 0
        children = []
        for rank in range(self.processes):
            own = blow if blow is not None and blow.rank == rank else Blow()
            values: dict[str, Any] = {
                "directory": str(directory),
                "operation": own.operation,
                "flush": own.flush,
                "phase": own.phase,
                "number": own.number,
            }
            if self.processes > 1:
                values |= {"rank": rank, "processes": self.processes, "port": port}
            prepare = strike if self.processes == 1 else strike_together
            child = self.forks.start(["run", *given], cwd=self.home, prepare=prepare, kill_after=own.after, **values)
            children.append(child)
        return children

    def _aimed(self, draw: random.Random, phase: str) -> Blow:
        """A blow in this phase; in any step of the first half, so that checkpoints are to come."""
        return Blow(phase=phase, number=draw.randint(1, STEPS // 2) if phase == "step" else 1)

    def _draw(self, draw: random.Random, directory: Path) -> Blow:
        """A blow that falls, most likely, before the run is at its end: what is left of it may be little."""
        left = max(LEAST_LEFT, 1 - saved_steps(directory) / STEPS)
        operations, flushes, seconds = self._most
        if self.processes > 1 and draw.random() < 0.4:
            if draw.random() < 0.5:
                return Blow(after=draw.uniform(0, (1 + left) / 2 * seconds), rank=1)
            return Blow(phase=draw.choice(OF_SECOND), number=draw.randint(1, 3), rank=1)
        kind = draw.choices(("operation", "flush", "after"), (5, 2, 3))[0]
        if kind == "operation":
            return Blow(operation=draw.randint(1, round(left * operations)))
        if kind == "flush":
            return Blow(flush=draw.randint(1, round(left * flushes)))
        return Blow(after=draw.uniform(0, (1 + left) / 2 * seconds))

    def _count(self, blow: Blow, ended: Ended, directory: Path) -> None:
        figures = self.figures
        figures.kills += 1
        figures.phases[PHASES[ended.board[PHASE]]] += 1
        figures.kinds[blow.kind] += 1
        figures.ranks[blow.rank] += 1
        made = max((line["step"] for line in lines_of(directory) if line["event"] == "step"), default=0)
        figures.went_back.append(max(0, made - saved_steps(directory)))
        drawn = {key: value for key, value in dataclasses.asdict(blow).items() if value is not None}
        seen = {"phase_met": PHASES[ended.board[PHASE]], "steps_made": made, "steps_saved": saved_steps(directory)}
        figures.raw.append({**drawn, **seen})


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def saved_steps(run: Path) -> int:
    """Of a run's newest checkpoint."""
    return max((int(place.name[5:]) for place in run.glob("checkpoints/step-*")), default=0)


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, but for a last one that is torn."""
    file = run / "metrics.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def curve_of(run: Path) -> list[tuple[str, int, float]]:
    """(Event, step, loss) of all steps and evaluations, in their order."""
    return [(line["event"], line["step"], line["loss"]) for line in lines_of(run) if "loss" in line]


def outcome(run: Path) -> dict[str, Any]:
    """What must be equal, to the bit and to the line."""
    names = {place.name for place in run.iterdir() if not is_left_over(place)} - {*LEFT_OVER}
    return {
        "adapter": _trained(run).read_bytes(),
        "curve": curve_of(run),
        "files": sorted(names),
        "checkpoints": sorted(place.name for place in (run / "checkpoints").iterdir()),
    }


def _trained(run: Path) -> Path:
    """The weights that a run has trained to its end: an adapter's, or all."""
    whole = run / "model" / "model.safetensors"
    return whole if whole.parent.exists() else run / "adapter" / "adapter_model.safetensors"


def must_be_sound(run: Path, plain: dict[str, Any], where: str) -> None:
    """What is there under its own name after a kill is whole, and right as far as it goes."""
    for place in run.glob("checkpoints/step-*"):
        assert damage(place) is None, f"{where}: {place.name}: {damage(place)}"
    trained = _trained(run)
    if trained.parent.exists():
        assert trained.read_bytes() == plain["adapter"], where
    for name in ("identity.json", "environment.json", "run.json"):
        if (run / name).exists():
            json.loads((run / name).read_text(encoding="utf-8"))
    curve = curve_of(run)
    assert curve == plain["curve"][: len(curve)], f"{where}: {curve}"
