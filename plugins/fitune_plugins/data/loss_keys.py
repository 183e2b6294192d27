"""The row's own word on what is trained on: keys such as OpenAI's `weight`, of a message or of a row.

Known keys are obeyed. One that looks like them, or that says neither yes nor no, is an error: passed over, it would
train on what the row leaves out. Who uses which: `weight` OpenAI, Together, mistral-finetune, OpenChat; `train` and
`training` axolotl; `loss` ms-swift, XTuner; `loss_weight` LLaMA-Factory; `train_on_turn` the data of Home LLM;
`trainable` Tinker; `masked` torchtune.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fitune import Origin, sentences
from fitune_plugins.data.row import bad, shown

TRAINED = ("weight", "train", "training", "trainable", "train_on_turn", "loss", "loss_weight", "loss_mask")
"""Keys whose yes says that an answer is trained on."""

MASKED = ("masked",)
"""Keys whose yes says that it is not."""

ANY_TURN = ("train", "training", "trainable", "train_on_turn")
"""Keys of tools that train on the turns of others than the assistant, too, if they say so."""

OF_ROWS = ("train_on_inputs", "train_on_input", "train_on_prompt", "train_on_eos", "mask", "mask_prompt",
           "mask_history", "training_detail", "train_detail", "loss_scale", "sample_weight", "sample_weights",
           "weights", "loss_weights", "loss_masks", "train_mask", "completion_mask", "assistant_mask",
           "assistant_masks")  # fmt: skip
"""Columns that say what is trained on in a way that is not known here; other columns are the row's own business."""

WORDS = re.compile(
    r"(un)?(train(s|ed|ing|able)?|mask(s|ed|ing)?|loss(es)?|weight(s|ed|ing)?|learn(s|ed|ing|able)?|supervis(e|ed|ion))"
    r"|ignor(e|ed)|skip(ped)?|exclud(e|ed)"
)
"""Words of keys of this kind."""

BESIDE = re.compile(
    r"do|don|t|not|no|never|on|is|to|be|for|from|in|of|with|should|use|only|this|apply|compute|calculate|includ(e|ed)"
    r"|inputs?|prompts?|completions?|responses?|answers?|outputs?|assistants?|users?|eos|turns?|samples?|examples?|rows?"
    r"|tokens?|labels?"
)
"""Words that make a column one of this kind together with those, if all of its words are, and its value is yes or no;
others are the row's own business, e.g. `train_split` or `loss_history`."""

YES = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}
"""What is yes and what is no as text: CSV has nothing else."""

PASS_OVER = 'To pass over such keys, name the format (or "detect") in a [[data.stage]], with loss_keys = false'


def is_one(key: str) -> bool:
    """Whether the key of a message is one by which rows say what is trained on, or is near one."""
    near = [known for known in _near(key, cutoff=0.85) if known[0] == key[:1].lower()]
    return bool(near) or any(map(WORDS.fullmatch, _words(key))) or _is_spelled_as(key, (*TRAINED, *MASKED))


def of_message(message: Mapping[str, Any], origin: Origin, where: str, *, answer: bool) -> bool | None:
    """Whether a message says that it is trained on; None where it does not say. Raises `DataError`."""
    found = {str(key): value for key, value in message.items() if is_one(str(key))}
    word = _word(found, origin, where + ": ")
    if word and not answer:
        for key in ANY_TURN:
            if _read(found.get(key)):
                what = f'{where}: "{key}" is {shown(found[key])}, but it is no answer, and only answers are trained on'
                raise bad(origin, what, f"Leave it out there. {PASS_OVER}")
    return word


def of_row(values: Mapping[str, Any], origin: Origin, columns: Iterable[object]) -> bool | None:
    """Whether a row says that it is trained on; None where it does not say. Raises `DataError`.

    `columns` are those with what the row is about, whatever their names are.
    """
    own = set(columns)
    found = {str(key): value for key, value in values.items() if key not in own and _is_of_row(str(key), value)}
    return _word(found, origin, "column ")


def _is_of_row(key: str, value: object) -> bool:
    """Whether a column is one of these, by its name, or by its words where its value is yes or no."""
    if _is_spelled_as(key, (*TRAINED, *MASKED, *OF_ROWS)):
        return True
    words = _words(key)
    meant = any(map(WORDS.fullmatch, words)) and all(WORDS.fullmatch(one) or BESIDE.fullmatch(one) for one in words)
    return meant and _read(value) is not None


def _words(key: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", key).lower())


def _is_spelled_as(key: str, known: Iterable[str]) -> bool:
    """Whether it has the letters of a known key, be it in another order or case, or parted in another way."""
    letters = sorted(_letters(key))
    return any(letters == sorted(_letters(name)) for name in known)


def _word(found: Mapping[str, Any], origin: Origin, where: str) -> bool | None:
    """What keys of this kind say together. Raises `DataError`."""
    said: dict[str, bool] = {}
    for key, value in found.items():
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if key not in (*TRAINED, *MASKED):
            meant = _near(key, cutoff=0.75)
            hint = f'Is it to be "{meant[0]}"?' if meant else ""
            what = f'{where}"{key}" says what is trained on in a way that is not known: {shown(value)}'
            raise bad(origin, what, sentences(hint, _fix()))
        yes = _read(value)
        if yes is None:
            raise bad(origin, f'{where}"{key}" is {shown(value)}, neither yes nor no', _fix())
        said[key] = yes if key in TRAINED else not yes
    if len(set(said.values())) > 1:
        names = " and ".join(f'"{key}"' for key in said)
        raise bad(origin, f"{where}{names} contradict each other", f"Keep one of them. {PASS_OVER}")
    return next(iter(said.values()), None)


def _read(value: object) -> bool | None:
    """Yes or no; None for anything else."""
    if isinstance(value, str):
        return YES.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def _near(key: str, cutoff: float) -> list[str]:
    return difflib.get_close_matches(key.lower(), (*TRAINED, *MASKED), n=1, cutoff=cutoff)


def _letters(key: str) -> str:
    return re.sub(r"[^a-z]", "", key.lower())


def _fix() -> str:
    return f"It takes 0, 1, true or false under {', '.join(TRAINED)} (trained on) or {MASKED[0]} (not). {PASS_OVER}"
