"""Calling what plugins provide: what goes wrong in it, and what it gives that is not what it must give, is told in one
line with the plugin's name, before anything else trips over it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from fitune.errors import ModelError, PluginError
from fitune.plugin.contract import A_MODEL, blame, wrong_gift
from fitune.plugin.model import unwrapped
from fitune.plugin.recipe import Use
from fitune.plugin.registry import KINDS

T = TypeVar("T")


def title(use: Use[Any]) -> str:
    """What errors call a provider: its kind and name."""
    return f'{KINDS[type(use.record)]} "{use.record.name}"'


def call_plugin(use: Use[Any], function: Callable[..., T], *arguments: object) -> T:
    """Call what a plugin provides; what it raises, but for memory, gets the plugin's name."""
    with blame(title(use), but=torch.OutOfMemoryError):
        return function(*arguments)


def call_for(use: Use[Any], name: str, kind: type[T], function: Callable[..., object], *arguments: object) -> T:
    """The same, for what must be of a type; `name` is what the plugin's author knows the function by. Raises
    `PluginError` if it is not.
    """
    found = call_plugin(use, function, *arguments)
    if not isinstance(found, kind):
        raise wrong(use, name, found, f"a {kind.__module__.partition('.')[0]}.{kind.__name__}")
    return found


def call_for_callable(use: Use[Any], name: str, function: Callable[..., T], *arguments: object) -> T:
    """The same, for what is called later."""
    found = call_plugin(use, function, *arguments)
    if not callable(found):
        raise wrong(use, name, found, "something to call")
    return found


def call_for_context(
    use: Use[Any], name: str, function: Callable[..., object], *arguments: object
) -> AbstractContextManager[object]:
    """The same, for a context manager."""
    found = call_plugin(use, function, *arguments)
    if not isinstance(found, AbstractContextManager):
        raise wrong(use, name, found, "a context manager")
    return found


def call_for_model(use: Use[Any], name: str, function: Callable[..., object], *arguments: object) -> PreTrainedModel:
    """The same, for a model of transformers, or an adapter's wrapper around one."""
    found = call_plugin(use, function, *arguments)
    try:
        unwrapped(cast(nn.Module, found))
    except ModelError as error:
        raise wrong(use, name, found, A_MODEL) from error
    return cast(PreTrainedModel, found)


def wrong(use: Use[Any], name: str, found: object, wanted: str) -> PluginError:
    """What is said of a provider that gave something else than it must."""
    return wrong_gift(f"{title(use)}: {name}", found, wanted)
