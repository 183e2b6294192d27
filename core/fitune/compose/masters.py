"""What trains of a run's model, with the masters that the run, or a strategy that owns gradients, has for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from fitune.compose.calling import call_plugin, wrong
from fitune.compose.optimizer import Trainables
from fitune.plugin.recipe import Recipe

if TYPE_CHECKING:
    from fitune.compose.model import Strategies


def trainables_of(recipe: Recipe, strategies: Strategies, model: nn.Module) -> Trainables:
    """The parameters of a prepared model that train. Raises `ModelError` if there are none, and `PluginError`."""
    owning = next(((use, made) for use, made in strategies if "gradients" in use.record.makes), None)

    def make(parameter: nn.Parameter) -> nn.Parameter | None:
        if owning is None:
            return None
        use, strategy = owning
        master: object = call_plugin(use, strategy.make_master, parameter)
        if master is not None and not (isinstance(master, nn.Parameter) and master.shape == parameter.shape):
            raise wrong(use, "make_master", master, f"a parameter of the shape {list(parameter.shape)}, or None")
        return master

    return Trainables(model, masters=recipe.train.master_weights, make=make)
