"""A recipe holds no secret: it is kept with every run, and passed on. One that does is a problem, not a run."""

from __future__ import annotations

from collections.abc import Iterable

from fitune import Problem, Recipe, hookimpl
from fitune.secrets import secrets_in


@hookimpl
def ft_check(recipe: Recipe) -> Iterable[Problem]:
    """Name every key that holds a secret, and not the secret."""
    for key, what in secrets_in(recipe.to_toml()):
        name = key.rpartition(".")[2]
        fix = (
            "A recipe is saved with its run. Put the secret into the environment, where the libraries look for it, "
            "e.g. HF_TOKEN for the hub"
        )
        yield Problem(key=key, what=f'"{name}" holds {what}', fix=fix)
