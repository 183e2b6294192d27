"""What several commands have in common: switches, arguments and options, and the plugins that they load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fitune.cli.printing import say
from fitune.plugin.trust import FLAG as ALLOW_PLUGINS
from fitune.plugin.trust import VARIABLE
from fitune.recipe.checks import FLAG

if TYPE_CHECKING:
    from fitune.data.prepare import Watch
    from fitune.plugin.registry import Registry
    from fitune.trained.open import Trained

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Settings:
    """What the switches say that every command has."""

    debug: bool = False
    third_party: bool = True
    trace: bool = False
    trusts_remote_code: bool = False
    allows_plugins: bool = False
    takes_other_plugins: bool = False
    arguments: tuple[str, ...] = ()
    """All that `ft` was given."""
    _registry: Registry | None = field(default=None, repr=False)

    def has_installed(self) -> bool:
        """Whether plugins are installed that may be loaded; looks, and loads none."""
        from fitune.plugin.registry import GROUP
        from fitune.plugin.versions import entries_of

        return self.third_party and bool(entries_of(GROUP))

    def registry(self) -> Registry:
        """The plugins, loaded once."""
        from fitune.cli.allow import trust_of
        from fitune.plugin.registry import Registry

        if self._registry is None:
            trace = partial(say, err=True) if self.trace else None
            self._registry = Registry.open(
                third_party=self.third_party,
                trace=trace,
                trusts_remote_code=self.trusts_remote_code,
                trust=trust_of(allowed=self.allows_plugins),
            )
            self._registry.takes_other_plugins = self.takes_other_plugins
        return self._registry


def _switch(name: str, envvar: str | None, attribute: str, value: bool, text: str) -> Callable[[F], F]:
    def store(context: click.Context, parameter: click.Parameter, given: bool) -> None:
        if given:
            setattr(context.ensure_object(Settings), attribute, value)

    return click.option(name, is_flag=True, expose_value=False, callback=store, envvar=envvar, help=text)


def switches(command: F) -> F:
    """The switches that every command has, before or behind its name."""
    for switch in (
        _switch("--trace-hooks", "FT_TRACE_HOOKS", "trace", True, "Print each hook call, its plugin and time."),
        _switch("--no-third-party", "FT_NO_THIRD_PARTY", "third_party", False, "Load no installed plugins."),
        _switch("--debug", "FT_DEBUG", "debug", True, "Show the traceback of an error."),
    ):
        command = switch(command)
    return command


def loading_switches(command: F) -> F:
    """The switches of a command that reads a recipe and may load a model. What trusts a model's code is said each time:
    no variable says it.
    """
    help_text = "Let the model run Python code of its own, as the recipe says (trust_remote_code)."
    command = _switch(FLAG, None, "trusts_remote_code", True, help_text)(switches(command))
    return allowing("Run the single-file plugins that the recipe names")(command)


def allowing(what: str) -> Callable[[F], F]:
    """The switch that lets run what is not known on this machine."""
    help_text = f"{what}, and know them from then on; ${VARIABLE}=1 for once."
    return _switch(ALLOW_PLUGINS, None, "allows_plugins", True, help_text)


class RecipePath(click.ParamType[Path]):
    """The path of a recipe, or the name of one that is shipped."""

    name = "path"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Give the file that is meant."""
        from fitune.recipe.shipped import located

        return located(Path(value))


recipe_argument = click.argument("recipe", type=RecipePath())

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Override a key of the recipe; may be repeated.",
)

run_argument = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))

checkpoint_option = click.option(
    "--checkpoint",
    metavar="NAME",
    help='A checkpoint of the run, e.g. step-120, "last" or "best".  [default: what the run ended with, else the last]',
)


def _take_other_plugins(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> None:
    context.ensure_object(Settings).takes_other_plugins = bool(given)


changed_plugins_option = click.option(
    "--allow-changed",
    multiple=True,
    type=click.Choice(["plugins"]),
    expose_value=False,
    callback=_take_other_plugins,
    help="Open it though plugins are others than it was trained with.",
)

base_option = click.option("--base", is_flag=True, help="The model as it was before training, to compare.")


def tell_of(trained: Trained) -> None:
    """Say what is to be known of the checkpoint that was opened."""
    for notice in trained.notices:
        say(f"note: {notice}", err=True)


def watch() -> Watch:
    """Bars on standard error, while data are prepared and rows evaluated."""
    from fitune.cli.progress import Progress
    from fitune.cli.text_console import TextConsole

    return Progress(TextConsole(stderr=True))
