"""A strategy that computes what the run's objective does not ask for is named, in a forecast and in a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitune import Batch, MemoryStrategy, NoOptions, Notice, Plan, Strategy, hookimpl
from fitune.compose.loss import plain_log_probs, plain_loss
from fitune.memory.cards.cards import find_card
from fitune.memory.shapes import of_recipe
from fitune.memory.trace.run import trace
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.objectives import write_preference_recipe
from support.tiny import train


class Own(Strategy):
    """Computes the loss, and with it log-probabilities, in a way of its own."""

    def __init__(self, *, both: bool) -> None:
        self.both = both

    def plan(self, plan: Plan) -> Plan:
        """Of which nobody sees a difference."""

        def loss(model: Any, batch: Batch) -> Any:
            return plain_loss(model, batch)

        def log_probs(model: Any, batch: Batch) -> Any:
            return plain_log_probs(model, batch)

        return replace(plan, loss=loss, log_probs=log_probs if self.both else plan.log_probs)


class Owns:
    """A plugin: strategies `loss-alone` and `both`; keeps notices."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []

    @hookimpl
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[NoOptions]]:
        """Offer them."""
        kinds: dict[str, Callable[[NoOptions], Strategy]] = {
            "loss-alone": lambda options: Own(both=False),
            "both": lambda options: Own(both=True),
        }
        for name, make in kinds.items():
            yield MemoryStrategy(name=name, summary="Own", options=NoOptions, make=make)

    @hookimpl
    def ft_noticed(self, notice: Notice) -> None:
        """Keep those of such strategies."""
        if notice.kind == "no effect":
            self.notices.append(notice)


PLAIN, NONE = "log-probabilities are computed over the full logits", "asks for none"
HAS = "has no effect here: it changes how losses of tokens"
CASES = {
    "loss alone": ("loss-alone", "dpo", f'loss-alone {HAS} are computed, and "dpo" asks for none; {PLAIN}'),
    "both": ("both", "dpo", ""),
    "in chunks": ("chunked-loss", "kto", ""),
    "sft": ("loss-alone", "sft", ""),
    "scores": ("chunked-loss", "reward", f'chunked-loss {HAS} and log-probabilities are computed, and "reward" {NONE}'),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_said(case: str, tmp_path: Path) -> None:
    strategy, objective, expected = CASES[case]
    recipe = write_preference_recipe(tmp_path / "recipe")
    overrides = [f'objective={{use="{objective}"}}', f'memory.strategy=[{{use="{strategy}"}}]', "train.steps=2"]
    if objective == "sft":
        (recipe.parent / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4, encoding="utf-8")
        (recipe.parent / "held_out.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    owns = Owns()
    read = read_recipe(recipe, open_registry(owns), overrides)
    found = [line for line in trace(read, of_recipe(read), find_card("a10g")).notices if "no effect" in line]
    assert found == ([expected] if expected else [])
    train(recipe, tmp_path / "run", *overrides, plugins=[owns])
    assert [notice.what for notice in owns.notices] == found  # once, whatever the number of steps
