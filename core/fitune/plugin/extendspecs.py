"""What plugins may extend: the command line and the checks (`ft_commands`, `ft_check`), and the forecast (`ft_levers`,
`ft_memory_twins`). An implementation may leave out arguments it does not need.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fitune.errors import Problem
from fitune.plugin.hookspecs import hookspec
from fitune.plugin.levers import Lever
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import MemoryTwin

if TYPE_CHECKING:
    import click
    from transformers import PreTrainedConfig


# mypy: disable-error-code="empty-body"
class ExtendHooks:
    """The specifications, one method a hook."""

    @hookspec
    def ft_commands(self, cli: click.Group) -> None:
        """Add subcommands to `ft`.

        Example:
            >>> from fitune import hookimpl
            >>> @hookimpl
            ... def ft_commands(cli):
            ...     @cli.command()
            ...     def hello():
            ...         "Say hello."
            ...         print("hello")

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_check(self, recipe: Recipe) -> Iterable[Problem]:
        """Look for problems in a recipe that was read without any, before a weight is read.

        Example:
            >>> from fitune import Problem, hookimpl
            >>> @hookimpl
            ... def ft_check(recipe):
            ...     if recipe.train.learning_rate > 0.1:
            ...         yield Problem(key="train.learning_rate", what="the house allows up to 0.1", fix="Lower it")

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_levers(self, recipe: Recipe, config: PreTrainedConfig) -> Iterable[Lever]:
        """Offer changes to a recipe that may save memory, for `ft plan` to trace.

        `config` is the configuration of the recipe's model. Memory strategies that the recipe does not use, with their
        default options, need no offer. `fitune.plugin.levers` helps to change the strategies of a recipe.

        Example:
            >>> from fitune import Lever, hookimpl
            >>> @hookimpl
            ... def ft_levers(recipe):
            ...     if recipe.train.length > 1024:
            ...         yield Lever(name="rows of 1024", changes=(("train.length", 1024),), exact=False)

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_memory_twins(self) -> Iterable[MemoryTwin]:
        """Say what custom kernels take of the card, so that runs with them can be forecast.

        Example:
            >>> from fitune import MemoryTwin, hookimpl
            >>> def scratch(arguments, results):
            ...     yield 4 * arguments[0].numel()  # a float32 copy of its first argument
            >>> @hookimpl
            ... def ft_memory_twins():
            ...     yield MemoryTwin(name="fused norm", operation="mylib.fused_norm.default", scratch=scratch)

        .. versionadded:: 0.1
        """
