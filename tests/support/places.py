"""Functions of the program by name, for other processes that put something in their place.

A name is made of the function itself, so that one that moves is found by its import, and one that is gone by its lack.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

Function = Callable[..., Any]


def place_of(function: Function, within: ModuleType | None = None) -> str:
    """The name of a function or method; `within` narrows it to its calls from a module that imports it by name."""
    if within is None:
        return f"{function.__module__}:{function.__qualname__}"
    names = [name for name, value in vars(within).items() if value is function]
    assert names, f"{within.__name__} does not import {place_of(function)}"
    return f"{within.__name__}:{names[0]}"


def function_at(place: str) -> Function:
    """What `place_of` has named."""
    home, name = _home(place)
    found: Function = getattr(home, name)
    return found


def put_around(place: str, wrap: Callable[[Function], Function]) -> None:
    """Replace a function by what `wrap` makes of it: wherever it was imported to, or in the module that it is named in
    if that is not its own.
    """
    home, name = _home(place)
    found: Function = getattr(home, name)
    wrapped = wrap(found)
    setattr(home, name, wrapped)
    if isinstance(home, ModuleType) and found.__module__ == home.__name__:
        for module in [one for key, one in sys.modules.items() if key.split(".")[0] == "fitune"]:
            for key in [key for key, value in vars(module).items() if value is found]:
                setattr(module, key, wrapped)


def _home(place: str) -> tuple[Any, str]:
    """The module or class that holds it, and its name there."""
    module, _, names = place.partition(":")
    home: Any = importlib.import_module(module)
    *classes, name = names.split(".")
    for one in classes:
        home = getattr(home, one)
    return home, name
