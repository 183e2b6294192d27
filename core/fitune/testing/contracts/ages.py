"""What is deprecated: told of until a release, and refused from then on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from fitune.errors import FtError
from fitune.plugin import deprecation
from fitune.testing.contracts.trial import must_not_fail
from fitune.testing.tiny import open_registry, write_recipe


def is_deprecated(plugin: object, directory: Path, changes: Mapping[str, object], says: str, removed_in: str) -> None:
    """Raise `AssertionError`, which says what of it does not hold."""
    from fitune.recipe.reader import read_recipe

    path = write_recipe(directory, changes)
    recipe = must_not_fail("the recipe is refused already", lambda: read_recipe(path, open_registry(plugin)))
    told = [notice for notice in recipe.notices if says in notice]
    assert len(told) == 1, f'of what the recipe is told, {len(told)} lines have "{says}", not one: {recipe.notices}'
    assert f"gone in {removed_in}" in told[0], f"it is not gone in {removed_in}: {told[0]}"
    with mock.patch.object(deprecation, "__version__", removed_in):  # a plugin that is given has fitune's releases
        refused = _lines_against(path, plugin)
    assert refused, f"release {removed_in} reads the recipe as if nothing were gone"
    right = [line for line in refused if "is gone since" in line and says in line]
    assert right, f"release {removed_in} refuses the recipe, but not for that: {refused}"


def _lines_against(path: Path, plugin: object) -> tuple[str, ...]:
    """What a recipe is refused for; nothing where it is not."""
    from fitune.recipe.reader import read_recipe

    try:
        read_recipe(path, open_registry(plugin))
    except FtError as error:
        return error.lines
    return ()
