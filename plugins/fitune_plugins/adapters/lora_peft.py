"""Low-rank adapters put on layers that are known one by one, by peft.

peft reads names of layers as those of older versions of transformers: of a mixture of experts it takes "gate_proj" for
the experts, doubles their rank, and leaves the dense layers of that name bare. What it would read so is put on here,
and saved as the weight of the layer, which peft leaves as it is: plain peft puts a saved adapter on the same layers.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fitune import ModelError, added_modules, nearest
from fitune_plugins.adapters.lora_imports import without_bitsandbytes
from fitune_plugins.adapters.lora_places import plain_modules
from fitune_plugins.adapters.lora_targets import Targets
from fitune_plugins.adapters.lora_whole import Whole
from fitune_plugins.adapters.peft_files import ADAPTER

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

T = TypeVar("T")

LENGTHS = (1, 2, 3)
"""Parts of a name that its end may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What peft's `LoraConfig` takes, by its names."""

    r: int
    lora_alpha: float
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Ranks of some layers, by ends of their names; of several that fit, the last counts."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    init_lora_weights: bool | str = True

    def written(self) -> dict[str, Any]:
        """As peft takes them, and writes them down."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: _patterns(value) if isinstance(value, Mapping) else value for name, value in own.items()}


def wrap(
    model: PreTrainedModel, targets: Targets, settings: Settings, *, float32: bool, whole: Whole | None = None
) -> PeftModel:
    """The model with adapters on these layers, and modules that train whole; all else frozen. Raises `ModelError`."""
    with without_bitsandbytes():
        return _wrapped(model, targets, settings, whole or Whole(), float32=float32)


def _must_suit(targets: Targets, settings: Settings) -> None:
    """Raise `ModelError` for what peft cannot do with these layers, or would pass over."""
    if settings.lora_dropout and targets.parameters:
        raise ModelError(
            f"[adapter] dropout: {targets.parameters[0]} is a tensor of experts, whose inputs peft cannot drop. Set "
            "dropout = 0, or name targets without the experts"
        )
    if settings.use_dora and targets.parameters:
        raise ModelError(
            f"[adapter] dora: {targets.parameters[0]} is a tensor of experts, for which peft has no DoRA. Set "
            "dora = false, or name targets without the experts"
        )
    every = [*targets.modules, *targets.parameters]
    for name in settings.rank_pattern:
        if not any(one == name or one.endswith(f".{name}") for one in every):
            known = {one.rpartition(".")[2] for one in every}
            raise ModelError(f'[adapter] ranks: no adapted layer is called "{name}". {nearest(name, known)}')


def _wrapped(model: PreTrainedModel, targets: Targets, settings: Settings, whole: Whole, *, float32: bool) -> PeftModel:
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import DUMMY_TARGET_MODULES

    from fitune_plugins.adapters.lora_tokens import look_up_rows, trained_rows

    _must_suit(targets, settings)
    added = added_modules(model)
    if both := [name for name in targets.modules if name in added]:
        raise ModelError(f'[adapter] targets: "{both[0]}" is new, and trains whole. Leave it out')
    insides = tuple(f"{name}." for name in whole.modules)
    if both := [name for name in (*targets.modules, *targets.parameters) if f"{name}.".startswith(insides)]:
        raise ModelError(
            f'[adapter] targets: "{both[0]}" trains whole, by modules_to_save. Leave it out of one of them'
        )
    saved = [*added, *(name for name in whole.modules if name not in added)]
    misread = _misread(targets.modules, model)
    read = [name for name in targets.modules if name not in misread]
    every, parameters = plain_modules(model), [name for name, _ in model.named_parameters()]
    weights = [f"{name}.weight" for name in misread]
    tying: dict[str, Any] = {"ensure_weight_tying": True} if whole.tied else {}
    rows = trained_rows(model, targets.modules, whole)
    config = LoraConfig(
        **settings.written(),
        target_modules=shortened(read, every) or ([] if targets.parameters else DUMMY_TARGET_MODULES),
        target_parameters=shortened(targets.parameters, parameters) or None,
        fan_in_fan_out=any(type(every[name]).__name__ == "Conv1D" for name in read),
        modules_to_save=[*saved] or None,
        trainable_token_indices={shortened([name], every)[0]: ids for name, ids in rows.items()} or None,
        **tying,
        task_type="SEQ_CLS" if "ForSequenceClassification" in type(model).__name__ else "CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers >= 5.20 by a name that it deprecates; nobody's recipe can mend that.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # a head beside layers of GPT-2, say
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # `merge` unties them
        try:
            adapted = cast("PeftModel", get_peft_model(model, config, autocast_adapter_dtype=float32))
            _put_on(adapted, config, misread, float32=float32)
        except ValueError as error:  # e.g. a target that is no layer with weights
            raise ModelError(f"[adapter] {' '.join(str(error).split())}") from error
    look_up_rows(adapted)
    _write_down(config, shortened(read, every), shortened([*targets.parameters, *weights], parameters))
    config.modules_to_save = saved or None  # peft has put others beside them
    return adapted


def _patterns(values: Mapping[str, T]) -> dict[str, T]:
    """As peft takes them: ends of names that are regular expressions, the first that fits counts."""
    return {re.escape(name): value for name, value in reversed(list(values.items()))}


def shortened(names: Iterable[str], every: Iterable[str]) -> list[str]:
    """These names, by ends that no other name has: `q_proj` for that of each layer, if it is in each."""
    wanted, ends = list(names), [Counter(_end(one, parts) for one in every) for parts in LENGTHS]
    found: dict[str, None] = {}
    for name in wanted:
        for parts, of_all in zip(LENGTHS, ends, strict=True):
            end = _end(name, parts)
            if sum(_end(one, parts) == end for one in wanted) == of_all[end]:
                found[end] = None
                break
        else:
            found[name] = None
    return sorted(found)


def _end(name: str, parts: int) -> str:
    return ".".join(name.split(".")[-parts:])


def _misread(names: Iterable[str], model: PreTrainedModel) -> list[str]:
    """Those that peft would take for others'. A layer's number decides nothing, and asking takes 10 ms."""
    known: dict[str, bool] = {}
    found = []
    for name in names:
        kind = ".".join("0" if part.isdecimal() else part for part in name.split("."))
        if kind not in known:
            known[kind] = _is_misread(name, model)
        if known[kind]:
            found.append(name)
    return found


def _is_misread(name: str, model: PreTrainedModel) -> bool:
    """Whether peft would take a name of a module for another's."""
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # a release of peft that takes names as they are
        return False
    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it would have others beside this one
        return True
    return name not in (config.target_modules or ())


def _put_on(adapted: PeftModel, config: LoraConfig, names: Iterable[str], *, float32: bool) -> None:
    """What peft does for a layer that its config names."""
    tuner, inner = cast(Any, adapted.base_model), cast("PreTrainedModel", adapted.get_base_model())
    for name in names:
        parent, _, own = name.rpartition(".")
        holder = inner.get_submodule(parent)
        tuner._create_and_replace(config, ADAPTER, getattr(holder, own), own, holder, current_key=name)
        tuner.targeted_module_names.append(name)
    tuner._cast_adapter_dtype(adapter_name=ADAPTER, autocast_adapter_dtype=float32)


def _write_down(config: LoraConfig, modules: list[str], parameters: list[str]) -> None:
    """Have the config say what is adapted, in the words that peft reads as they are."""
    config.target_modules = modules
    config.target_parameters = parameters or None
    if parameters:
        config.lora_dropout = 0.0  # it is over, and peft refuses it beside parameters
