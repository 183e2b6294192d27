"""Text from a model by transformers' `generate`: with a cache of what was read, or without where that cache fails.

It does in some families: decoders of translation models alone (BART's relations) ask a cache for layers that they never
made, and layers that are all linear attention have no length to ask for. Without it each token reads all before it
again, which gives the same text more slowly.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from fitune.errors import RunError, described
from fitune.plugin.model import unwrapped

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel

FAILURES: tuple[type[Exception], ...] = (ValueError, TypeError, LookupError, AttributeError)
"""What a family's own code raises where it was not made for what it is asked. Torch's errors are none of them."""


class Writer:
    """Writes with one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.uncached = ""
        """Why there is no cache, for a person; empty while it is not known to fail."""

    def write(self, config: GenerationConfig, **arguments: Any) -> Tensor:
        """What `generate` gives, prompts and all. Raises `RunError` for a family that cannot write text."""
        if not self.uncached:
            try:
                return self._generate(config, arguments)
            except FAILURES as error:
                self.uncached = (
                    f"the cache of {self._family} fails in transformers {version('transformers')} "
                    f"({described(error)}): each token reads all before it again, which takes longer"
                )
        config.use_cache = False
        try:
            return self._generate(config, arguments)
        except FAILURES as error:
            raise RunError(
                f"{self._family} cannot write text in transformers {version('transformers')}: {described(error)}. "
                "Merge it (ft merge), and use what the model's makers name for that"
            ) from error

    @property
    def _family(self) -> str:
        inner = unwrapped(self.model)
        return f"{type(inner).__name__} ({inner.config.model_type})"

    def _generate(self, config: GenerationConfig, arguments: dict[str, Any]) -> Tensor:
        return cast("Tensor", cast(Any, self.model).generate(generation_config=config, **arguments))
