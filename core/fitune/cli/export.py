"""`ft export`: its options. What it does is in `fitune.trained.export`, which is imported when it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fitune.cli.numbers import Finite
from fitune.cli.places import model_option
from fitune.cli.printing import say
from fitune.cli.settings import (
    Settings,
    changed_plugins_option,
    checkpoint_option,
    loading_switches,
    run_argument,
    tell_of,
    watch,
)
from fitune.errors import RunError
from fitune.plugin.units import gib

if TYPE_CHECKING:
    from fitune.trained.open import Trained

FORMS = ("gguf", "ollama", "hub")

TYPES = ("f16", "bf16", "q8_0")


@click.command("export")
@run_argument
@click.option("--to", "form", required=True, type=click.Choice(FORMS), help="What for.")
@click.option("--type", "kind", type=click.Choice(TYPES), help="Of a GGUF file's weights.  [default: f16]")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory to write: new, or empty.  [default: RUN/export/FORM-TYPE]",
)
@checkpoint_option
@click.option(
    "--rows", type=click.IntRange(min=1), metavar="N", help="Rows to compare the file with the run on.  [default: 16]"
)
@click.option("--data", metavar="FILE", type=click.Path(path_type=Path), help="Compare on rows of this file.")
@click.option(
    "--limit",
    type=Finite(min=0, min_open=True),
    metavar="X",
    help="Largest relative difference, and distance of the share from 1.  [default: by type]",
)
@click.option("--repo", metavar="OWNER/NAME", help="Repository of the hub.")
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="For the hub: what ft merge or ft export wrote.  [default: what RUN trained]",
)
@click.option("--push", is_flag=True, help="Send it to the hub. Without it, what would be sent is shown.")
@click.option("--private", is_flag=True, help="Make a repository of the hub that others cannot see.")
@model_option
@changed_plugins_option
@loading_switches
@click.pass_obj
def export_command(settings: Settings, /, run: Path, form: str, **asked: Any) -> None:
    """Write what RUN trained for other programs, and prove that it is the same.

    gguf: one file for llama.cpp, of weights, tokenizer and chat template. ollama: that, with a Modelfile. Both are
    merged, read again and compared with the run as `ft merge` does, and written whole or not at all. hub: to the
    Hugging Face hub, with --push.
    """
    of_hub = {name: asked.pop(name) for name in ("repo", "directory", "push", "private")}
    if form == "hub":
        _must_be_unset("hub", {name: asked[name] for name in ("kind", "out", "rows", "data", "limit")})
        _send(settings, run, asked["checkpoint"], asked["model"], **of_hub)
    else:
        _must_be_unset(form, of_hub)
        _write(settings, run, form, **asked)


def _must_be_unset(form: str, options: dict[str, Any]) -> None:
    """Raise `RunError` if an option is given that would have no effect."""
    given = [name for name, value in options.items() if value not in (None, False)]
    if given:
        name = "type" if given[0] == "kind" else given[0]
        raise RunError(f"--{name} has no effect with --to {form}. Leave it out")


def _write(
    settings: Settings,
    run: Path,
    form: str,
    *,
    kind: str | None,
    out: Path | None,
    checkpoint: str | None,
    data: Path | None,
    model: Path | None,
    rows: int | None,
    limit: float | None,
) -> None:
    from fitune.trained.evaluate import find_to_evaluate
    from fitune.trained.open import find

    registry = settings.registry()
    if data is None:
        trained = find(run, registry, checkpoint, model=model)
    else:
        trained = find_to_evaluate(run, registry, checkpoint, (), data, model)
    tell_of(trained)
    import torch

    from fitune.trained.export.gguf import Gguf
    from fitune.trained.export.ollama import Ollama
    from fitune.trained.merge import Merge, merge

    chosen: Any = kind or "f16"
    written = {"gguf": Gguf, "ollama": Ollama}[form](name=_name(trained), type=chosen)
    to = out or run / "export" / f"{form}-{chosen}"
    to = to if to.name not in ("", "..") else to.resolve()  # what is written needs a name to stand beside
    asked = Merge(to=to, dtype=torch.float32, limit=limit, rows=rows or 16, file=data is not None, form=written)
    found = merge(trained, asked, watch())
    for line in found.lines:
        say(line)
    for notice in written.notices(trained):
        say(f"note: {notice}")
    say(f"exported {to / written.file}  ({gib((to / written.file).stat().st_size, 3)})")
    if form == "ollama":
        say(f"next: ollama create {written.name.lower()} -f {to / 'Modelfile'}")


def _name(trained: Trained) -> str:
    """The model's name in file names: the recipe's, of plain characters alone."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", trained.recipe.general.name).strip("-.") or "model"


def _send(
    settings: Settings,
    run: Path,
    checkpoint: str | None,
    model: Path | None,
    *,
    repo: str | None,
    directory: Path | None,
    push: bool,
    private: bool,
) -> None:
    from fitune.trained.export import hub
    from fitune.trained.open import find

    if repo is None:
        raise RunError("--to hub needs to know where to: --repo OWNER/NAME")
    hub.must_be_repository(repo)
    if directory is None:
        trained = find(run, settings.registry(), checkpoint, model=model)
        tell_of(trained)
        directory = trained.weights
    files = hub.files_of(directory)
    for file in files:
        say(f"  {file.name}  {file.bytes:,} bytes")
    total = gib(sum(file.bytes for file in files), 3)
    kind = "private" if private else "public"
    if not push:
        say(
            f"{len(files)} files ({total}) would be sent to {repo}, {kind} if it is new. Nothing is sent without --push"
        )
        return
    say(f"sent {len(files)} files ({total}): {hub.send(directory, files, repo, private=private)}")
