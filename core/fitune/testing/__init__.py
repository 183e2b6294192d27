"""For the tests of plugins: a model of a few thousand parameters, its data, a recipe that trains it in a second, and
what proves of each kind of plugin that it keeps its contract.

    from fitune.testing import assert_strategy, open_registry, write_recipe, write_tiny_data, write_tiny_model

The model is a Llama with random weights and a tokenizer of single bytes; both are the same at every call. May import
every wing but `cli`; what is heavy, once it is called.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fitune.plugin.launching import Launcher
from fitune.plugin.records import MemoryTwin
from fitune.testing.tiny import (
    open_registry,
    write_recipe,
    write_tiny_data,
    write_tiny_model,
    write_tiny_tokenizer,
)

__all__ = [
    "assert_adapter",
    "assert_deprecated",
    "assert_launcher",
    "assert_listener",
    "assert_loader",
    "assert_objective",
    "assert_source",
    "assert_stage",
    "assert_strategy",
    "assert_twin",
    "open_registry",
    "write_recipe",
    "write_tiny_data",
    "write_tiny_model",
    "write_tiny_tokenizer",
]


def assert_strategy(plugin: object, name: str, directory: Path, options: Mapping[str, object] | None = None) -> None:
    """Assert that a memory strategy keeps its contract: a tiny model trains with it, a run that was stopped goes on to
    the same end to the bit, a forecast can trace it, and where its record says `exact=True` the losses are those of a
    run without it. Files are written into an empty `directory`; `options` are those of its table in a recipe.
    """
    from fitune.testing.contracts.strategies import strategy_keeps_its_contract

    strategy_keeps_its_contract(plugin, name, directory, options or {})


def assert_adapter(plugin: object, name: str, directory: Path, options: Mapping[str, object] | None = None) -> None:
    """Assert that an adapter keeps its contract: it trains something, and nothing else changes; what it saves is there
    as safetensors, and where the record has them, `load`, `fill` and `merge` give the same logits and `off` the base's;
    runs go on to the bit, and are forecast.
    """
    from fitune.testing.contracts.adapters import adapter_keeps_its_contract

    adapter_keeps_its_contract(plugin, name, directory, options or {})


def assert_loader(plugin: object, name: str, directory: Path, options: Mapping[str, object] | None = None) -> None:
    """Assert that a model loader keeps its contract: a fast tokenizer with a pad token, a model on the device in
    evaluation mode, the same at every call; `build_model`'s is its like without weights, and is forecast; it trains.
    """
    from fitune.testing.contracts.loaders import loader_keeps_its_contract

    loader_keeps_its_contract(plugin, name, directory, options or {})


def assert_source(
    plugin: object,
    name: str,
    directory: Path,
    options: Mapping[str, object] | None = None,
    *,
    damaged: Mapping[str, object] | None = None,
) -> None:
    """Assert that a data source keeps its contract: rows that know where they come from, the same at every reading, and
    a fingerprint that stays while the data do. `damaged` are options of what cannot be read, which must be one error.
    Paths in options are taken from `directory`.
    """
    from fitune.testing.contracts.stages import source_keeps_its_contract

    source_keeps_its_contract(plugin, name, directory, options or {}, damaged)


def assert_stage(
    plugin: object,
    name: str,
    directory: Path,
    options: Mapping[str, object] | None = None,
    *,
    given: Iterable[object] | None = None,
) -> None:
    """Assert that a data stage keeps its contract: of a stream of what it takes (`given`, or conversations about
    counting on their way to batches) it makes what it says that it gives, as it comes and the same at every reading.
    """
    from fitune.testing.contracts.stages import stage_keeps_its_contract

    stage_keeps_its_contract(plugin, name, directory, options or {}, given)


def assert_listener(plugin: object, name: str, directory: Path, options: Mapping[str, object] | None = None) -> None:
    """Assert that a listener keeps its contract: a run with it ends as one without it does, to the bit, each run has an
    object of its own, and what `state` gives can be kept in a checkpoint and given back.
    """
    from fitune.testing.contracts.listeners import listener_keeps_its_contract

    listener_keeps_its_contract(plugin, name, directory, options or {})


def assert_objective(
    plugin: object,
    name: str,
    directory: Path,
    options: Mapping[str, object] | None = None,
    *,
    by_batch: bool = False,
) -> None:
    """Assert that an objective keeps its contract: a tiny model trains by it, in whatever micro-batches a step is cut
    (`by_batch` says that rows of a micro-batch share something by intent, as in KTO), its measures are those that it
    names, runs go on to the bit and are forecast.
    """
    from fitune.testing.contracts.objectives import objective_keeps_its_contract

    objective_keeps_its_contract(plugin, name, directory, options or {}, by_batch=by_batch)


def assert_deprecated(
    plugin: object, directory: Path, changes: Mapping[str, object], *, says: str, removed_in: str
) -> None:
    """Assert that a recipe uses what a plugin has deprecated: read now, it is told so in one line that has the text
    `says`, and the release `removed_in` refuses it by the same record. `changes` are tables laid over those of a tiny
    recipe, as for `write_recipe`, which is written into an empty `directory`.
    """
    from fitune.testing.contracts.ages import is_deprecated

    is_deprecated(plugin, directory, changes, says, removed_in)


def assert_twin(twin: MemoryTwin, *arguments: Any, **named: Any) -> None:
    """Assert that a memory twin takes what its kernel takes; give it arguments for one call of the kernel.

    On any device the results' shapes and types, and the bytes that are kept for the backward pass, must be equal. On a
    GPU the kernel's scratch is measured too: the most that is allocated in the call beside its results.
    """
    from fitune.memory.trace.compare_twin import compare

    compare(twin, arguments, named)


def assert_launcher(
    launcher: Launcher[Any],
    options: Any,
    directory: Path,
    *,
    instance: str | None = None,
    elapse: Callable[[], None] | None = None,
) -> None:
    """Assert that a launcher keeps its contract: it submits jobs that run for a second each, asks after them, stops one
    and fetches what they leave, in an empty directory. `elapse` is called between two questions; a moment passes
    without it.
    """
    from fitune.testing.launchers import launcher_keeps_its_contract

    launcher_keeps_its_contract(launcher, options, directory, instance, elapse or partial(time.sleep, 0.05))
