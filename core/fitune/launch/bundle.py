"""What is sent to another machine: the resolved recipe, the files that it names, the code and the exact versions."""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from fitune._version import __version__
from fitune.checkpoint.manifest import NAME as MANIFEST
from fitune.errors import RunError
from fitune.launch.requirements import requirements
from fitune.plugin.built_in import PLUGINS
from fitune.plugin.digest import digest_of
from fitune.plugin.recipe import Recipe, Use
from fitune.plugin.registry import Registry
from fitune.runs.layout import CHECKPOINTS, IDENTITY, RECIPE

T = TypeVar("T")

CODE = ("fitune", PLUGINS)
"""Packages that are sent as they are here."""

SCRIPTS = ("start.py", "work.py", "container.py")
"""What begins a job, beside this file."""

LINKED = 1 << 26
"""Bytes from which a file is linked in place of copied, where that is possible: what is sent is only read."""


LONGEST = 63
"""Characters of a job's name: what SageMaker, SkyPilot and host names take."""


def make_bundle(recipe: Recipe, registry: Registry, directory: Path, arguments: Sequence[str] = ()) -> int:
    """Write all that a job needs into a directory, which is made; gives its bytes. `arguments` are more words for
    `ft run`. Raises `RunError`.
    """
    try:
        directory.mkdir(parents=True)
        files = _Files(directory)
        values = moved(recipe, files.place).to_toml(directory)
        (directory / RECIPE).write_text(tomli_w.dumps(values), encoding="utf-8")
        lines = requirements(recipe, registry)
        (directory / "requirements.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        for name in (*CODE, *recipe.model.record.carriers(recipe.model.options)):
            _copy_package(name, directory / "code" / name)
        return seal(directory, recipe.general.name, arguments)
    except shutil.Error as error:
        (source, _, why), *_ = error.args[0]
        raise RunError(f"what is to be sent cannot be gathered: {source}: {why}") from error
    except OSError as error:
        where = error.filename or directory
        raise RunError(f"what is to be sent cannot be gathered: {where}: {error.strerror or error}") from error


def seal(directory: Path, name: str, arguments: Sequence[str] = ()) -> int:
    """Add what begins a job to a directory that holds its recipe, code and versions, and the digests of all that is in
    it; gives its bytes. Raises `OSError`.
    """
    for script in SCRIPTS:
        shutil.copyfile(Path(__file__).with_name(script), directory / script)
    places = [place for place in sorted(directory.rglob("*")) if place.is_file()]
    said = {
        "format": 1,
        "fitune": __version__,
        "name": name,
        "arguments": list(arguments),
        "files": {place.relative_to(directory).as_posix(): digest_of(place) for place in places},
    }
    (directory / "bundle.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return sum(place.stat().st_size for place in places)


def moved(value: T, place: Any) -> T:
    """A recipe, or a part of it, with every path in it changed by `place`, but for that of its own file."""
    if isinstance(value, Path):
        return place(value)  # type: ignore[no-any-return]
    if isinstance(value, tuple):
        return tuple(moved(one, place) for one in value)  # type: ignore[return-value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    own = {Recipe: "path", Use: "record"}.get(type(value))
    names = [field.name for field in dataclasses.fields(value) if field.init and field.name != own]
    return dataclasses.replace(value, **{name: moved(getattr(value, name), place) for name in names})


class _Files:
    """The files that a recipe names, each copied once, into numbered directories."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "files"
        self.known: dict[Path, Path] = {}

    def place(self, path: Path) -> Path:
        """Where a path leads in what is sent; one that leads nowhere stays as it is. Raises `OSError`."""
        if path not in self.known:
            self.known[path] = self._copied(path, self.home / str(len(self.known)))
        return self.known[path]

    def _copied(self, path: Path, into: Path) -> Path:
        if path.parent.name == CHECKPOINTS and (path / MANIFEST).is_file():  # of a run, which says what it was
            run = path.parents[1]
            for file in (run / RECIPE, run / IDENTITY):
                if file.is_file():
                    (into / run.name).mkdir(parents=True, exist_ok=True)
                    _copy(file, into / run.name / file.name)
            _copy_tree(path, into / run.name / CHECKPOINTS / path.name)
            return into / run.name / CHECKPOINTS / path.name
        if path.is_dir():
            _copy_tree(path, into / path.name, leave=[CHECKPOINTS] if (path / IDENTITY).is_file() else [])
        elif path.is_file():
            into.mkdir(parents=True)
            _copy(path, into / path.name)
        elif glob.has_magic(str(path)):
            parts = list(_plain_parts(path))
            root = Path(*parts)
            pattern = path.relative_to(root)
            for found in sorted(glob.iglob(str(pattern), root_dir=root, recursive=True)):  # noqa: PTH207 - as sources do
                if (root / found).is_file():
                    (into / found).parent.mkdir(parents=True, exist_ok=True)
                    _copy(root / found, into / found)
            return into / pattern
        else:
            return path
        return into / path.name


def _plain_parts(path: Path) -> Iterator[str]:
    """The parts of a pattern before the first that stands for several."""
    for part in path.parts:
        if glob.has_magic(part):
            return
        yield part


def _copy_tree(source: Path, target: Path, above: tuple[Path, ...] = (), leave: Sequence[str] = ()) -> None:
    """Copy a directory, but for what is to be left, and what links in it lead to. Raises `OSError`, for links that go
    round in circles too.
    """
    real = source.resolve()
    if real in above:
        raise OSError(None, "it leads back to a directory that it lies in", str(source))
    target.mkdir(parents=True)
    for place in sorted(source.iterdir()):
        if place.name == ".git" or place.name.startswith(".lock") or place.name in leave:
            continue
        if place.is_dir():
            _copy_tree(place, target / place.name, (*above, real))
        else:
            _copy(place, target / place.name)


def _copy(source: str | Path, target: str | Path) -> None:
    """Copy a file; link one that is large. Raises `OSError`."""
    if not Path(source).is_file():  # a pipe would be waited for
        what = "it is no file" if Path(source).exists() else "it is a link that leads nowhere"
        raise OSError(None, what, str(source))
    if Path(source).stat().st_size >= LINKED:
        try:
            os.link(Path(source).resolve(), target)
            return
        except OSError:  # on another disk
            pass
    shutil.copyfile(source, target)


def _copy_package(name: str, target: Path) -> None:
    """Copy a package's files, as they are imported here; what is large is linked. Raises `RunError` for one that lies
    in no directory.
    """
    spec = importlib.util.find_spec(name)
    home = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    if home is None or not home.is_dir():
        raise RunError(f"the package {name} lies in no directory here, so that its code cannot be sent")
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(home, target, ignore=ignore, copy_function=_copy, dirs_exist_ok=True)


def job_name(recipe: str) -> str:
    """A name that no other job has: letters, digits and dashes."""
    plain = re.sub(r"[^a-zA-Z0-9]+", "-", recipe).strip("-")[: LONGEST - 20].strip("-") or "run"
    return f"fitune-{plain}-{secrets.token_hex(5)}"
