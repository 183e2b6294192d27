"""Recipes that add tokens to the tiny model, for the tests of what comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from fitune.testing import write_recipe

ADDED: dict[str, Any] = {"add_tokens": ["Count", "<tool>"], "add_special_tokens": ["<|mark|>"]}
"""Keys of `[model]`. The tokens are 259, 260 and 261; "Count" is in every row."""

IDS = torch.tensor([[5, 259, 7, 260, 261, 9, 258, 259]])


def write_adding(directory: Path, *, tied: bool) -> Path:
    """A recipe that adds them; its model has 260 rows, of which the tokenizer has 259, and one table or two."""
    path = write_recipe(directory, {"model": ADDED})
    if tied:
        place = path.parent / "model"
        model: Any = AutoModelForCausalLM.from_pretrained(place)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        model.save_pretrained(place)
    return path


def logits_of(model: Any, ids: Tensor = IDS) -> Tensor:
    """Of tokens, the new ones among them: `[1, length, vocabulary]`."""
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids).logits
    return found


def is_tied(model: Any) -> bool:
    """Whether the embeddings are the output head."""
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight
