"""Writes docs/hooks.md from the docstrings of the hooks, so that it cannot differ from the code.

python docs/make_hooks.py            writes it
python docs/make_hooks.py --check    exits with 1 if it is not up to date
"""

from __future__ import annotations

import doctest
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fitune.plugin.deprecation import hook_mark, this_release
from fitune.plugin.eventspecs import EventHooks
from fitune.plugin.extendspecs import ExtendHooks
from fitune.plugin.hookspecs import OfferHooks

PAGE = Path(__file__).with_name("hooks.md")
HEAD = """\
# Hooks

<!-- Made by docs/make_hooks.py from the specifications in core/fitune/plugin: change it there. -->

A plugin is a module (or an object) with functions of these names, each marked `@hookimpl`. An implementation may leave
out arguments that it does not need. Those from `ft_run_started` on are the events, which a listener hears too; they are
called in the main process alone. [plugins.md](plugins.md) says what each record must keep to.

"""


def hooks() -> dict[str, Callable[..., Any]]:
    """All hooks, in the order in which they are declared."""
    found = {**vars(OfferHooks), **vars(ExtendHooks), **vars(EventHooks)}
    return {name: function for name, function in found.items() if name.startswith("ft_")}


def signature(function: Callable[..., Any]) -> str:
    """A hook's name, arguments and types as they stand in the source, without `self`."""
    found = inspect.signature(function)
    arguments = ", ".join(f"{p.name}: {p.annotation}" for p in list(found.parameters.values())[1:])
    return f"{function.__name__}({arguments}) -> {found.return_annotation}"


def example(function: Callable[..., Any]) -> str:
    """The example of a hook's docstring, as plain code."""
    statements = doctest.DocTestParser().get_examples(inspect.getdoc(function) or "")
    code, block = "", True
    for source in (statement.source for statement in statements):
        before, block = block, source.startswith(("@", "class ", "def "))
        code += ("\n\n" if code and (before or block) else "") + source
    return code.strip()


def section(function: Callable[..., Any]) -> str:
    """A hook's part of the page."""
    text = inspect.getdoc(function) or ""
    what, _, rest = text.partition("Example:")
    added = re.search(r"\.\. versionadded:: (\S+)", rest)
    if added is None:
        raise ValueError(f"{function.__name__} does not say in which version it was added")
    return (
        f"## `{signature(function)}`\n\n{what.strip()}\n\n```python\n{example(function)}\n```\n\n"
        f"*versionadded: {added.group(1)}*\n{aged(function)}"
    )


def aged(function: Callable[..., Any]) -> str:
    """What is said of a hook that is deprecated."""
    mark = hook_mark(function)
    if mark is None:
        return ""
    return f"\n**Deprecated**: the hook {mark.told('', this_release()).sentence().strip()}.\n"


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(section(function) for function in hooks().values())


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(None if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE} is out of date: run {sys.argv[0]}")
    PAGE.write_text(page(), encoding="utf-8")
