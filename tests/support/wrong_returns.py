"""A plugin that gives wrong things: a provider for each function that gives something, which gives something else."""

SOURCE = """
from fitune import (
    Adapter, DataStage, Listener, MemoryStrategy, ModelLoader, NoOptions, Objective, Strategy, hookimpl,
)

SOUND = {"summary": "Gives a wrong thing", "options": NoOptions}


def strategy(method, given):
    kind = type("Wrong", (Strategy,), {"__init__": lambda self, options: None, method: lambda self, *_: given})
    return MemoryStrategy(name=f"wrong-{method}", make=kind, **SOUND)


@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="wrong-make", make=lambda options: None, **SOUND)
    for method in ("plan", "loaded", "prepare", "distribute", "whole", "around_step", "micro_batch"):
        yield strategy(method, None)
    yield strategy("make_optimizer", 3)
    yield strategy("own_gradients", 3)


def attached(options, model):
    return model.requires_grad_(True)


@hookimpl
def ft_adapters():
    yield Adapter(name="wrong-attach", attach=lambda options, model: None, save=lambda *_: None, **SOUND)
    yield Adapter(name="wrong-save", attach=attached, save=lambda *_: None, **SOUND)


@hookimpl
def ft_objectives():
    yield Objective(name="wrong-objective", make=lambda options: None, **SOUND)


@hookimpl
def ft_data_stages():
    yield DataStage(
        name="wrong-source", takes="nothing", gives="rows",
        make=lambda *_: lambda nothing: iter([{"text": "a"}]), **SOUND
    )
    yield DataStage(
        name="wrong-stage", takes="conversations", gives="conversations",
        make=lambda *_: lambda stream: (3 for _ in stream), **SOUND
    )


@hookimpl
def ft_listeners():
    yield Listener(name="wrong-listener", make=lambda options: None, **SOUND)
"""
"""Its text; nothing of it is wrong where it is loaded."""
