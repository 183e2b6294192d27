"""For fitune's tests: a plugin with a misspelled hook."""

from collections.abc import Iterable

from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl


@hookimpl
def ft_memory_strategy() -> Iterable[MemoryStrategy[NoOptions]]:
    """Offer a strategy, or so its author thinks: the hook is `ft_memory_strategies`."""
    yield MemoryStrategy(name="misspelled", summary="Never seen", options=NoOptions, make=lambda options: Strategy())
