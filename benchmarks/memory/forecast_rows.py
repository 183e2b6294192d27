"""What `forecasts.py` does in a process of its own: forecast one run, write one file of weights.

It is a plugin too: the model loader `shape` makes a model on the card that has no checkpoint.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from forecast_cases import Case

from fitune import ModelLoader, hookimpl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fitune.memory.forecast import Forecast
    from fitune.memory.shapes import Shapes
    from fitune.plugin.recipe import Recipe


Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeOptions:
    """Options of the loader `shape`."""

    path: Path
    """Directory with config and tokenizer."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


def _tokenizer(options: ShapeOptions) -> PreTrainedTokenizerBase:
    from fitune_plugins.loaders.loading import load_tokenizer

    return load_tokenizer(str(options.path))


def _built(options: ShapeOptions) -> PreTrainedModel:
    from fitune_plugins.loaders.loading import build_model

    return build_model(str(options.path), options.dtype)


def _made(options: ShapeOptions, device: torch.device) -> PreTrainedModel:
    """The model with small random weights, its memory taken as transformers does: all of it as one block, given back,
    then the tensors.
    """
    import torch
    from torch import nn

    model = _built(options)
    total = sum(parameter.nbytes for parameter in model.parameters())
    warm_up = torch.empty(total, dtype=torch.uint8, device=device)
    del warm_up
    made: dict[int, torch.Tensor] = {}
    kept = []  # or a new tensor could get the id of an old one
    for kind in ("_parameters", "_buffers"):
        for home in [getattr(module, kind) for module in model.modules()]:
            for key, tensor in [(key, tensor) for key, tensor in home.items() if tensor is not None]:
                if id(tensor) not in made:
                    empty = torch.empty_like(tensor, device=device, requires_grad=False)
                    made[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
                    kept.append(tensor)
                home[key] = made[id(tensor)]
    with torch.no_grad():
        for module in model.modules():
            if any(True for _ in module.buffers(recurse=False)):
                model._init_weights(module)
        for tensor in model.parameters():
            _fill(tensor)
    return model


def _fill(tensor: torch.Tensor) -> None:
    """Small random values; on the host, which draws 50 million a second, the same ones again and again."""
    import torch

    if tensor.ndim == 1:
        tensor.fill_(1)
    elif tensor.device.type == "cuda":
        tensor.normal_(0, 0.02)
    else:
        tile = (torch.randn(min(2**20, tensor.numel())) * 0.02).to(tensor.dtype)
        tensor.copy_(tile.repeat(-(-tensor.numel() // len(tile)))[: tensor.numel()].view_as(tensor))


@hookimpl
def ft_model_loaders() -> Iterable[ModelLoader[ShapeOptions]]:
    """Offer the loader."""
    yield ModelLoader(
        name="shape",
        summary="Random weights of a configuration, made on the card",
        options=ShapeOptions,
        load_tokenizer=_tokenizer,
        load_model=_made,
        build_model=_built,
    )


def write_weights(directory: Path, number: int, files: int) -> None:
    """Write one of the files of a checkpoint; the first writes the index too. Safetensors of random bfloat16 values."""
    import torch
    from safetensors.torch import save_file

    model = _built(ShapeOptions(path=directory))
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}
    names = sorted(shapes)
    file = [f"model-{at + 1:05d}-of-{files:05d}.safetensors" for at in range(files)]
    tile = (torch.randn(2**20) * 0.02).to(torch.bfloat16)

    def values(shape: torch.Size) -> torch.Tensor:
        size = shape.numel()
        return tile.repeat(-(-size // len(tile)))[:size].view(shape) if len(shape) > 1 else torch.ones_like(tile[:size])

    save_file({name: values(shapes[name]) for name in names[number::files]}, directory / file[number], {"format": "pt"})
    if number == 0:
        index: Json = {"weight_map": {name: file[at % files] for at, name in enumerate(names)}}
        index["metadata"] = {"total_size": sum(2 * shape.numel() for shape in shapes.values())}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def read(path: Path) -> Recipe:
    """The recipe, with the loader `shape`."""
    import forecast_rows

    from fitune.plugin.registry import Registry
    from fitune.recipe.reader import read_recipe

    registry = Registry.open(third_party=False)
    registry.register(forecast_rows, "shape")
    return read_recipe(path, registry)


# ------------------------------------------------------------------------------------------------------------ forecast


def forecast_of(case: Case, path: Path, card: str) -> Json:
    """The forecast of a run, from its prepared data."""
    from fitune.memory.cards.cards import find_card
    from fitune.memory.forecast import forecast

    start = time.perf_counter()
    recipe = read(path)
    found = forecast(recipe, _shapes(case, recipe), find_card(card))
    at = found.ledger.at
    return {
        "allocated": found.allocated,
        "reserved": found.reserved,
        "needed": found.needed,
        "margin": found.margin,
        "trainable": found.trace.trainable,
        "parameters": found.trace.parameters,
        "at": f"{at.phase} {at.module} {at.operation} {list(at.shape)} {at.bytes}",
        "entries": {entry.kind: entry.bytes for entry in found.ledger.entries},
        "phases": {peak.phase: peak.bytes for peak in found.ledger.phases},
        "stages": _stages(found),
        "seconds": round(time.perf_counter() - start, 1),
        "alive": _alive_in_forecast(found),
    }


def _stages(found: Forecast) -> list[Json]:
    """The most that is reserved by the end of loading, and of each step."""
    from fitune.memory.allocator.allocator import CachingAllocator

    allocator = CachingAllocator(expandable=found.expandable)
    log = found.trace.log
    stages: list[Json] = []
    events = list(log.sized())
    ends = [start for start, _, _ in log.phases[1:]] + [len(events)]
    for (start, phase, step), end in zip(log.phases, ends, strict=True):
        for number, size in events[start:end]:
            if number > 0:
                allocator.allocate(number, size)
            else:
                allocator.free(-number)
        name = phase if phase in ("load", "evaluation") else f"step {step}"
        if not stages or stages[-1]["stage"] != name:
            stages.append({"stage": name})
        stages[-1] |= {"allocated": allocator.peak_allocated, "reserved": allocator.peak_reserved}
    return stages


def _shapes(case: Case, recipe: Recipe) -> Shapes:
    """The batches of the run's own data. Raises `ValueError` if their rows are not as long as the case says."""
    from fitune.compose.model import planned
    from fitune.data.prepare import context_of, held_out_data, training_data
    from fitune.data.tokenizer import tokenizer_of
    from fitune.memory.shapes import shapes_of_rows

    context = context_of(recipe, tokenizer_of(recipe))
    rows = training_data(recipe, context).rows
    held_out = held_out_data(recipe, context)
    lengths = {len(row.input_ids) for row in rows}
    if lengths != {case.length} or {row.lengths for row in rows} != {case.packed}:
        raise ValueError(f"rows have {lengths} tokens, in documents of {[row.lengths for row in rows]}")
    accumulation = planned(recipe, gpu=True)[1].accumulation
    return shapes_of_rows(recipe, context, accumulation, rows, held_out.rows if held_out else ())


def _alive_in_forecast(found: Forecast) -> Json:
    """The blocks at the peak by their rounded size: how many, and what one of them is."""
    log = found.trace.log
    sizes: Counter[int] = Counter()
    examples: dict[int, str] = {}
    for index in at_peak([(abs(n), log.blocks[n - 1].rounded if n > 0 else 0) for n in log.events]):
        block = log.blocks[log.events[index] - 1]
        sizes[block.rounded] += 1
        examples[block.rounded] = f"{block.kind}: {block.operation} in {block.module or 'no module'}"
    return {"sizes": dict(sizes), "examples": examples}


def at_peak(events: Sequence[tuple[int, int]]) -> list[int]:
    """Of allocations (block, bytes) and frees (block, 0): which allocations, by index, are alive when most is taken."""
    level, levels, sizes = 0, [], dict[int, int]()
    for block, size in events:
        level += size - (0 if size else sizes.pop(block, 0))
        if size:
            sizes[block] = size
        levels.append(level)
    alive: dict[int, int] = {}
    for index in range(levels.index(max(levels)) + 1):
        block, size = events[index]
        if size:
            alive[block] = index
        else:
            alive.pop(block, None)
    return list(alive.values())
