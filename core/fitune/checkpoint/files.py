"""A checkpoint on disk: a directory with what was trained, the rest of the training state, and a manifest.

checkpoints/step-120/
  adapter/             what was trained, as at the end of a run
  state.safetensors    masters, the optimizer's state, buffers
  state.json           the rest, and where each tensor belongs
  process-0.json       random generators, one file a process
  listeners.json       the state of listeners, by their names, where any has one
  manifest.json        sizes and digests of all files, written last
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fitune.checkpoint.encoding import decode, encode
from fitune.checkpoint.manifest import damage, write_manifest
from fitune.checkpoint.module_state import ModuleState
from fitune.checkpoint.state import RandomState, TrainingState, gathered, random_state
from fitune.compose.loss_scaling import ScalingState
from fitune.compose.parts import Parts, whole_for_writing
from fitune.compose.together import together
from fitune.errors import PluginError, RunError, cause
from fitune.plugin.contract import blame
from fitune.runs.atomic import begin, publish
from fitune.runs.layout import CHECKPOINTS

LISTENERS = "listeners.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands, beside what it has learnt."""

    step: int = 0
    """Optimizer steps that were made."""
    evaluated: int = -1
    """After how many of them was the last evaluation; -1 for none yet."""
    best: float | None = None
    """Of the evaluations, by what `[eval] best_by` says: the highest, or of losses the lowest."""
    best_step: int | None = None
    reference: float | None = None
    """What an evaluation must be better than for patience to be counted anew."""
    waited: int = 0
    """Evaluations in a row that were not."""
    seconds: float = 0.0
    """Of training, over all starts of the run."""
    guards: Mapping[str, Any] | None = None
    """What the run's guards have seen, as plain values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was read whole."""

    directory: Path
    progress: Progress
    state: TrainingState
    listeners: Mapping[str, Any] = field(default_factory=dict)
    """The state of the run's listeners, by their names."""


def place_of(run: Path, step: int) -> Path:
    """The directory of a run's checkpoint."""
    return run / CHECKPOINTS / f"step-{step}"


def places(run: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run, whole or not, the newest first: (steps, directory)."""
    found = []
    for place in (run / CHECKPOINTS).glob("step-*"):
        match = re.fullmatch(r"step-(\d+)", place.name)
        if match and place.is_dir():
            found.append((int(match[1]), place))
    return sorted(found, reverse=True)


def write(parts: Parts, state: TrainingState, progress: Progress, listeners: Mapping[str, Any]) -> int | str:
    """Write a checkpoint, in every process; gives its bytes, or why it could not be written, the same in each.

    `listeners` are states that JSON can hold; those of the main process are written.

    Nothing is left of one that could not be, and one that was there before stays.
    """
    accelerator = parts.accelerator
    together().meet()
    final = place_of(parts.run.directory, progress.step)
    begun: list[str] = []
    wrong = _try(lambda: begun.append(str(begin(final)))) if accelerator.is_main_process else None
    wrong = _everybodys(parts, wrong)
    if wrong is not None:
        return wrong
    named = _everybodys(parts, begun[0] if begun else None)
    assert named is not None
    partial = Path(named)
    wrong = _everybodys(parts, _try(lambda: _write_process(partial, accelerator.process_index, state.random)))
    size = 0
    state = gathered(parts, state)
    with whole_for_writing(parts):
        if accelerator.is_main_process and wrong is None:

            def finish() -> None:
                nonlocal size
                _write_state(parts, partial, state, progress)
                if listeners:
                    (partial / LISTENERS).write_text(json.dumps(listeners) + "\n", encoding="utf-8")
                size = write_manifest(partial, progress.step)
                publish(partial, final)

            wrong = _try(finish)
    if accelerator.is_main_process and wrong is not None:
        shutil.rmtree(partial, ignore_errors=True)
    wrong = _everybodys(parts, wrong)
    return size if wrong is None else wrong


def read(directory: Path, process: int = 0) -> Checkpoint:
    """Read a checkpoint for one process of a run. Raises `RunError`, which says what of it is damaged."""
    if (wrong := damage(directory)) is not None:
        raise RunError(f"{directory}: {wrong}")
    try:
        values = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(directory / "state.safetensors")
        state = _state(decode(values["state"], tensors), _random(directory / f"process-{process}.json"))
        progress = Progress(**decode(values["progress"], tensors))
        listeners = _listeners(directory / LISTENERS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise RunError(f"{directory}: cannot be read: {type(error).__name__}: {error}") from error
    if progress.step != state.step:
        raise RunError(f"{directory}: cannot be read: it is of step {progress.step} and of step {state.step}")
    return Checkpoint(directory=directory, progress=progress, state=state, listeners=listeners)


def newest(run: Path, process: int = 0) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of a run that is whole, and what is wrong with those that are newer."""
    wrong: list[str] = []
    for _, place in places(run):
        try:
            return read(place, process), wrong
        except RunError as error:
            wrong.append(error.message)
    return None, wrong


def write_trained(parts: Parts, directory: Path) -> None:
    """Have the adapter write what was trained into an empty directory. Raises `PluginError` where it writes nothing
    that could be read again, or fails for another reason than the disk's, whose errors are raised as they are.
    """
    record = parts.run.recipe.adapter.record
    try:
        with blame(f'adapter "{record.name}": save', but=(OSError, SafetensorError, torch.OutOfMemoryError)):
            record.save(parts.run.model, directory)
    except SafetensorError as error:  # which has an error of the disk as a text
        if (found := re.search(r"os error (\d+)", str(error))) is not None:
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise
    if not any(file.stat().st_size for file in directory.rglob("*.safetensors")):
        raise PluginError(f'adapter "{record.name}": save wrote no safetensors, and what was trained must be in some')


def _write_state(parts: Parts, partial: Path, state: TrainingState, progress: Progress) -> None:
    record = parts.run.recipe.adapter.record
    trained = partial / record.directory
    trained.mkdir()
    write_trained(parts, trained)
    tensors: dict[str, Tensor] = {}
    plain = {
        "step": state.step,
        "names": state.names,
        "masters": state.masters,
        "optimizer": state.optimizer,
        "optimizer_type": state.optimizer_type,
        "settings": state.settings,
        "scheduler": state.scheduler,
        "scaling": None if state.scaling is None else _fields(state.scaling),
        "modules": {"values": state.modules.values, "buffers": state.modules.buffers},
    }
    values = {
        "progress": encode(_fields(progress), tensors, "progress"),
        "state": encode(plain, tensors, "state"),
    }
    save_file(tensors, partial / "state.safetensors")
    (partial / "state.json").write_text(json.dumps(values) + "\n", encoding="utf-8")


def _state(values: Mapping[str, Any], random: RandomState) -> TrainingState:
    scaling, modules = values["scaling"], values["modules"]
    known = {name: value for name, value in values.items() if name not in ("scaling", "modules")}
    return TrainingState(
        **known,
        scaling=None if scaling is None else ScalingState(**scaling),
        modules=ModuleState(values=modules["values"], buffers=modules["buffers"]),
        random=random,
    )


def _write_process(partial: Path, process: int, random: RandomState) -> None:
    tensors: dict[str, Tensor] = {}
    values = encode(_fields(random), tensors, "random")
    lists = {name: {"dtype": str(tensor.dtype), "values": tensor.tolist()} for name, tensor in tensors.items()}
    text = json.dumps({"random": values, "tensors": lists}) + "\n"
    (partial / f"process-{process}.json").write_text(text, encoding="utf-8")


def _random(file: Path) -> RandomState:
    """Of one process; where a run has more processes than before, the generators of a new one stay as they are."""
    if not file.is_file():
        return random_state(torch.device("cpu"))
    values = json.loads(file.read_text(encoding="utf-8"))
    dtypes = {str(dtype): dtype for dtype in (torch.uint8, torch.uint32, torch.int64)}
    tensors = {
        name: torch.tensor(said["values"], dtype=dtypes[said["dtype"]]) for name, said in values["tensors"].items()
    }
    return RandomState(**decode(values["random"], tensors))


def _listeners(file: Path) -> dict[str, Any]:
    """None where no listener had a state, or the run was of 0.1."""
    if not file.is_file():
        return {}
    states = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(states, dict):
        raise TypeError(f"{file.name} holds no states by names")
    return states


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as they are: `dataclasses.asdict` would copy what is in them."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _try(work: Any) -> str | None:
    """Why it failed, in a line; None if it did not."""
    try:
        work()
    except Exception as error:  # a full disk is an OSError here, an error of safetensors' own there
        return cause(error)
    return None


def _everybodys(parts: Parts, said: str | None) -> str | None:
    """What the first of the processes says that says anything."""
    if parts.accelerator.num_processes == 1:
        return said
    from accelerate.utils import gather_object

    return next((one for one in gather_object([said]) if one is not None), None)
