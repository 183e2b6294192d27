"""How a run ends that does not get to its end: what it has learnt is kept, and its error says where and what to do."""

from __future__ import annotations

import contextlib

from fitune.checkpoint.state import capture
from fitune.compose.devices import NONE_DETERMINISTIC
from fitune.compose.parts import Parts
from fitune.compose.processes import PeerLost
from fitune.compose.together import together
from fitune.errors import FtError, Interrupted, RunError, sentences
from fitune.memory.oom.explain import explain
from fitune.memory.oom.message import read_message
from fitune.memory.oom.report import lines
from fitune.plugin.events import CheckpointReport
from fitune.recipe.reader import read_recipe
from fitune.runs.layout import RECIPE
from fitune.train.context import RunContext
from fitune.train.out_of_memory import LOG, OutOfMemory


def rescue(context: RunContext, error: BaseException) -> None:
    """Keep what was learnt, in a checkpoint, where a run fails and all its processes know; its error then says so."""
    parts, at, keeper = context.parts, context.position, context.keeper
    if not isinstance(error, Exception) or isinstance(error, Interrupted) or parts is None or at.step == 0:
        return
    if at.doing in ("loading", "rehearsal") or isinstance(error, PeerLost) or not _can_be_met(parts):
        return
    possible = False
    with contextlib.suppress(PeerLost):
        possible = together().agreed(not at.doing or at.undo(parts)) and together().same(at.step)
    if at.step != keeper.saved and possible:
        assert context.loaded is not None
        random = at.random if at.doing else None
        with contextlib.suppress(Exception):  # the error that ends the run is the one to tell
            state = capture(parts, at.step, context.loaded, random)
            report = keeper.keep(parts, at, "error", state)
            if isinstance(report, CheckpointReport):
                context.events.notify(parts.run, report)
    if isinstance(error, FtError):
        error.lines = (*error.lines, _saved(context))


def _can_be_met(parts: Parts) -> bool:
    """Whether the others, if there are any, do the same now; one that fails amid a layer leaves them waiting there."""
    return parts.run.processes == 1 or not parts.run.plan.interlocked


def out_of_memory_error(context: RunContext, shortage: OutOfMemory, why: str) -> RunError:
    """What ends a run that cannot go on with less, with the lines of `ft explain-oom`."""
    step = f"step {context.position.step + 1}"
    where = {"step": step, "evaluation": "an evaluation", "rehearsal": "the rehearsal"}
    fix = f"What would make it fit: ft explain-oom {context.directory}"
    error = RunError(
        f"out of GPU memory in {where.get(shortage.doing, shortage.doing)}: {shortage.said} "
        + sentences(why[0].upper() + why[1:], _saved(context), fix)
    )
    error.lines = (*error.lines, *_explained(context))
    return error


def too_often(context: RunContext) -> str:
    """Why a run does not go on that did so as often as it may, without a full stop."""
    return f"It went on {len(context.compositions) - 1} times ([memory] recoveries)"


def without_recovery(context: RunContext, said: str, why: str = "") -> RunError:
    """What ends a run that may not go on, and why: what was asked for, and what tells what a recipe can do about it."""
    if context.parts is None:
        return RunError(f"out of GPU memory while loading: {said} What would make it fit: ft plan RECIPE --levers")
    fix = f"What would make it fit: ft explain-oom {context.directory}"
    return RunError(f"out of GPU memory in training: {said} {sentences(why, fix)}")


def not_deterministic(error: BaseException) -> RunError | None:
    """Where `deterministic = true` asks for what torch does not have."""
    if not isinstance(error, RuntimeError) or NONE_DETERMINISTIC not in str(error):
        return None
    operation = str(error).split(NONE_DETERMINISTIC)[0].strip()
    return RunError(f"deterministic = true, but {operation} can only be computed otherwise here. Set it to false")


def _saved(context: RunContext) -> str:
    """What of the run is saved, and how it goes on."""
    keeper = context.keeper
    if context.unfinished is not None:
        of_old = f"The newest checkpoint is that of step {keeper.saved}"
        kept = of_old if keeper.saved else "Nothing is saved that it could go on from"
        step = context.position.step + 1
        return f"{kept}. What trains, in the midst of step {step}, is in {context.unfinished}"
    if keeper.saved is None:
        return "Nothing is saved"
    place = keeper.place(context.directory)
    what = f"What was trained in {keeper.saved} steps is saved in {place}"
    return f"{what}. Go on with: ft run {context.directory}"


def _explained(context: RunContext) -> tuple[str, ...]:
    """What `ft explain-oom` says of this run; nothing where it cannot tell."""
    try:
        message = read_message((context.directory / LOG).read_bytes(), LOG)
        recipe = read_recipe(context.directory / RECIPE, context.registry)
        said = lines(explain(recipe, context.registry, message))
        return tuple(line for line in said if line.strip())
    except (FtError, OSError):
        return ()
