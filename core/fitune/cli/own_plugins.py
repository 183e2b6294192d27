"""`ft plugins new` and `ft plugins check`: a plugin of one's own, begun and held to the contract of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fitune.cli.printing import say, say_json
from fitune.cli.settings import switches
from fitune.errors import PluginError

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("name")
@click.option("--kind", required=True, help="loader, adapter, strategy, source, stage, listener, objective, launcher "
              "or command.")  # fmt: skip
@click.option("--single-file", is_flag=True, help="A file to put beside a recipe, in place of a package.")
@click.option("--to", type=click.Path(path_type=Path), help="Where it is written: fitune-NAME, or NAME.py, by default.")
@json_option
@switches
def new(name: str, kind: str, single_file: bool, to: Path | None, as_json: bool) -> None:
    """Write a plugin called NAME to begin with: a package, with tests that pass as it is made."""
    from fitune.testing import scaffold

    if single_file:
        file = to or Path(f"{name.replace('-', '_')}.py")
        text = scaffold.single_file(name, kind)
        _write_new(file, text)
        if as_json:
            say_json({"files": [str(file)]})
            return
        say(f'{file}\nnext  name it in a recipe: plugins = ["./{file.name}"]    ft plugins check {file}')
        return
    directory = to or Path(f"fitune-{name}")
    files: list[str] = []
    for made in scaffold.write(scaffold.package(name, kind), directory):
        files.append(str(made))
        if not as_json:
            say(str(made))
    if as_json:
        say_json({"files": files})
        return
    say(f"next  pip install -e '{directory}[test]'    pytest {directory}    ft plugins check {directory}")


@click.command()
@click.argument("place")
@click.option("--set", "given", multiple=True, metavar="NAME.KEY=VALUE", help="An option of one that it provides.")
@json_option
@switches
def check(place: str, given: tuple[str, ...], as_json: bool) -> None:
    """Hold all that a plugin provides to the contract of its kind, on a tiny model. PLACE is its Python file, its
    package's directory, or its name where it is installed. Runs its code.
    """
    from dataclasses import asdict

    from fitune.plugin.deprecation import hearing
    from fitune.runs.history.words import aligned
    from fitune.testing import check as checking

    options = _options(given)
    found: list[checking.Checked] = []
    with hearing() as heard:
        plugins = [checking.opened(module) for module in checking.modules_at(place)]
        unknown = sorted(options.keys() - {one.record.name for plugin in plugins for one in plugin.provided})
        if unknown:
            raise PluginError(f'--set {unknown[0]}...: {place} provides no "{unknown[0]}"')
        for plugin in plugins:
            checking.must_be_options(plugin, options)
        for one in (one for plugin in plugins for one in checking.check(plugin, options)):
            found.append(one)
            if not as_json:
                told = f"{one.what} ({one.seconds:.0f} s)" if one.outcome == "ok" and one.seconds else one.what
                say("\n".join(aligned([(one.kind, one.name, one.outcome, told)])))
    for text in heard:
        say(f"note: {text}", err=True)
    if as_json:
        say_json([asdict(one) for one in found])
    bad = [one for one in found if one.outcome != "ok"]
    if bad:
        raise PluginError(f"{place}: {_counted(bad, 'failed')}{_counted(bad, 'not tried')}of {len(found)}")


def _counted(found: Sequence[Any], outcome: str) -> str:
    number = sum(one.outcome == outcome for one in found)
    return f"{number} {outcome} " if number else ""


def _write_new(file: Path, text: str) -> None:
    """Write a file that is not there yet. Raises `PluginError`."""
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as error:
        raise PluginError(f"{file} is there already. Give another place with --to FILE") from error
    except OSError as error:
        raise PluginError(f"{file} cannot be written: {error}") from error


def _options(given: Sequence[str]) -> dict[str, dict[str, object]]:
    """Options by the name of what takes them. Raises `PluginError`."""
    import tomli

    options: dict[str, dict[str, object]] = {}
    for one in given:
        key, equal, value = one.partition("=")
        name, dot, option = key.partition(".")
        if not (equal and dot and name and option):
            raise PluginError(f"--set {one}: write NAME.KEY=VALUE, e.g. --set my-source.path=rows.txt")
        try:
            read: object = tomli.loads(f"value = {value}")["value"]
        except tomli.TOMLDecodeError:
            read = value  # a text need not be quoted
        if isinstance(read, str) and Path(read).exists():  # a contract is tried in a directory of its own
            read = str(Path(read).absolute())
        options.setdefault(name, {})[option] = read
    return options
