"""Of a configuration: the model and the type of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fitune.errors import RecipeError
from fitune.recipe.draft import Draft
from fitune.recipe.foreign.source import Source

Dtype = Literal["bfloat16", "float16", "float32"]

NAMED: dict[str, Dtype] = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "float32": "float32",
    "fp32": "float32",
}

TRUSTED = (
    "transformers knows the usual models itself; where one brings code: [model] trust_remote_code = true, a commit as "
    "its revision, and --trust-remote-code on the command line"
)


def model(source: Source, draft: Draft, beside: Path) -> None:
    """Fill in `[model]`; paths of directories are seen from `beside`. Raises `RecipeError` where no model is named."""
    key = "base_model" if source.tool == "axolotl" else "model_name_or_path"
    name = source.get(key, str)
    if name is None:
        raise RecipeError([f"no {key}: the configuration names no model. Add it, and convert again"])
    draft.set("model", "use", "hf")
    local = name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).is_dir()
    draft.set("model", "path" if local else "id", seen(name, beside) if local else name)
    source.converted(key, f"[model] {'path' if local else 'id'}")
    draft.set("model", "dtype", _dtype(source, draft))
    revision = next((one for one in ("model_revision", "revision_of_model") if source.get(one, str) == "main"), "")
    source.needless(revision, "main is the default")
    if source.get("trust_remote_code", bool):
        source.needless("trust_remote_code", TRUSTED)
    if source.has("special_tokens"):
        source.needless("special_tokens", "the tokenizer stays as it is, and a pad token is not needed")
    _tokens(source, draft)
    if source.has("plugins"):
        source.needless("plugins", "the keys of axolotl's own plugins say what they are for")


def _tokens(source: Source, draft: Draft) -> None:
    """Tokens that are added: a list, or a text with commas between them."""
    keys = {"tokens": "add_tokens", "add_tokens": "add_tokens", "add_special_tokens": "add_special_tokens"}
    for key, name in keys.items():
        value = source.values.get(key) if source.tool == ("axolotl" if key == "tokens" else "llama-factory") else None
        listed = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
        found = list(dict.fromkeys(str(one).strip() for one in listed if str(one).strip()))
        if found:
            draft.set("model", name, found)
            source.converted(key, f"[model] {name}")


def seen(name: str, beside: Path) -> str:
    """A path that tools see from where they are started, from the recipe's directory."""
    path = Path(name).expanduser()
    if path.is_absolute():
        return str(path)
    try:
        return Path(path.absolute()).relative_to(beside.absolute()).as_posix()
    except ValueError:
        return str(path.absolute()) if path.exists() else path.as_posix()


def _dtype(source: Source, draft: Draft) -> Dtype:
    """The type of the weights, which is that of the computation."""
    for key in ("torch_dtype", "dtype"):
        said = source.get(key, str)
        if said is not None and said.removeprefix("torch.") in NAMED:
            found = NAMED[said.removeprefix("torch.")]
            source.converted(key, f'[model] dtype = "{found}"')
            for flag in ("bf16", "fp16"):
                source.needless(flag, "[model] dtype is the type of the computation")
            return found
        if said is not None:
            source.needless(key, "[model] dtype is what bf16 and fp16 say")
    return _flagged(source, draft)


def _flagged(source: Source, draft: Draft) -> Dtype:
    on = {key for key in ("bf16", "bfloat16", "fp16", "float16", "pure_bf16") if _is_on(source, key)}
    half = bool(on & {"fp16", "float16"}) and not on & {"bf16", "bfloat16"}
    plain = (source.tool != "trl" and not on) or (source.values.get("bf16") is False and not half)
    found: Dtype = "float16" if half else "float32" if plain else "bfloat16"
    for key in ("bf16", "bfloat16", "fp16", "float16"):
        if key in on:
            source.converted(key, f'[model] dtype = "{found}"')
        elif source.has(key):
            source.needless(key, f'[model] dtype = "{found}" says it')
    if "pure_bf16" in on:
        draft.set("train", "master_weights", False)
        source.converted("pure_bf16", "[train] master_weights = false")
    elif found != "float32":
        draft.differs.append(
            f"[model] dtype: weights are {found} and compute so, without autocast; what trains has a float32 copy in "
            "the optimizer"
        )
    return found


def _is_on(source: Source, key: str) -> bool:
    """Whether a flag is on: axolotl has "auto" and "full", too."""
    return str(source.values.get(key)).lower() in ("true", "auto", "full", "yes", "1")
