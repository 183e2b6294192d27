"""First weights of low-rank adapters that give back what four bits have taken: A and B begin with the components of
W - Q, the difference of a weight and what is left of it.

This is LoftQ (Li et al., arXiv 2310.08659) with one iteration, as peft's `replace_lora_weights_loftq` has it, and with
the adapter's scale in account, which peft leaves out. Q stays what anybody has who reads the model in four bits, and
what is saved is a plain adapter. More iterations would change Q, for which no file has a place. W is read again, a
matrix at a time; components are found as those of PiSSA are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fitune import ModelError
from fitune_plugins.adapters.lora_init import ITERATIONS
from fitune_plugins.adapters.peft_files import ADAPTER

if TYPE_CHECKING:
    from peft import PeftModel

MORE = 8
"""Components that are looked for beside twice the rank: what four bits take is alike in all directions, and the largest
of it are found only among more.
"""

ELSE = 'Set [adapter] init = "default"'


def give_back(adapted: PeftModel) -> None:
    """Begin with what four bits have taken. On the meta device nothing has a value, and nothing is done. Raises
    `ModelError` where the weights are not in safetensors, or no adapted layer is in four bits.
    """
    layers = list(_layers(adapted))
    if not layers:
        raise ModelError(f'[adapter] init: "loftq" is for layers in four bits, and no adapted layer is. {ELSE}')
    if layers[0][1].get_base_layer().weight.is_meta:
        return
    stored = _Stored(adapted)
    with torch.no_grad():
        for name, layer in layers:
            _begin(layer, stored.weight(name))


def _layers(adapted: PeftModel) -> Iterator[tuple[str, Any]]:
    """The adapted layers that are in four bits, by the names of the model inside of peft's."""
    from peft.tuners.lora.layer import LoraLayer

    for name, layer in adapted.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and hasattr(getattr(layer.get_base_layer(), "weight", None), "quant_state"):
            yield name, layer


def _begin(layer: Any, whole: Tensor) -> None:
    from bitsandbytes.functional import dequantize_4bit

    a, b, scale = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER]
    kept, rank = layer.get_base_layer().weight, layer.r[ADAPTER]
    left = dequantize_4bit(kept.data, kept.quant_state)
    if left.shape != whole.shape:
        raise ModelError(
            f'[adapter] init: "loftq" finds weights of {list(whole.shape)}, not {list(left.shape)}. {ELSE}'
        )
    if rank > min(left.shape):
        raise ModelError(f"[adapter] r: a matrix of {list(left.shape)} has no {rank} components. Give fewer")
    taken = whole.to(left.device).float()
    taken -= left
    first, values, second = torch.svd_lowrank(taken, min(2 * rank + MORE, *taken.shape), niter=ITERATIONS)
    root = torch.sqrt(values[:rank] / scale)
    a.copy_(root[:, None] * second[:, :rank].T)
    b.copy_(first[:, :rank] * root)


class _Stored:
    """The weights of a model as they are on disk."""

    def __init__(self, adapted: PeftModel) -> None:
        model = cast(Any, adapted.get_base_model())
        self.prefix = f"{model.base_model_prefix}."
        self.files: Mapping[str, Path] = dict(_names(_place(model)))

    def weight(self, name: str) -> Tensor:
        """Of a layer, on the host. Raises `ModelError`."""
        from safetensors import safe_open

        full = f"{name}.weight"
        found = next((one for one in (full, full.removeprefix(self.prefix)) if one in self.files), None)
        if found is None:
            raise ModelError(f'[adapter] init: "loftq" reads weights again, and finds no {full} in safetensors. {ELSE}')
        with safe_open(self.files[found], framework="pt") as file:
            tensor: Tensor = file.get_tensor(found)
        return tensor


def _place(model: Any) -> Path:
    """The directory that a model was read from. Raises `ModelError`."""
    from transformers.utils.hub import cached_file

    config, name = model.config, str(model.config.name_or_path)
    if Path(name).is_dir():
        return Path(name)
    commit = getattr(config, "_commit_hash", None)
    try:
        found = cached_file(name, "config.json", revision=commit, local_files_only=True)
    except OSError:
        found = None
    if found is None:
        raise ModelError(f'[adapter] init: "loftq" reads weights again, and {name!r} is not on this machine. {ELSE}')
    return Path(found).parent


def _names(place: Path) -> Iterator[tuple[str, Path]]:
    from safetensors import safe_open

    for file in sorted(place.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            yield from ((name, file) for name in opened.keys())  # noqa: SIM118 - it is no mapping
