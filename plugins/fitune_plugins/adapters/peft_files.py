"""What the adapters that peft makes have in common: their files, their type, and the model without them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fitune import ModelError, added_modules

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"

ADAPTER = "default"


def match_quantized(model: PeftModel) -> None:
    """Give the adapters of quantised layers the model's own type: peft, which finds integers there, left float32."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    dtype = cast("PreTrainedModel", model.get_base_model()).dtype
    for layer in model.modules():
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else None
        weight = getattr(base, "weight", None)
        # Experts, say, are one parameter without a layer; layers of GPTQ and AWQ have no weight, or no tensor for one.
        if not hasattr(base, "qweight") and (weight is None or weight.is_floating_point()):
            continue
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def save(model: PreTrainedModel, directory: Path, **how: Any) -> None:
    """Write an adapter; `how` goes to peft's `save_pretrained`."""
    # "auto" would ask the hub whether the embeddings were resized, and would write them whole, or an adapted head's
    # frozen weight. The rows of new tokens are in the adapter, and the base model has all other weights.
    adapted: Any = model
    adapted.create_or_update_model_card = lambda output_dir: None  # of blanks, in every checkpoint; runs have their own
    try:
        adapted.save_pretrained(str(directory), save_embedding_layers=False, **how)
    finally:
        del adapted.create_or_update_model_card


def fill(adapted: PreTrainedModel, weights: Mapping[str, Tensor], directory: Path) -> None:
    """Put what was saved in a directory into an adapter that is on its model. Raises `ModelError`."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    wrong = sorted(
        {*wanted.keys() ^ weights.keys()}
        | {name for name in wanted.keys() & weights.keys() if wanted[name].shape != weights[name].shape}
    )
    if wrong:
        raise ModelError(
            f"{directory / WEIGHTS} is not of this recipe's [adapter] on this model: {len(wrong)} tensors are missing, "
            f"of another shape, or known to one of them alone, e.g. {wrong[0]}"
        )
    set_peft_model_state_dict(adapted, dict(weights))


def read(directory: Path) -> dict[str, Tensor]:
    """The tensors that were saved. Raises `ModelError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = directory / WEIGHTS
    if not file.is_file():
        other = ", and a .bin file, which may run code, is not read" if any(directory.glob("*.bin")) else ""
        raise ModelError(f"{directory} holds no {WEIGHTS}{other}. Give another checkpoint")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        what = " ".join(str(error).split())
        raise ModelError(f"{file} is damaged, or cannot be read: {what}. Give another checkpoint") from error


@contextlib.contextmanager
def off(model: PreTrainedModel, *, layers: bool = True) -> Iterator[None]:
    """Compute without adapters (with them, where not `layers`), and without what trains whole, but for what the
    objective has added.

    peft's own context also changes what trains, of each parameter, twice.
    """
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    added = {*added_modules(model)}
    inner: Any = cast(Any, model).get_base_model()
    kinds = (BaseTunerLayer if layers else TrainableTokensLayer, ModulesToSaveWrapper)
    switched: list[Any] = [
        module
        for name, module in inner.named_modules()
        if isinstance(module, kinds) and name not in added and not module.disable_adapters
    ]
    for module in switched:
        module._disable_adapters = True
    try:
        yield
    finally:
        for module in switched:
            module._disable_adapters = False
