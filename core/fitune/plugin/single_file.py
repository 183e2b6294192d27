"""Plugins that are a file beside a recipe: what may run is read once, and it is this text that runs."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import CodeType, ModuleType

from fitune.errors import PluginError
from fitune.plugin.deprecation import SINGLE_FILE
from fitune.plugin.trust import Trust, UnknownCode


def source_of(path: Path, trust: Trust) -> bytes:
    """What a file holds that may run. Raises `UnknownCode` if it may not, `PluginError` if it is no Python file."""
    if path.suffix != ".py":
        raise PluginError(f"plugin {path}: not a Python file")
    try:
        return trust.source_of(path)
    except UnknownCode:
        raise
    except PluginError as error:
        raise PluginError(f"plugin {path}: {error.message}") from error


def import_file(path: Path, source: bytes) -> ModuleType:
    """A module of this text. Raises what its code raises."""
    name = f"{SINGLE_FILE}{path.stem}_{abs(hash(str(path.resolve()))):x}"
    loader = _Source(name, str(path), source)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _Source(importlib.machinery.SourceFileLoader):
    """Runs the text that was read, and no bytecode that lies beside the file, which may be of another text."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec", dont_inherit=True)
