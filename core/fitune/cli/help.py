"""`ft help` and `ft list`: what other tools call `ft --help` and `ft plugins`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from fitune.cli.printing import say, say_json
from fitune.cli.settings import Settings, switches
from fitune.errors import FtError, nearest, sentences


@click.command("help")
@click.argument("names", metavar="[COMMAND]...", nargs=-1)
@switches
@click.pass_context
def help_command(context: click.Context, names: Sequence[str]) -> None:
    """Show the commands, or what COMMAND takes: the same as ft COMMAND --help."""
    asked = context.find_root()
    for name in names:
        asked = _inside(asked, name)
    say(asked.get_help())


def _inside(context: click.Context, name: str) -> click.Context:
    """That of a command of this name in a group. Raises `FtError` where there is none, with the nearest."""
    group, path = context.command, context.command_path
    known = group.list_commands(context) if isinstance(group, click.Group) else []
    if not isinstance(group, click.Group) or name not in known:
        hint = nearest(name, known) if known else f"{path} has no commands of its own"
        raise FtError(sentences(f'no command "{path} {name}"', hint, f"See: {path} --help"))
    found = group.get_command(context, name)
    assert found is not None
    return click.Context(found, info_name=name, parent=context)


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@switches
@click.pass_obj
def list_command(settings: Settings, as_json: bool) -> None:
    """List the plugins that are installed: the same as ft plugins."""
    from fitune.cli.list_plugins import rows, table

    registry = settings.registry()
    if as_json:
        say_json(rows(registry))
    else:
        say(table(registry))
