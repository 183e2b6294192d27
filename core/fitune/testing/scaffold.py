"""Plugins to begin with: one of `samples` under a new name, in a file or as a package with tests of its own."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from fitune._version import __version__
from fitune.errors import PluginError, nearest

KINDS = ("loader", "adapter", "strategy", "source", "stage", "listener", "objective", "launcher", "command")
"""What `ft plugins new --kind` takes."""

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

OPTIONS: Mapping[str, str] = {
    "loader": '    write_tiny_model(tmp_path / "tokenizer")\n',
    "source": (
        '    rows, bad = tmp_path / "rows.txt", tmp_path / "bad.txt"\n'
        '    rows.write_text("1 + 1 = 2\\n2 + 2 = 4\\n", encoding="utf-8")\n'
        '    bad.write_text("1 + 1 = 2\\nnothing\\n", encoding="utf-8")\n'
    ),
}
"""Lines of a test before its contract is asserted."""

GIVEN: Mapping[str, str] = {
    "loader": ', {"tokenizer": str(tmp_path / "tokenizer")}',
    "source": ', {"path": str(rows)}, damaged={"path": str(bad)}',
}
"""What the assertion is given beside the plugin, its name and a directory."""

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fitune-{name}"
version = "0.1.0"
description = "{summary}"
readme = "README.md"
requires-python = ">=3.10"
dependencies = ["fitune>={lowest},<{next}"]

[project.optional-dependencies]
test = ["mypy", "pytest", "ruff"]

[project.entry-points.fitune]
{name} = "{module}"

[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]

[tool.ruff]
line-length = 120

[tool.ruff.lint.isort]
known-first-party = ["fitune", "{module}"]

[tool.mypy]
strict = true
files = ["{module}.py", "tests"]
mypy_path = "."
"""

README = """\
# fitune-{name}

{summary}: a plugin of [fitune](https://pypi.org/project/fitune/), of the kind "{kind}".

```console
$ pip install -e '.[test]'
$ ft plugins{show}
$ pytest && ruff check . && mypy
```

{use}"""

WORKFLOW = """\
name: test
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      - run: pip install -e '.[test]'
      - run: ruff check . && ruff format --check . && mypy
      - run: pytest
"""

USES: Mapping[str, str] = {
    "loader": '[model]\nuse = "{name}"\ntokenizer = "DIRECTORY"\n',
    "adapter": '[adapter]\nuse = "{name}"\n',
    "strategy": '[[memory.strategy]]\nuse = "{name}"\n',
    "source": '[[data.source]]\nuse = "{name}"\npath = "rows.txt"\n',
    "stage": '[[data.stage]]\nuse = "{name}"\n',
    "listener": '[[listener]]\nuse = "{name}"\n',
    "objective": '[objective]\nuse = "{name}"\n',
}
"""How a recipe names it."""


def must_be_a_name(name: str) -> str:
    """The name, as plugins are called. Raises `PluginError`."""
    if NAME.fullmatch(name) is None or keyword.iskeyword(name):
        raise PluginError(
            f'"{name}" is no name for a plugin: small letters, digits and single dashes, a letter first, e.g. my-adamw'
        )
    return name


def must_be_a_kind(kind: str) -> str:
    """The kind. Raises `PluginError`."""
    if kind not in KINDS:
        raise PluginError(f'there is no kind of plugin "{kind}". {nearest(kind, KINDS)}')
    return kind


def single_file(name: str, kind: str) -> str:
    """The text of a plugin of this kind and name. Raises `PluginError`."""
    must_be_a_name(name)
    text = (files("fitune.testing.samples") / f"{must_be_a_kind(kind)}.py").read_text(encoding="utf-8")
    module, words = name.replace("-", "_"), name.split("-")
    text = text.replace("sample_command", f"{module}_command").replace("Sample", "".join(w.title() for w in words))
    return text.replace("sample", name)


def package(name: str, kind: str) -> dict[str, str]:
    """The files of a package with a plugin of this kind and name, by their paths. Raises `PluginError`."""
    module, text = module_of(name), single_file(name, kind)
    summary = text.partition("\n")[0].strip('"').rstrip(".").partition(": ")[2]
    summary = summary[:1].upper() + summary[1:]
    lowest, following = _bounds()
    values = {"name": name, "module": module, "kind": kind, "summary": summary.replace('"', "'"), "lowest": lowest}
    use = f"```toml\n{USES[kind].format(name=name)}```\n" if kind in USES else _how_it_is_called(name, kind)
    show = "" if kind == "command" else f" show {name}"
    return {
        "pyproject.toml": PYPROJECT.format(**values, next=following),
        "README.md": README.format(**values, use=use, show=show),
        f"{module}.py": text,
        f"tests/test_{module}.py": _test(name, kind),
        ".github/workflows/test.yml": WORKFLOW,
    }


def module_of(name: str) -> str:
    """The module of a package of this name."""
    return f"fitune_{name.replace('-', '_')}"


def write(made: Mapping[str, str], directory: Path) -> Iterator[Path]:
    """Write files into a directory, which must not be there, or be empty; else raises `PluginError`."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise PluginError(f"{directory} is there already. Give another place with --to DIR")
    try:
        for path, text in made.items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            yield file
    except OSError as error:
        raise PluginError(f"{directory} cannot be written: {error}") from error


def _bounds() -> tuple[str, str]:
    """The versions of fitune that a plugin made by this one is for: from this, to the next that may break it."""
    numbers = [int(number) for number in re.findall(r"\d+", __version__)[:2]]
    return f"{numbers[0]}.{numbers[1]}", f"{numbers[0]}.{numbers[1] + 1}" if numbers[0] == 0 else f"{numbers[0] + 1}"


def _how_it_is_called(name: str, kind: str) -> str:
    called = f"ft {name} RUN" if kind == "command" else f"ft launch RECIPE --on {name} --option root=DIR"
    return f"```console\n$ {called}\n```\n"


def _test(name: str, kind: str) -> str:
    module = module_of(name)
    if kind == "command":
        return _COMMAND_TEST.format(module=module, function=f"{name.replace('-', '_')}_command", name=name)
    if kind == "launcher":
        options = f"{''.join(word.title() for word in name.split('-'))}Options"
        return _LAUNCHER_TEST.format(module=module, options=options, name=name)
    imported = f"assert_{kind}" + (", write_tiny_model" if kind == "loader" else "")
    before, given = OPTIONS.get(kind, ""), GIVEN.get(kind, "")
    return (
        f'"""`{name}` keeps the contract of its kind."""\n\nfrom pathlib import Path\n\nimport {module}\n'
        f"from fitune.testing import {imported}\n\n\ndef test_it_keeps_its_contract(tmp_path: Path) -> None:\n"
        f'{before}    assert_{kind}({module}, "{name}", tmp_path{given})\n'
    )


_COMMAND_TEST = '''\
"""`ft {name}` tells of a run, and of what is none."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from fitune import RunError, run
from fitune.testing import write_recipe
from {module} import {function}


def test_it_tells_of_a_run(tmp_path: Path) -> None:
    directory = run(write_recipe(tmp_path / "recipe"), tmp_path / "run")
    told = CliRunner().invoke({function}, [str(directory)], catch_exceptions=False)
    assert told.output.startswith("step 3: loss ")


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run's directory"):
        {function}.callback(tmp_path)  # type: ignore[misc]
'''

_LAUNCHER_TEST = '''\
"""`{name}` keeps the contract of launchers."""

from pathlib import Path

import {module}
from fitune import Launcher
from fitune.testing import assert_launcher, open_registry
from {module} import {options}


def test_it_keeps_its_contract(tmp_path: Path) -> None:
    launcher = open_registry({module}).find(Launcher, "{name}")
    assert_launcher(launcher, {options}(root=tmp_path / "jobs"), tmp_path / "tried")
'''
