"""Going on with a run: what it was, what of it is whole, and whether it is still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fitune.errors import FtError
from fitune.plugin.digest import digest_of_weights
from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.runs.atomic import sweep
from fitune.runs.base import base_of
from fitune.runs.identity import Difference, Identity, content_differences, must_be_allowed, must_keep_place
from fitune.runs.layout import CHECKPOINTS, RECIPE
from fitune.runs.provenance import changed_recipe, versions
from fitune.runs.used_plugins import KEY, Kept, is_third_party, plugin_differences, plugins_of

if TYPE_CHECKING:
    from torch import nn

    from fitune.checkpoint.files import Checkpoint
    from fitune.compose.parts import Parts
    from fitune.plugin.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """What `ft run` knows of a run that goes on, before anything is loaded."""

    identity: Identity | None
    """As the run began; None where it never did."""
    allowed: Sequence[str] = ()
    """Keys that may differ."""
    refit: bool = False
    """Whether the keys that `[memory] fit` depends on were changed, so that it chooses anew."""
    damaged: str | None = None
    """What is wrong with what it had trained to its end, where something is."""

    def must_be_same(self, run: Path, now: Identity) -> None:
        """Raise `RunError` if the data, the model or the processes are others, and that is not allowed."""
        if self.identity is None:
            return
        must_keep_place(run, self.identity, now)
        changed = [*content_differences(self.identity, now), *plugin_changes(self.identity, now.plugins or {})]
        must_be_allowed(run, changed, self.allowed)

    def knows_base(self) -> bool:
        """Whether the run kept which base it was trained on; one that never began is trained on none yet."""
        return self.identity is None or self.identity.base is not None

    def knows_plugins(self, now: Identity) -> bool:
        """Whether the run kept which plugins it began with, or uses none but those that come with fitune."""
        kept = self.identity is None or self.identity.plugins is not None
        return kept or not any(map(is_third_party, (now.plugins or {}).values()))

    def other_versions(self, now: Identity) -> list[str]:
        """Packages that are of other versions than when the run began."""
        before = {} if self.identity is None else self.identity.versions
        return [f"{name} {one}, now {now.versions.get(name)}" for name, one in before.items()
                if one != now.versions.get(name)]  # fmt: skip

    def other_processes(self, now: Identity) -> str | None:
        """A sentence where the run is of another number of processes than when it began."""
        if self.identity is None or self.identity.processes == now.processes:
            return None
        return (
            f"{self.identity.processes} processes before, {now.processes} now. Rows, weights and the optimizer's state "
            "are what they were; dropout, if there is any, draws other units, and sums differ by rounding"
        )

    def composition(self, run: Path, registry: Registry) -> Recipe | None:
        """The memory strategies that the run last used, where `[memory]` chose them; None if they cannot be known, or
        are to be chosen anew.
        """
        if self.refit or changed_recipe(run) is not None:
            return None
        try:
            found = read_recipe(run / RECIPE, registry)
        except FtError:
            return None
        return None if found.memory.fit else found


def plugin_changes(before: Identity, now: Kept) -> list[Difference]:
    """Plugins that are not what they were when a run began."""
    found = plugin_differences(before.plugins, now)
    return [Difference(key=KEY, before=one, now=other) for one, other in found]


def find(run: Path, process: int, *, main: bool) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with newer ones; what a killed process left is deleted."""
    from fitune.checkpoint.files import newest

    if main:
        sweep(run)
        sweep(run / CHECKPOINTS)
    return newest(run, process)


SAMPLES = 16
"""Elements of each frozen weight that are looked at: another fine-tuning of a model changes nearly all of them."""


def identity_of(parts: Parts, asked: Recipe, registry: Registry, start: Path | None = None) -> Identity:
    """Of a run that is composed; `start` is where the adapter was saved that it goes on from."""
    held_out = parts.run_data.held_out
    place = parts.run.directory.resolve()
    return Identity(
        recipe=asked.to_toml(place),
        data=parts.run_data.data.digest,
        held_out=None if held_out is None else held_out.digest,
        model=fingerprint(parts.run.model),
        rows_of_step=parts.window,
        processes=parts.run.processes,
        versions=versions(),
        base=base_of(asked),
        start=None if start is None else digest_of_weights(start),
        place=str(place),
        plugins=plugins_of(registry, asked, parts.run.recipe),
    )


def fingerprint(model: nn.Module) -> str:
    """A digest of a few elements of every weight that does not train, whatever the modules are called."""
    import torch

    from fitune.compose.shards import picked

    samples = []
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.numel():
            picks = torch.linspace(0, parameter.numel() - 1, SAMPLES, dtype=torch.float64).long()
            seen = picked(parameter, picks).contiguous().view(torch.uint8).cpu().numpy().tobytes()
            samples.append(f"{tuple(parameter.shape)} {parameter.dtype} ".encode() + seen)
    return hashlib.sha256(b"\n".join(sorted(samples))).hexdigest()
