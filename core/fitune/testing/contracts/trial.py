"""Runs of a tiny model that contracts are tried with: to their end, stopped and gone on with, and forecast."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tomli
import tomli_w

from fitune.errors import FtError, Interrupted, ModelError, PluginError, described
from fitune.plugin.contract import A_MODEL, wrong_gift
from fitune.plugin.events import Run, StepReport
from fitune.plugin.hookspecs import hookimpl
from fitune.plugin.model import unwrapped
from fitune.plugin.records import Provider
from fitune.plugin.registry import Registry
from fitune.testing.tiny import open_registry, write_recipe

if TYPE_CHECKING:
    from fitune.memory.forecast import Forecast
    from fitune.plugin.recipe import Recipe

P = TypeVar("P", bound=Provider)
T = TypeVar("T")

Options = Mapping[str, object]

STEPS, STOPPED = 4, 2
"""Steps of a run, and after how many one that is to go on is stopped."""

ALIKE = 0.8
"""From which likeness on (`difflib`) a name is taken for another one, misspelled."""

CARD = "h100"
"""What is forecast for."""


class _Stopper:
    """Asks a run to stop after a step."""

    @hookimpl
    def ft_step_done(self, run: Run, step: StepReport) -> None:
        """Ask it."""
        if step.step == STOPPED:
            run.stop.ask("a test")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A plugin under test, with what a recipe says of it."""

    plugin: object
    directory: Path
    """Where files may be written: an empty one, or one that is not there."""
    changes: Options = field(default_factory=dict)
    """Tables that are laid over those of a tiny recipe."""

    @cached_property
    def registry(self) -> Registry:
        """Of the built-in plugins and this one."""
        return must_not_fail("the plugin cannot be loaded", lambda: open_registry(self.plugin))

    def find(self, kind: type[P], name: str) -> P:
        """What it provides by this name."""
        return must_not_fail("it is not provided", lambda: self.registry.find(kind, name))

    def read(self, name: str, changes: Options | None = None) -> Recipe:
        """A recipe, read and checked, in a directory of its own."""
        from fitune.recipe.reader import read_recipe

        path = self.recipe(name, changes)
        return must_not_fail("a recipe with it is refused", lambda: read_recipe(path, self.registry))

    def recipe(self, name: str, changes: Options | None = None) -> Path:
        """A recipe in a directory of its own."""
        laid = {"train": {"steps": STEPS}, "checkpoint": {"steps": STOPPED}, **self.changes, **(changes or {})}
        path = write_recipe(self.directory / name, laid)
        if "model" in laid:  # another loader's options are others
            written = tomli.loads(path.read_text(encoding="utf-8"))
            path.write_text(tomli_w.dumps({**written, "model": laid["model"]}), encoding="utf-8")
        return path

    def ran(self, name: str, changes: Options | None = None) -> Path:
        """The directory of a run from its beginning to its end."""
        recipe = self.recipe(name, changes)
        return must_not_fail("a run fails", lambda: _run(recipe, self.directory / f"{name}-run", self.registry))

    def gone_on(self, name: str) -> Path:
        """The directory of a run that was stopped after a step, and went on in another process' place."""
        recipe, out = self.recipe(name), self.directory / f"{name}-run"
        try:
            _run(recipe, out, open_registry(self.plugin, _Stopper()))
        except Interrupted:
            pass
        except FtError as error:
            raise AssertionError(f"a run that is stopped after {STOPPED} steps fails: {error}") from error
        registry = open_registry(self.plugin)
        return must_not_fail("a run cannot go on from its checkpoint", lambda: _run(out, None, registry))

    def forecast(self) -> Forecast:
        """What a run would take of a card."""
        from fitune.memory.cards.cards import find_card
        from fitune.memory.forecast import forecast
        from fitune.memory.shapes import of_recipe

        recipe = self.read("plan")
        return must_not_fail(
            f"it cannot be forecast (fitune.has_values(model) tells a forecast from a run), on the card {CARD}",
            lambda: forecast(recipe, of_recipe(recipe), find_card(CARD)),
        )


def _run(recipe: Path, out: Path | None, registry: Registry) -> Path:
    """As `ft run` does, without a line about data that are prepared."""
    from fitune.train.begin import begin
    from fitune.train.start import start_of

    return begin(start_of(recipe, registry, (), out=out, resume=False, allowed=()), registry, force=False)


def must_not_fail(what: str, do: Callable[[], T]) -> T:
    """What `do` gives. Raises `AssertionError` where it raises."""
    try:
        return do()
    except AssertionError:
        raise
    except PluginError as error:
        raise AssertionError(f"{what}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{what}: {error if isinstance(error, FtError) else described(error)}") from error


def must_be_model(what: str, do: Callable[[], Any]) -> Any:
    """The model that `do` gives. Raises `AssertionError` where it raises, or gives something else."""
    found = must_not_fail(f"{what} fails", do)
    try:
        unwrapped(found)
    except ModelError as error:
        raise AssertionError(str(wrong_gift(what, found, A_MODEL))) from error
    return found


def must_be_called(found: object, kind: type[Any]) -> None:
    """Raise `AssertionError` for a method that is called nearly as one of its kind, which nobody would ever call."""
    known = [name for name in dir(kind) if not name.startswith("_")]
    for name in dir(type(found)):
        if name.startswith("_") or name in known or not callable(getattr(type(found), name)):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=ALIKE)
        assert not close, (
            f'nobody calls its method "{name}". Did you mean "{close[0]}"? One that is its own begins with "_"'
        )


def losses(run: Path) -> list[float]:
    """The losses of a run's steps, which must be numbers."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [line["loss"] for line in lines if line["event"] == "step"]
    assert all(isinstance(loss, float) and math.isfinite(loss) for loss in found), f"its losses are no numbers: {found}"
    return found


def weights(directory: Path) -> dict[str, Any]:
    """All tensors that safetensors of a directory hold, by file and name."""
    from safetensors.torch import load_file

    files = sorted(directory.rglob("*.safetensors"))
    others = ", ".join(sorted(file.name for file in directory.rglob("*") if file.is_file()))
    assert files, (
        f"save wrote {others or 'nothing'}, and must write what was trained as safetensors "
        "(safetensors.torch.save_file) into the directory that it is given"
    )
    return {f"{file.name}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def must_be_equal(found: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Raise `AssertionError`, with the first tensor that differs, unless all are equal to the bit."""
    import torch

    assert found.keys() == wanted.keys(), f"{what}: {sorted(found.keys() ^ wanted.keys())[0]} is in one alone"
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different, f"{what}: {len(different)} of {len(wanted)} tensors differ, e.g. {different[0]}"


def must_go_on_to_the_bit(trial: Trial, directory: str = "adapter") -> Path:
    """Stop a run and go on; raise `AssertionError` unless it ends as one that was not stopped does, which is given."""
    whole = trial.ran("whole")
    gone_on = trial.gone_on("stopped")
    must_be_equal(
        weights(gone_on / directory),
        weights(whole / directory),
        "a run that was stopped and went on does not end as one that was not",
    )
    return whole
