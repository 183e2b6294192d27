"""What `ft data` shows of prepared rows, kept for the next time: then neither a tokenizer nor a model is loaded.

A preview lies in the cache under a key of all that it depends on: the recipe with every choice explicit, the content of
its sources and of the files that stages name, the model, the code of fitune and of all plugins, the packages that are
installed, and what was asked. It is sealed as prepared rows are (`seal.py`), and shown only while the very rows that it
is of are whole in the cache. Whatever of this cannot be told keeps nothing.

Of the model the key has what its loader says of its weights, and of each file beside them the size, the inode and the
times: what is written anew has another time of change, which no program sets. So none is kept of files that were
changed a moment ago, whose next change might have the same time. A loader of a third party may read anything: none is
kept where it is asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fitune._version import __version__
from fitune.data.cache import cache_directory, seal_of_whole
from fitune.data.cache_key import contents_of
from fitune.data.origins import paths_of
from fitune.data.seal import is_sealed, seal_of, users_key
from fitune.data.split import Share
from fitune.data.survey import ShownRow, Survey
from fitune.errors import FtError
from fitune.plugin.code import code_behind, code_of, code_of_plugin
from fitune.plugin.digest import digest_of
from fitune.plugin.reading import read_json
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry

PLACE = "previews"
"""Where they lie in the cache, a file each."""

MOST = 64
"""How many are kept: the oldest go first."""

LARGEST = 1 << 20
"""Bytes of the largest that is kept."""

FILES = 2000
"""The most files beside a model's weights that are looked at."""

AWHILE = 2.0
"""Seconds that all files must have been as they are: more than the steps of any file system's clock."""

SEAL = "seal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What is shown."""

    entry: str
    """Name of the prepared rows' entry in the cache."""
    sealed: str
    """That entry's seal."""
    survey: Survey
    notices: tuple[str, ...]
    """What the model makes of the rows' lengths."""
    rows: tuple[ShownRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Previews:
    """Where the preview of one question is kept."""

    file: Path

    @classmethod
    def of(cls, recipe: Recipe, registry: Registry, asked: Sequence[object]) -> Previews | None:
        """That of a recipe and of what was asked; None where one cannot be kept."""
        with contextlib.suppress(FtError, OSError, ValueError):
            parts = _parts(recipe, registry, asked)
            if parts is not None:
                key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
                return cls(file=cache_directory() / PLACE / f"{key}.json")
        return None

    def read(self) -> Preview | None:
        """The preview, where it is there, of this user, and its rows are in the cache."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            said = dict(read_json(self.file))
            ours = is_sealed(users_key(), self.file.stem, said, said.pop(SEAL))
            if ours and seal_of_whole(said["entry"]) == said["sealed"]:
                counted = {**said["survey"], "shares": [Share(**share) for share in said["survey"]["shares"]]}
                return Preview(
                    entry=said["entry"],
                    sealed=said["sealed"],
                    survey=Survey(**counted),
                    notices=tuple(said["notices"]),
                    rows=tuple(ShownRow(**row) for row in said["rows"]),
                )
        return None

    def keep(self, shown: Preview) -> None:
        """Keep it, where there is room; the next time its rows come from the cache."""
        said = json.loads(json.dumps(asdict(replace(shown, survey=replace(shown.survey, cached=True)))))
        with contextlib.suppress(OSError):
            text = json.dumps({**said, SEAL: seal_of(users_key(), self.file.stem, said)})
            if len(text) > LARGEST:
                return
            place = self.file.parent
            place.mkdir(parents=True, exist_ok=True)
            number, made = tempfile.mkstemp(dir=place)
            try:
                with os.fdopen(number, "w", encoding="utf-8") as stream:
                    stream.write(text)
                Path(made).replace(self.file)
            except OSError:
                Path(made).unlink(missing_ok=True)
                raise
            for old in sorted(place.iterdir(), key=lambda file: file.stat().st_mtime)[:-MOST]:
                old.unlink(missing_ok=True)


def _parts(recipe: Recipe, registry: Registry, asked: Sequence[object]) -> list[object] | None:
    """All that a preview depends on; None where something of it cannot be told. Raises `FtError`, `OSError`."""
    sources = (*recipe.sources, *recipe.eval_sources)
    contents = contents_of(sources) if recipe.data.cache else None
    model, plugins = _model(recipe, registry), _plugins(registry)
    if contents is None or model is None or plugins is None:
        return None
    named = sorted({path for use in recipe.stages for path in paths_of(use.options) if path.is_file()})
    own = code_of(str(Path(__file__).parents[1]))
    providers = code_behind(*(use.record.make for use in (*sources, *recipe.stages)))
    return [
        [__version__, own, providers, plugins, sys.version, sorted(_installed())],
        [recipe.to_toml(), contents, [[str(path), digest_of(path)] for path in named]],
        model,
        list(asked),
    ]


def _model(recipe: Recipe, registry: Registry) -> list[object] | None:
    """What says which tokenizer and which configuration would be loaded: of a loader that comes with fitune, which
    reads nothing but the weights and what lies beside them.
    """
    record, options = recipe.model.record, recipe.model.options
    provided = registry.provided_by(record)
    ours = provided is not None and registry.plugins[provided.plugin].origin == "built-in"
    if not ours or record.fingerprint is None or getattr(options, "trust_remote_code", False):
        return None
    weights = [file.absolute() for file in record.files(options)]
    base = record.fingerprint(options) if weights else None
    files = list(itertools.islice(_beside(weights), FILES))
    found = [(file, file.stat()) for file in files]
    newest = max((max(stat.st_mtime, stat.st_ctime) for _, stat in found), default=0.0)
    if base is None or len(files) == FILES or newest > time.time() - AWHILE:
        return None
    told = [(str(file.resolve()), s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for file, s in found]
    return [base, code_behind(record.load_tokenizer), told]


def _beside(weights: Sequence[Path]) -> Iterator[Path]:
    """The files of the directories that weights lie in, and of those directly below: chat templates, say."""
    for directory in sorted({file.parent for file in weights}):
        for pattern in ("*", "*/*"):
            yield from (file for file in sorted(directory.glob(pattern)) if file.is_file())


def _plugins(registry: Registry) -> Mapping[str, object] | None:
    """The code of plugins that do not come with fitune; None where that of one cannot be told."""
    others = {name: plugin for name, plugin in registry.plugins.items() if plugin.origin != "built-in"}
    codes = {name: code_of_plugin(plugin) for name, plugin in others.items()}
    return None if None in codes.values() else codes


def _installed() -> Iterator[str]:
    """The packages that are installed, as names and versions: of each there is a directory that has both."""
    for place in dict.fromkeys(sys.path):
        with contextlib.suppress(OSError):
            yield from (str(one) for one in Path(place).iterdir() if one.name.endswith(("-info", ".pth")))
