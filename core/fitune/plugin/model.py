"""What plugins ask of a model, or do to it, that every one of them would otherwise do in a way of its own.

Nothing here imports torch or transformers before it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from fitune.errors import ModelError

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig, PreTrainedModel


T = TypeVar("T")


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside of a wrapper (what has a `get_base_model()`, as peft's have), its layers adapted.

    A model without a wrapper is given as it is. Raises `ModelError` if what is found is none of transformers.
    """
    from transformers import PreTrainedModel

    get = getattr(model, "get_base_model", None)
    inner = model if get is None else get()
    if not isinstance(inner, PreTrainedModel):
        what = f"a {type(inner).__name__} is no model of transformers. A model loader gives a PreTrainedModel"
        raise ModelError(f"{what}, and an adapter that one, or a wrapper with a get_base_model() that gives it")
    return inner


ADDED = "_fitune_added"
"""The attribute of a model that holds `added_modules`."""


def added_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that the run's objective has added to the model inside of a wrapper (`Objective.convert`),
    e.g. a head. Whatever an adapter does beside, they train whole, and are saved with it.
    """
    found: tuple[str, ...] = getattr(unwrapped(model), ADDED, ())
    return found


NEW_TOKENS = "_fitune_new_tokens"
"""The attribute of a model that holds `added_tokens`."""


def added_tokens(model: nn.Module) -> tuple[int, ...]:
    """Ids, ascending, of the tokens that the recipe adds to the model inside of a wrapper (`[model] add_tokens`); none
    that its tokenizer had already. The embeddings, and the output head where it has weights of its own, have a row for
    each. Whatever an adapter does beside, these rows train, and are saved with it.
    """
    found: tuple[int, ...] = getattr(unwrapped(model), NEW_TOKENS, ())
    return found


def known_tokens(model: nn.Module) -> int:
    """How many rows the embeddings have of the model inside of a wrapper."""
    embeddings: Any = unwrapped(model).get_input_embeddings()
    plain = getattr(embeddings, "original_module", embeddings)  # peft's wrappers make a weight anew when asked for it
    rows: int = plain.weight.shape[0]
    return rows


def has_values(model: nn.Module) -> bool:
    """Whether the model's weights are numbers: in a forecast they have shapes alone, and a question to them fails."""
    return not any(parameter.is_meta for parameter in model.parameters())


def decay_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """An optimizer's groups of parameters: those of two axes and more, which it decays as it is told to, and vectors
    (norms, biases), which it does not, as is the custom. A group without any is left out.
    """
    every = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in every if p.ndim >= 2]},
        {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def buckets(items: Iterable[T], elements: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """What follows each other, so many together that they have no more than `most` elements, as `elements` counts those
    of each; or one alone that has more. For work on lists of tensors, which takes room for those of one list.
    """
    bucket: list[T] = []
    held = 0
    for item in items:
        size = elements(item)
        if bucket and held + size > most:
            yield bucket
            bucket, held = [], 0
        bucket.append(item)
        held += size
    if bucket:
        yield bucket


def mend_generation_config(model: PreTrainedModel) -> None:
    """Make the model's settings for generating text such that they can be saved.

    transformers loads contradictory ones with a warning, and then refuses to save them, and all that was trained with
    them. What cannot be mended is replaced by settings that keep nothing but the model's end-of-text token.
    """
    from transformers import GenerationConfig

    settings = model.generation_config
    if settings is None or _is_valid(settings):
        return
    settings.do_sample = True  # some models give a temperature, but not this, which alone makes it count
    if not _is_valid(settings):
        model.generation_config = GenerationConfig(eos_token_id=settings.eos_token_id)


def _is_valid(settings: GenerationConfig) -> bool:
    try:
        settings.validate(strict=True)
    except ValueError:
        return False
    return True
