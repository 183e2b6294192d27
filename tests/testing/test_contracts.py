"""The contracts of plugins are kept by those that come with fitune, and say what is broken of others."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fitune import testing

ROWS = [{"messages": [{"role": "user", "content": "a" * n}, {"role": "assistant", "content": "b"}]} for n in (1, 2, 3)]


@pytest.fixture
def nothing() -> ModuleType:
    """A plugin beside the built-in ones, which are there anyway: it hears of runs alone."""
    return made("@hookimpl\ndef ft_run_finished(run):\n    pass\n")


def made(text: str, name: str = "made") -> ModuleType:
    """A module of this text."""
    module = ModuleType(name)
    exec("from fitune import *\nfrom fitune import hookimpl\n" + text, module.__dict__)
    return module


@pytest.mark.parametrize(
    ("name", "options"),
    [("gradient-checkpointing", {}), ("chunked-loss", {"tokens": 8}), ("accumulation", {"steps": 2})],
)
def test_strategies(nothing: ModuleType, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    testing.assert_strategy(nothing, name, tmp_path, options)


@pytest.mark.parametrize(("name", "options"), [("lora", {"dora": True}), ("none", {})])
def test_adapters(nothing: ModuleType, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    testing.assert_adapter(nothing, name, tmp_path, options)


def test_loaders(nothing: ModuleType, tmp_path: Path) -> None:
    testing.write_tiny_model(tmp_path / "model")
    testing.assert_loader(nothing, "hf", tmp_path, {"path": str(tmp_path / "model"), "dtype": "bfloat16"})


def test_sources(nothing: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    options, damaged = ({"path": str(tmp_path / name)} for name in ("rows.jsonl", "bad.jsonl"))
    testing.assert_source(nothing, "jsonl", tmp_path, options, damaged=damaged)


@pytest.mark.parametrize("name", ["chat", "tokenize", "truncate", "pad"])
def test_stages(nothing: ModuleType, tmp_path: Path, name: str) -> None:
    testing.assert_stage(nothing, name, tmp_path)


def test_listeners(nothing: ModuleType, tmp_path: Path) -> None:
    testing.assert_listener(nothing, "metrics", tmp_path)


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_objectives(nothing: ModuleType, tmp_path: Path, name: str) -> None:
    testing.assert_objective(nothing, name, tmp_path)


def test_an_objective_whose_rows_share_something(nothing: ModuleType, tmp_path: Path) -> None:
    testing.assert_objective(nothing, "kto", tmp_path / "told", by_batch=True)
    with pytest.raises(AssertionError, match="how a step is cut into micro-batches"):
        testing.assert_objective(nothing, "kto", tmp_path / "untold")


STRATEGY = """
class Wrong(Strategy):
    def __init__(self, options):
        pass
{body}

@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="wrong", summary="s", options=NoOptions, make=Wrong, exact=True,
                         makes=({makes}))
"""

SAYS = '"optimizer",'

BROKEN_STRATEGIES = {
    "it cannot be forecast": """
    def prepare(self, model):
        assert next(model.parameters()).sum().item() != 0
        return model
""",
    "exact=True, but losses are off": """
    def make_optimizer(self, parameters, settings):
        import torch
        return torch.optim.SGD(parameters, lr=1.0)
""",
    "does not end as one that was not": """
    def make_optimizer(self, parameters, settings):
        import torch
        class Forgets(torch.optim.AdamW):
            def state_dict(self):
                found = super().state_dict()
                return {**found, "state": {k: {n: v * 0 if n == "exp_avg" else v for n, v in one.items()}
                                           for k, one in found["state"].items()}}
        return Forgets(parameters, lr=settings.learning_rate)
""",
}


@pytest.mark.parametrize("broken", BROKEN_STRATEGIES)
def test_what_is_broken_of_a_strategy_is_said(tmp_path: Path, broken: str) -> None:
    body = BROKEN_STRATEGIES[broken]
    plugin = made(STRATEGY.format(body=body, makes=SAYS if "make_optimizer" in body else ""))
    with pytest.raises(AssertionError, match=broken):
        testing.assert_strategy(plugin, "wrong", tmp_path)


@pytest.mark.parametrize(
    ("body", "makes", "told"),
    [
        (
            "    def make_optimiser(self, parameters, settings):\n        pass\n",
            "",
            'nobody calls its method "make_optimiser". Did you mean "make_optimizer"\\?',
        ),
        ("    def make_optimizer(self, parameters, settings):\n        pass\n", "", "it can make the optimizer, so"),
        ("    pass\n", SAYS, r'its record says makes=\("optimizer",\), and it does not'),
        (
            "    def plan(self, plan):\n        import dataclasses\n"
            "        return dataclasses.replace(plan, loss=lambda model, batch: 0)\n",
            "",
            "it can compute the loss in its own way",
        ),
    ],
)  # fmt: skip
def test_a_strategy_says_what_it_makes(tmp_path: Path, body: str, makes: str, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        testing.assert_strategy(made(STRATEGY.format(body=body, makes=makes)), "wrong", tmp_path)


def test_a_method_of_its_own_may_have_any_other_name(tmp_path: Path) -> None:
    body = "    def sizes(self):\n        pass\n    def _prepared(self):\n        pass\n"
    testing.assert_strategy(made(STRATEGY.format(body=body, makes="")), "wrong", tmp_path)


SOURCE = """
import itertools
COUNT = itertools.count(1)

def read(rows):
    yield from [{rows}]

@hookimpl
def ft_data_stages():
    yield DataStage(name="wrong", summary="s", options=NoOptions, takes="nothing", gives="rows",
                    make=lambda options, context: read)
"""

BROKEN_SOURCES = {
    "it gives no row": "",
    "gives a dict": "{}",
    "two rows have the same origin": 'Row(values={"text": "a"}, origin=Origin(file="f", row=1)), ' * 2,
    "something else at each reading": 'Row(values={"text": str(next(COUNT))}, origin=Origin(file="f", row=1))',
}


@pytest.mark.parametrize("broken", BROKEN_SOURCES)
def test_what_is_broken_of_a_source_is_said(tmp_path: Path, broken: str) -> None:
    with pytest.raises(AssertionError, match=broken):
        testing.assert_source(made(SOURCE.format(rows=BROKEN_SOURCES[broken])), "wrong", tmp_path)


def test_a_source_that_lets_damage_pass(nothing: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    options = {"path": str(tmp_path / "rows.jsonl")}
    with pytest.raises(AssertionError, match="damaged data pass"):
        testing.assert_source(nothing, "jsonl", tmp_path, options, damaged=options)


ADAPTER = """
def attach(options, model):
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    return model

def save(model, directory):
    {save}

def load(options, model, directory):
    return model.requires_grad_(False)

@hookimpl
def ft_adapters():
    yield Adapter(name="wrong", summary="s", options=NoOptions, attach={attach}, save=save, load=load)
"""

SAVES = 'from safetensors.torch import save_file; save_file({"w": model.lm_head.weight}, directory / "a.safetensors")'
BROKEN_ADAPTERS = {
    "leaves nothing that trains": {"save": SAVES, "attach": "lambda o, m: m.requires_grad_(False)"},
    "save wrote nothing, and must write": {"save": "pass", "attach": "attach"},
    "save wrote a.pt, and must write": {"save": "(directory / 'a.pt').write_text('')", "attach": "attach"},
    r"attach gave None, and must give a model of": {"save": SAVES, "attach": "lambda o, m: None"},
    "`load` gives other logits": {"save": SAVES, "attach": "attach"},
}


@pytest.mark.parametrize("broken", BROKEN_ADAPTERS)
def test_what_is_broken_of_an_adapter_is_said(tmp_path: Path, broken: str) -> None:
    with pytest.raises(AssertionError, match=broken):
        testing.assert_adapter(made(ADAPTER.format(**BROKEN_ADAPTERS[broken])), "wrong", tmp_path)


LISTENER = """
import torch

class Wrong:
    @hookimpl
    def ft_step_done(self, run, step):
        with torch.no_grad():
            next(p for p in run.model.parameters() if p.requires_grad).mul_(0.5)

@hookimpl
def ft_listeners():
    yield Listener(name="wrong", summary="s", options=NoOptions, make=lambda options: {make})
"""


@pytest.mark.parametrize(
    ("broken", "make"), [("a run with it learns something else", "Wrong()"), ("the same object again", "ONE")]
)
def test_what_is_broken_of_a_listener_is_said(tmp_path: Path, broken: str, make: str) -> None:
    plugin = made(LISTENER.format(make=make) + "\nONE = Wrong()\n")
    with pytest.raises(AssertionError, match=broken):
        testing.assert_listener(plugin, "wrong", tmp_path)
