"""The command line `ft`. Nothing here imports torch before a run needs it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fitune._version import __version__
from fitune.commands_after import eval_command, generate_command, merge_command
from fitune.commands_memory import explain_oom_command, plan_command
from fitune.commands_run import run_command
from fitune.commands_runs import runs_command
from fitune.errors import FtError, PluginError, nearest, sentences
from fitune.processes import is_main_process
from fitune.remote_code import FLAG
from fitune.secrets import redacted

if TYPE_CHECKING:
    from fitune.recipe import Use
    from fitune.registry import Provided, Registry

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Settings:
    """What the switches say that every command has."""

    debug: bool = False
    third_party: bool = True
    trace: bool = False
    trusts_remote_code: bool = False
    _registry: Registry | None = field(default=None, repr=False)

    def registry(self) -> Registry:
        """The plugins, loaded once."""
        from fitune.registry import Registry

        if self._registry is None:
            trace = partial(click.echo, err=True) if self.trace else None
            self._registry = Registry.open(
                third_party=self.third_party, trace=trace, trusts_remote_code=self.trusts_remote_code
            )
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
    """The switches of a command that may load a model. What trusts code is said each time: no variable says it."""
    help_text = "Let the model run Python code of its own, as the recipe says (trust_remote_code)."
    return _switch(FLAG, None, "trusts_remote_code", True, help_text)(switches(command))


class Commands(click.Group):
    """The built-in commands, and those that plugins add, which are loaded only when they are asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        """All commands, in alphabetical order."""
        self._add_from_plugins(context)
        return sorted(self.commands)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """A command by name; an unknown one is an error that names the nearest."""
        if name not in self.commands:
            self._add_from_plugins(context)
        if name not in self.commands and not context.resilient_parsing:
            raise FtError(sentences(f'no command "{name}"', nearest(name, self.commands), "See: ft --help"))
        return self.commands.get(name)

    def _add_from_plugins(self, context: click.Context) -> None:
        """Add them; a plugin that cannot, or that would replace a built-in command, is told of and harms nobody."""
        built_in = dict(self.commands)
        for error in context.ensure_object(Settings).registry().call_every("ft_commands", cli=self):
            click.echo(f"warning: {error.message}", err=True)
        for name, command in built_in.items():
            if self.commands[name] is not command:
                self.commands[name] = command
                click.echo(f'warning: a plugin wants to replace the built-in command "{name}"', err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ft")
@switches
def cli() -> None:
    """Fine-tune language models through plugins, on the one GPU that you have."""


recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Override a key of the recipe; may be repeated.",
)


@cli.command()
@recipe_argument
@set_option
@loading_switches
@click.pass_obj
def check(settings: Settings, recipe: Path, overrides: Sequence[str]) -> None:
    """Check RECIPE and all that it names, without reading a weight."""
    from fitune.reader import read_recipe

    read = read_recipe(recipe, settings.registry(), overrides)
    uses: list[Use[Any]] = [read.model, read.adapter, *read.strategies, *read.sources, *read.stages]
    click.echo(f"{recipe}: no problem found ({', '.join(use.record.name for use in uses)})")


@cli.command()
@recipe_argument
@set_option
@click.option("--row", type=click.IntRange(min=1), help="Show this row only, counted from 1.")
@click.option(
    "--rows", type=click.IntRange(min=0), default=2, show_default=True, help="Show so many of the first rows."
)
@click.option("--held-out", is_flag=True, help="Look at the held-out rows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@loading_switches
@click.pass_obj
def data(settings: Settings, /, recipe: Path, overrides: Sequence[str], **shown: Any) -> None:
    """Show what RECIPE trains on: counts, lengths, and rows with the trained text marked. Loads no model."""
    from fitune.reader import read_recipe
    from fitune.survey import show

    show(read_recipe(recipe, settings.registry(), overrides), **shown)


cli.add_command(run_command(loading_switches, recipe_argument, set_option))
cli.add_command(plan_command(loading_switches, recipe_argument, set_option))
cli.add_command(explain_oom_command(loading_switches, set_option))
cli.add_command(generate_command(loading_switches))
cli.add_command(eval_command(loading_switches))
cli.add_command(merge_command(loading_switches))
cli.add_command(runs_command(switches))


@cli.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@switches
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """List the plugins that are installed and what they provide."""
    if context.invoked_subcommand is not None:
        return
    from fitune import listing

    registry = context.ensure_object(Settings).registry()
    if as_json:
        click.echo(json.dumps(listing.rows(registry), indent=2))
    else:
        click.echo(listing.table(registry))


@plugins.command()
@click.argument("name")
@switches
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show the options of every provider called NAME, or of a plugin of that name: types, defaults, meaning."""
    from fitune import listing

    registry = settings.registry()
    found: list[Provided] = [p for p in registry.provided if name in (p.record.name, p.plugin)]
    if not found and name in registry.plugins:
        cause = registry.plugins[name].cause
        raise PluginError(f'the plugin "{name}" is broken: {cause}' if cause else f'"{name}" has no options to show')
    if not found:
        raise PluginError(f'no plugin provides "{name}". {nearest(name, {p.record.name for p in registry.provided})}')
    click.echo("\n\n".join(listing.details(provided) for provided in found))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `ft`. A user's error is one message on standard error and exit code 2; --debug shows where it was raised."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it warns of a kernel not used here
    settings = Settings()
    try:
        given = None if arguments is None else list(arguments)
        cli.main(args=given, prog_name="ft", obj=settings, standalone_mode=False)
    except FtError as error:
        if settings.debug:
            traceback.print_exception(error)
        elif is_main_process():  # the others fail for the same reason, and would say the same
            with contextlib.suppress(OSError):  # the disk under its log may be full: the exit code tells
                for line in error.lines:
                    click.echo(f"error: {redacted(line)}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
