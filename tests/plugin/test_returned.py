"""What a plugin gives back is not trusted: a wrong thing is one error that names who gave it, and what it must be."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from fitune.errors import FtError
from fitune.testing import write_recipe
from support.tiny import train

STRATEGY = """
class W(Strategy):
    def __init__(self, options):
        pass
    def {method}(self, *given):
        return {gives}

@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="w", summary="s", options=NoOptions, make={make})
"""
ADAPTER = """
def attach(options, model):
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    return {attached}

def save(model, directory):
    {saves}

@hookimpl
def ft_adapters():
    yield Adapter(name="w", summary="s", options=NoOptions, attach=attach, save=save)
"""
STAGE = """
@hookimpl
def ft_data_stages():
    yield DataStage(name="w", summary="s", options=NoOptions, takes="{takes}", gives="{gives}", make={make})
"""
LOADER = """
from dataclasses import make_dataclass

Taken = make_dataclass("Taken", [("path", str, ""), ("dtype", str, "")], frozen=True, kw_only=True)

def tokenizer(options):
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained("{place}")

@hookimpl
def ft_model_loaders():
    yield ModelLoader(name="w", summary="s", options=Taken, load_tokenizer={tokenizer}, load_model={model})
"""
OTHER = {"model": "a model of transformers", "call": "something to call", "context": "a context manager"}

STRATEGIES = {
    ("plan", "None"): "plan gave None, and must give a fitune.Plan",
    ("loaded", "3"): f"loaded gave a int, and must give {OTHER['model']}",
    ("prepare", "None"): f"prepare gave None, and must give {OTHER['model']}",
    ("distribute", "None"): f"distribute gave None, and must give {OTHER['model']}",
    ("make_optimizer", "3"): "make_optimizer gave a int, and must give a torch.optim.Optimizer, or None",
    ("own_gradients", "3"): "own_gradients gave a int, and must give a fitune.GradientOwner, or None",
    ("around_step", "None"): f"around_step gave None, and must give {OTHER['context']}",
    ("averaged", "3"): f"averaged gave a int, and must give {OTHER['context']}",
    ("micro_batch", "None"): f"micro_batch gave None, and must give {OTHER['call']}",
    ("whole", "3"): f"whole gave a int, and must give {OTHER['call']}",
    ("around_step", "1 / 0"): "failed: ZeroDivisionError: division by zero",
    ("micro_batch", "1 / 0"): "failed: ZeroDivisionError: division by zero",
}
SOURCES = {
    "lambda o, c: None": ": make gave None, and must give a function of an iterator",
    "lambda o, c: 1 / 0": " failed: ZeroDivisionError: division by zero",
    "lambda o, c: lambda s: None": " gave None, and must give an iterator",
    "lambda o, c: lambda s: iter([{}])": ' gave a dict, and must give a fitune.Row: it says that it gives "rows"',
    "lambda o, c: lambda s: iter([Row(values={}, origin=None)])": " gave a row whose origin is None",
    "lambda o, c: lambda s: iter([Row(values=3, origin=Origin(file='f', row=1))])": " gave a row (f:1) whose values",
    "lambda o, c: lambda s: (1 / 0 for _ in [1])": " failed: ZeroDivisionError: division by zero",
}


def refused(directory: Path, text: str, changes: dict[str, object]) -> str:
    """What a run with a plugin of this text ends with."""
    module = ModuleType("mine")
    exec(f"from fitune import *\nfrom fitune import hookimpl\n{text}", module.__dict__)
    with pytest.raises(FtError) as error:
        train(write_recipe(directory / "recipe", changes), directory / "run", plugins=[module])
    return error.value.message


@pytest.mark.parametrize(("method", "gives"), STRATEGIES)
def test_strategies(tmp_path: Path, method: str, gives: str) -> None:
    text = STRATEGY.format(method=method, gives=gives, make="W")
    said = refused(tmp_path, text, {"memory": {"strategy": [{"use": "w"}]}})
    assert said.startswith('memory strategy "w"')
    assert STRATEGIES[method, gives] in said


@pytest.mark.parametrize(("make", "gave"), [("lambda o: None", "None"), ("lambda o: W", "a class")])
def test_what_makes_a_strategy(tmp_path: Path, make: str, gave: str) -> None:
    text = STRATEGY.format(method="told", gives="()", make=make)
    said = refused(tmp_path, text, {"memory": {"strategy": [{"use": "w"}]}})
    assert said == f'memory strategy "w": make gave {gave}, and must give a fitune.Strategy'


def test_an_adapter_that_gives_no_model(tmp_path: Path) -> None:
    said = refused(tmp_path, ADAPTER.format(attached="None", saves="pass"), {"adapter": {"use": "w"}})
    assert said.startswith(f'adapter "w": attach gave None, and must give {OTHER["model"]}')


@pytest.mark.parametrize(
    ("saves", "what"),
    [
        ("pass", 'adapter "w": save wrote no safetensors'),
        ('(directory / "a.bin").write_bytes(b"x")', 'adapter "w": save wrote no safetensors'),
        ("1 / 0", 'adapter "w": save failed: ZeroDivisionError'),
    ],
)
def test_an_adapter_that_saves_nothing(tmp_path: Path, saves: str, what: str) -> None:
    assert what in refused(tmp_path, ADAPTER.format(attached="model", saves=saves), {"adapter": {"use": "w"}})


@pytest.mark.parametrize("make", SOURCES)
def test_sources(tmp_path: Path, make: str) -> None:
    text = STAGE.format(takes="nothing", gives="rows", make=make)
    said = refused(tmp_path, text, {"data": {"source": [{"use": "w"}]}})
    assert said.startswith(f'data stage "w"{SOURCES[make]}')


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ("lambda o, c: lambda s: (None for _ in s)", "gave None"),
        ("lambda o, c: lambda s: (Row(values={}, origin=c.origin) for c in s)", "gave a Row"),
    ],
)
def test_stages_are_blamed_for_what_they_give(tmp_path: Path, make: str, said: str) -> None:
    """And not the one behind them."""
    text = STAGE.format(takes="conversations", gives="conversations", make=make)
    found = refused(tmp_path, text, {"data": {"stage": [{"use": "w"}, {"use": "chat"}]}})
    wanted = 'a fitune.Conversation: it says that it gives "conversations"'
    assert found.startswith(f'data stage "w" {said}, and must give {wanted}')


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"tokenizer": "lambda o: None", "model": "lambda o, d: None"},
            "load_tokenizer gave None, and must give a fast",
        ),
        (
            {"tokenizer": "tokenizer", "model": "lambda o, d: 3"},
            f"load_model gave a int, and must give {OTHER['model']}",
        ),
    ],
)
def test_loaders(tmp_path: Path, given: dict[str, str], said: str) -> None:
    text = LOADER.format(place=tmp_path / "recipe" / "model", **given)
    assert refused(tmp_path, text, {"model": {"use": "w"}}).startswith(f'model loader "w": {said}')
