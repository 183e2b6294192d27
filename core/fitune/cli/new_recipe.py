"""The recipe that `ft new` writes: what it chooses, why, and whether it fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune.cli.new_data import LOOKED_AT, Seen, look, source_of
from fitune.errors import ModelError, RunError
from fitune.memory.cards.cards import Card, card_or_budget, local_card
from fitune.plugin.registry import Registry
from fitune.plugin.units import gib
from fitune.recipe.draft import Draft
from fitune.recipe.reader import read_recipe_text

if TYPE_CHECKING:
    from fitune.memory.fit.result import Fitted

Tell = Callable[[str], None]

LENGTHS = (512, 1024, 2048, 4096)
"""Tokens of a row that are offered; longer ones are cut, and said so."""

RATES = {"sft": 2e-4, "reward": 1e-4}
"""Learning rates of adapters, of others 1e-5; of full fine-tuning a tenth."""

TOKENS = 16_384
"""Of a step, where rows are not longer."""

ROOM = 0.9
"""Share of a card that frozen weights may take, at most: beyond it nothing is left for a step, and none is tried."""

BYTES_OF_NF4 = 0.6
"""Of a weight in 4 bits, at least, with its scales: embeddings stay in their own type."""

LOADED_LATER = "not looked at, since it is on the hub: ft data shows how its rows are read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a recipe is to be for."""

    name: str
    model: str
    data: str
    gpu: str
    """A card's name, a size, "this" for this machine's, or "cpu"."""
    objective: str | None
    full: bool
    to: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What may be otherwise, where nothing fits."""

    nf4: bool
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A recipe, and what there is to tell of it."""

    text: str
    told: tuple[str, ...] = ()


def made(wish: Wish, registry: Registry, tell: Tell) -> Made:
    """A recipe that can be read, and fits where that can be known. Raises `FtError` for what cannot be, or does not."""
    card = _card(wish.gpu)
    source = source_of(wish.data)
    seen = _seen(wish, source, registry)
    length = _length(seen, _positions(wish.model))
    draft = _draft(wish, seen, source, Choice(nf4=False, length=length), card)
    read_recipe_text(wish.to, draft.text(), registry)  # what is wrong is told before anything is planned
    told = (_of_rows(seen, wish.data),)
    if card is None:
        return Made(text=draft.text(), told=told)
    tell(f"planning for {card.title} ...")
    try:
        text, forecast = _planned(wish, seen, source, length, card, registry)
    except ModelError as unknown:
        return Made(text=draft.text(), told=(*told, f"not planned: {unknown.message}"))
    return Made(text=text, told=(*told, f"forecast on {card.title}: {forecast}"))


def _planned(
    wish: Wish, seen: Seen | None, source: dict[str, Any], length: int, card: Card, registry: Registry
) -> tuple[str, str]:
    """The first choice that fits, and what was forecast of it. Raises `RunError` where none does."""
    from fitune.compose.model import built
    from fitune.memory.fit.resolve import fit
    from fitune.memory.shapes import of_recipe

    error: RunError | None = None
    weights = 0
    for choice in _choices(length, full=wish.full):
        text = _draft(wish, seen, source, choice, card).text()
        recipe = read_recipe_text(wish.to, text, registry)
        weights = weights or sum(parameter.numel() for parameter in built(recipe).parameters())
        size = int(weights * (BYTES_OF_NF4 if choice.nf4 else 2))
        if size > card.usable * ROOM:
            what = f"its weights alone take {gib(size)}{' in 4 bits' if choice.nf4 else ''} of {gib(card.usable)}"
            error = error or RunError(f"{wish.model} does not fit on {card.title}: {what}. Name a larger card: --gpu")
            continue
        try:
            fitted = fit(recipe, registry, of_recipe, card)
        except ModelError:
            raise
        except RunError as nothing:
            error = nothing
            continue
        return text, _in_short(fitted)
    assert error is not None
    raise error


def _in_short(fitted: Fitted) -> str:
    """What a run would take."""
    made, step = fitted.forecast, fitted.chosen.seconds
    taken = f"{gib(made.reserved)} of {gib(made.card.usable)} reserved"
    names = ", ".join(use.record.name for use in fitted.recipe.strategies) or "no strategy"
    return f"{taken}{'' if step is None else f', about {step:.1f} s a step'}; fit takes {names}"


def _choices(length: int, *, full: bool) -> Iterator[Choice]:
    """What is tried, best first: the model in its own type, in 4 bits, and with shorter rows."""
    yield Choice(nf4=False, length=length)
    if not full:
        yield Choice(nf4=True, length=length)
    for shorter in reversed([one for one in LENGTHS if one < length]):
        yield Choice(nf4=not full, length=shorter)


def _card(name: str) -> Card | None:
    """The card; None for the CPU. Raises `RecipeError` for one that is not known."""
    if name.lower() in ("cpu", "none"):
        return None
    local = local_card()
    return local if name == "this" else card_or_budget(name, local)


def _seen(wish: Wish, source: dict[str, Any], registry: Registry) -> Seen | None:
    """What local rows show; None for those of the hub."""
    if source["use"] == "hf-dataset":
        return None
    probe = Draft()
    probe.set("", "name", wish.name)
    for key, value in _model(wish).items():
        probe.set("model", key, value)
    probe.set("adapter", "use", "none" if wish.full else "lora")
    probe.add("data.source", source)
    probe.add("data.stage", {"use": "plain-text" if source["use"] == "txt" else "chat"})
    recipe = read_recipe_text(wish.to, probe.text(), registry)
    if source["use"] == "txt":
        seen = look(recipe, registry, "text")
        return replace(seen, stages=({"use": "plain-text"},), plain=True, objective="sft")
    return look(recipe, registry, wish.objective)


def _of_rows(seen: Seen | None, name: str) -> str:
    if seen is None:
        return f"{name}: {LOADED_LATER}"
    number = f"{seen.rows:,}" if seen.rows < LOOKED_AT else f"{seen.rows:,} or more"
    read = "whole texts" if seen.plain else seen.stages[0]["use"] if seen.stages else "rows that their columns tell"
    return f"{name}: {number} rows, {read}, about {seen.tokens:,} tokens in the longest of a hundred"


def _length(seen: Seen | None, positions: int) -> int:
    """Tokens of a row: what nearly all of them need, and no more than the model was made for."""
    needed = 2048 if seen is None or seen.plain else seen.tokens * 5 // 4 + 64
    offered = next((one for one in LENGTHS if one >= needed), LENGTHS[-1])
    return min(offered, positions)


def _positions(model: str) -> int:
    """Positions that a local model was made for; many where that is not known."""
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        found = config.get("max_position_embeddings") or config.get("n_positions")
    except (OSError, ValueError, AttributeError):
        return 1 << 20
    return found if isinstance(found, int) and found > 1 else 1 << 20


def _model(wish: Wish) -> dict[str, Any]:
    path = Path(wish.model).expanduser()
    local = path.suffix == ".gguf" or wish.model.startswith((".", "/", "~"))
    if local and not path.exists():
        raise ModelError(f"--model {wish.model}: no such file or directory. Give one, or a name on the hub")
    if path.suffix == ".gguf":
        return {"use": "gguf", "path": str(path)}
    if path.is_dir() or local:
        return {"use": "hf", "path": str(path)}
    return {"use": "hf", "id": wish.model}


def _writes_chats(model: str) -> bool:
    """Whether a local model brings a chat template; others are taken to."""
    path = Path(model)
    if not path.is_dir():
        return True
    if any(path.glob("chat_template*")):
        return True
    try:
        return bool(json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _draft(wish: Wish, seen: Seen | None, source: dict[str, Any], choice: Choice, card: Card | None) -> Draft:
    """The recipe with a choice made."""
    objective = (seen.objective if seen is not None else wish.objective) or "sft"
    draft = Draft()
    draft.head = [
        f"{wish.name}: {wish.model} learns from {wish.data}, by ft new.",
        "",
        f"  ft data {wish.to}   shows what is trained on",
        f"  ft plan {wish.to}   forecasts its memory and time",
        f"  ft run {wish.to}",
    ]
    draft.set("", "name", wish.name)
    draft.set("", "seed", 42)
    for key, value in {**_model(wish), "dtype": "bfloat16" if card is not None else "float32"}.items():
        draft.set("model", key, value)
    if wish.full:
        draft.set("adapter", "use", "none", "every weight trains")
    else:
        for key, value, why in (
            ("use", "lora", "low-rank adapters: well under 1 % of the parameters train"),
            ("r", 16, "their rank: higher learns more, and takes a little more memory"),
            ("alpha", 32, "their output is scaled by alpha / r"),
            ("targets", "all-linear", ""),
        ):
            draft.set("adapter", key, value, why)
    if objective != "sft":
        draft.set("objective", "use", objective, "docs/preference.md tells what each is for")
    _memory(draft, wish, choice, card)
    _data(draft, wish, seen, source, objective)
    _train(draft, wish, seen, choice, card, objective)
    return draft


def _memory(draft: Draft, wish: Wish, choice: Choice, card: Card | None) -> None:
    if card is None:
        draft.add(
            "memory.strategy", {"use": "chunked-loss"}, "No tensor of tokens x vocabulary: less memory, the same loss."
        )
        return
    fit: bool | str = True if wish.gpu == "this" else wish.gpu
    what = "the fastest strategies that fit; true stands for the GPU that is here"
    draft.set("memory", "fit", fit, what)
    if wish.full:
        draft.set("memory", "allow", ["adamw-8bit"], "may keep the optimizer's state in 8 bits, if it must")
    if choice.nf4:
        comment = "The base model in 4 bits: in its own type it does not fit, by forecast."
        draft.add("memory.strategy", {"use": "nf4"}, comment)


def _data(draft: Draft, wish: Wish, seen: Seen | None, source: dict[str, Any], objective: str) -> None:
    draft.add("data.source", source)
    for stage in seen.stages if seen is not None else ():
        draft.add("data.stage", stage)
    if seen is not None and seen.plain:
        for name in ("tokenize", "truncate", "pack"):
            draft.add("data.stage", {"use": name, **({"policy": "split"} if name == "truncate" else {})})
    else:
        own = _writes_chats(wish.model)
        comment = "Conversations by the model's chat template; answers alone are trained on."
        told = comment if own else "The model brings no chat template: ChatML is taken. Answers alone are trained on."
        draft.add("data.stage", {"use": "chat", **({} if own else {"template": "chatml"})}, told)
    if seen is None or seen.rows >= 50:
        draft.set("eval", "fraction", 0.05, "of the rows are held out, and measured before and after")
        draft.set("eval", "micro_batch", 8 if objective == "sft" else 2)


def _train(draft: Draft, wish: Wish, seen: Seen | None, choice: Choice, card: Card | None, objective: str) -> None:
    length = choice.length
    draft.set("train", "length", length, "tokens of a row; longer ones are cut, and counted")
    if card is not None:
        tokens = max(TOKENS // length, 4) * length
        draft.set("train", "batch_tokens", tokens, "of a step; fit cuts it into micro-batches")
    else:
        draft.set("train", "micro_batch", 1)
        draft.set("train", "accumulation", 8, "micro-batches to a step")
    few = seen is not None and seen.rows < LOOKED_AT and not seen.plain
    draft.set("train", "epochs", 3 if few and objective == "sft" else 1)
    rate = RATES.get(objective, 1e-5) / (10 if wish.full else 1)
    draft.set("train", "learning_rate", rate, "usual for this; a loss that jumps asks for less")
    draft.set("train", "warmup_ratio", 0.03)
