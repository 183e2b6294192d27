"""Going on after a GPU ran out of memory: what that cut short is undone, and what was learnt is taken off the card.

Of several processes one may run out alone. It tells the others, and all of them do the same.
"""

from __future__ import annotations

import time

from fitune.checkpoint.state import capture
from fitune.compose.processes import PeerFailed
from fitune.compose.together import lost, together
from fitune.errors import Interrupted, RunError, cause
from fitune.memory.fit.refit import Composition, Refitter
from fitune.plugin.events import Recovery
from fitune.train.context import RunContext
from fitune.train.ending import not_deterministic, rescue, too_often, without_recovery
from fitune.train.handover import can_be_handed_over, hand_over
from fitune.train.out_of_memory import OutOfMemory, log, said_by
from fitune.train.save import save_unfinished


def shortage_of(context: RunContext, error: BaseException, refit: Refitter | None) -> OutOfMemory:
    """The memory that ran out, everything undone that it cut short.

    Raises the error, or one that says more, where it is another one or the run may not go on.
    """
    said = said_by(error)
    error = _met(error, said)
    said = said_by(error)
    if said is None:
        ending = not_deterministic(error)
        rescue(context, ending or error)
        if ending is None:
            raise error
        raise ending from error
    alone = together().is_cut_off
    log(error, context.directory, alone=alone)
    if alone and refit is not None and can_be_handed_over(context):
        raise _handed_over(context, said) from error
    if not together().agreed(refit is not None and _may_go_on(context)):
        ending = without_recovery(context, said)
        rescue(context, ending)
        raise ending from error
    assert refit is not None
    return _cut_short(context, said)


def _met(error: BaseException, said: str | None) -> BaseException:
    """The error that all processes of the run end by, or go on from, once the others know of this one."""
    if not isinstance(error, Exception) or isinstance(error, Interrupted | PeerFailed):
        return error
    if (gone := lost(error)) is not None:
        return gone
    return together().fail(error, said) or error


def _handed_over(context: RunContext, said: str) -> RunError:
    """What ends a process that the others wait for amid a layer: all are started again, unless that was done as often
    as it may be, or cannot be.
    """
    allowed = context.recipe.memory.recoveries
    if len(context.compositions) > allowed:
        return without_recovery(context, said, too_often(context) if allowed else "")
    try:
        return hand_over(context, said)
    except OSError as error:
        return without_recovery(context, said, f"The other processes could not be told to go on: {cause(error)}")


def recovery_of(shortage: OutOfMemory, now: Composition, step: int) -> Recovery:
    """That a run goes on with another composition."""
    before = shortage.composition
    return Recovery(
        step=step,
        phase=shortage.doing,
        error=shortage.said,
        before=before.tables,
        after=now.tables,
        micro_batch=(before.recipe.train.micro_batch, now.recipe.train.micro_batch),
        forecast=now.forecast,
        seconds=time.perf_counter() - shortage.since,
        again=max(0, shortage.step - step),
    )


def _may_go_on(context: RunContext) -> bool:
    """Whether there is a way to go on at all: something to go on from, whole in each process; the same in all."""
    found = not context.parts.run.plan.interlocked if context.parts is not None else context.state is not None
    return found and context.recipe.memory.recoveries > 0 and bool(context.position.doing)


def _cut_short(context: RunContext, said: str) -> OutOfMemory:
    """Undo what was being done, and take what was learnt off the card."""
    parts, position, keeper, undone = context.parts, context.position, context.keeper, True
    if parts is not None and position.doing in ("step", "evaluation"):
        assert context.loaded is not None
        undone = together().agreed(position.undo(parts)) and together().same(position.step)
        if undone:
            context.state = capture(parts, position.step, context.loaded, position.random)
            if position.step and position.step != keeper.saved:
                context.events.notify(parts.run, keeper.keep(parts, position, "memory", context.state))
        elif position.step and parts.accelerator.is_main_process:
            context.unfinished = save_unfinished(parts)
    shortage = OutOfMemory(
        doing=position.doing,
        said=said,
        composition=context.compositions[-1],
        undone=undone,
        since=time.perf_counter(),
    )
    context.shortage = context.shortage or shortage
    return shortage
