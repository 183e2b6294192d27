"""All that a run has learnt and where it stands, on the host: what it takes to go on from there as if never stopped.

Data need no more than the number of steps: the order of rows is a function of seed and position
(`fitune.data.sampler`).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fitune.checkpoint.module_state import ModuleState, changed, module_state, set_module_state
from fitune.compose.loss_scaling import ScalingState
from fitune.compose.shards import cut, is_sharded, local, whole
from fitune.errors import RunError

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LambdaLR

    from fitune.compose.parts import Parts


SETTINGS = ("initial_lr", "weight_decay", "betas", "eps")
"""Of AdamW's groups, which a checkpoint of 0.1 does not tell from what an optimizer keeps there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Tensors on the host, and plain values."""

    step: int
    """Optimizer steps that were made."""
    names: tuple[str, ...]
    """Of the parameters that train, in the optimizer's order."""
    masters: tuple[Tensor, ...]
    """Their values, in float32 where they have float32 copies: of those that are shared out the rows that this process
    has, but all of them in what was read from a checkpoint."""
    optimizer: Mapping[str, Any]
    """Its `state_dict`."""
    optimizer_type: str
    settings: tuple[Mapping[str, Any], ...] = ()
    """Of the optimizer's groups, as they were composed (`Parts.settings`); none in a checkpoint of 0.1."""
    scheduler: Mapping[str, Any]
    """Its `state_dict`."""
    scaling: ScalingState | None
    """Of the loss, in float16."""
    modules: ModuleState
    """What modules have changed in themselves since they were loaded."""
    random: RandomState
    """Of this process."""


def capture(parts: Parts, step: int, loaded: ModuleState, random: RandomState | None = None) -> TrainingState:
    """The state after `step` steps of a run whose modules were `loaded` so; takes no memory of the GPU.

    `random` is where the generators stood then, if not where they stand now.
    """
    trainables, scaling = parts.step.trainables, parts.step.scaling
    return TrainingState(
        step=step,
        names=_names(parts),
        masters=tuple(m.detach().to("cpu", copy=True) for m in trainables.masters),
        optimizer=copied(parts.step.optimizer.state_dict()),
        optimizer_type=_type(parts.step.optimizer),
        settings=parts.settings,
        scheduler=copied(parts.scheduler.state_dict()),
        scaling=None if scaling is None else scaling.state(),
        modules=changed(loaded, module_state(parts.run.model)),
        random=random or random_state(parts.accelerator.device),
    )


def _difference(parts: Parts, state: TrainingState, names: Sequence[str]) -> str | None:
    """Why a state is none of these parts, and what of a recipe to keep; None if it is one of theirs."""
    trainables, optimizer = parts.step.trainables, _type(parts.step.optimizer)
    masters = trainables.masters
    if optimizer != state.optimizer_type:
        return f"it was trained by {state.optimizer_type}, and here is {optimizer}. Keep the optimizer as it is"
    if len(masters) != len(state.masters):
        return f"{len(state.masters)} tensors train there, and {len(masters)} here. Keep [adapter] targets as they are"
    here, there = next((pair for pair in zip(names, state.names, strict=False) if pair[0] != pair[1]), ("", ""))
    if here != there:
        return f"{there} there is {here} here. Keep [adapter] targets as they are"
    for number, (master, parameter, kept) in enumerate(zip(masters, trainables.parameters, state.masters, strict=True)):
        if kept.shape not in (master.shape, parameter.shape):
            name = names[number] if number < len(names) else f"tensor {number}"
            what = f"{name} is {list(kept.shape)} there, and {list(parameter.shape)} here"
            return f"{what}. Keep what gives tensors their shapes as it is, e.g. [adapter] r"
    return None


def restore(parts: Parts, state: TrainingState) -> None:
    """Put a composed run into this state; the state stays as it is. Raises `RunError` where it is another run's.

    What a recipe sets stays as the run's own recipe says: the learning rate and its schedule, and the settings of the
    optimizer. The state says how far they have come.
    """
    trainables, optimizer = parts.step.trainables, parts.step.optimizer
    names = _names(parts)
    if (differs := _difference(parts, state, names)) is not None:
        raise RunError(f"what was trained cannot be taken over: {differs}")
    with torch.no_grad():
        for master, parameter, kept in zip(trainables.masters, trainables.parameters, state.masters, strict=True):
            master.copy_(cut(kept, parameter))
    trainables.publish()
    _load(optimizer, {**state.optimizer, "state": _each(parts, state.optimizer["state"], cut)})
    _set_settings(optimizer, parts.settings, state)
    _set_schedule(parts.scheduler, state.scheduler["last_epoch"])
    if parts.step.scaling is not None and state.scaling is not None:
        parts.step.scaling.load(state.scaling)
    set_module_state(parts.run.model, state.modules)
    parts.run.model.train()
    set_random_state(state.random, parts.accelerator.device)


def gathered(parts: Parts, state: TrainingState) -> TrainingState:
    """The state with whole tensors in place of the parts of them that processes have, in the first process; in others
    they stand in for them. Every process must call it.
    """
    parameters = parts.step.trainables.parameters
    if not any(map(is_sharded, parameters)):
        return state

    def put_together(part: Tensor, parameter: Tensor) -> Tensor:
        if not is_sharded(parameter) or part.shape != local(parameter).shape:
            return part
        found = whole(part, parameter)
        return part if found is None else found

    masters = tuple(put_together(m, p) for m, p in zip(state.masters, parameters, strict=True))
    of_optimizer = {**state.optimizer, "state": _each(parts, state.optimizer["state"], put_together)}
    return replace(state, masters=masters, optimizer=of_optimizer)


def _each(
    parts: Parts, state: Mapping[int, Mapping[str, Any]], change: Callable[[Tensor, Tensor], Tensor]
) -> dict[int, dict[str, Any]]:
    """An optimizer's state, each tensor changed, which is given with the parameter that it belongs to."""
    trainables = parts.step.trainables
    of = {id(m): p for p, m in zip(trainables.parameters, trainables.masters, strict=True)}
    ordered = [of[id(m)] for group in parts.step.optimizer.param_groups for m in group["params"]]
    return {
        number: {
            key: change(value, ordered[number]) if isinstance(value, Tensor) else value for key, value in values.items()
        }
        for number, values in state.items()
    }


def _names(parts: Parts) -> tuple[str, ...]:
    """Of the parameters that train, in the optimizer's order."""
    return tuple(name for name, parameter in parts.run.model.named_parameters() if parameter.requires_grad)


def copied(value: Any) -> Any:
    """A copy of nested values with every tensor on the host."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    return copy.deepcopy(value)


def _load(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load it; what `load_state_dict` rounds to the parameter's type keeps its own, and what is as large as the
    parameter lies as it does: files hold dense rows, and fused optimizers pair numbers by where they lie.
    """
    optimizer.load_state_dict(copied(state))  # a copy: on the CPU it would share its tensors
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        for key, kept in state["state"].get(number, {}).items():
            found = optimizer.state[parameter].get(key)
            if not isinstance(kept, Tensor) or not isinstance(found, Tensor):
                continue
            if found.dtype != kept.dtype:
                found = kept.to(found.device, copy=True)
            if found.shape == parameter.shape and found.stride() != parameter.stride():
                found = torch.empty_like(parameter, dtype=found.dtype, device=found.device).copy_(found)
            optimizer.state[parameter][key] = found


def _set_settings(optimizer: torch.optim.Optimizer, now: Sequence[Mapping[str, Any]], state: TrainingState) -> None:
    """Give the groups the settings of the recipe; what the optimizer itself has changed in them since is kept."""
    before = state.settings or [{key: group.get(key) for key in SETTINGS} for group in state.optimizer["param_groups"]]
    for group, fresh, composed in zip(optimizer.param_groups, now, before, strict=True):
        for key, value in fresh.items():
            if key in composed and group.get(key) == composed[key]:
                group[key] = copy.deepcopy(value)


def _set_schedule(scheduler: LambdaLR, steps: int) -> None:
    """Put the recipe's own schedule to where so many steps were made."""
    scheduler.last_epoch = steps
    scheduler._step_count = steps + 1
    rates = [base * factor(steps) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _type(optimizer: torch.optim.Optimizer) -> str:
    return type(optimizer).__qualname__


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomState:
    """Where the generators stand that a step may draw from; each process has its own."""

    python: Any
    numpy: Any
    torch: Tensor
    cuda: Tensor | None
    """Of the run's GPU; None on other devices."""


def random_state(device: torch.device) -> RandomState:
    """The state of Python's, NumPy's and torch's generators; it waits for no device."""
    return RandomState(
        python=random.getstate(),
        numpy=np.random.get_state(),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    )


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Put the generators back to where they stood."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)
    torch.set_rng_state(state.torch)
    if state.cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state.cuda, device)
