"""Of axolotl's configuration: its `datasets`, each with the prompt type that it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fitune.recipe.draft import Draft
from fitune.recipe.foreign.known import SETS
from fitune.recipe.foreign.source import Source
from fitune.recipe.foreign.to_sources import Rows, rows_at

PAIRS = {
    "ultra": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    "intel": {"prompt": "question", "chosen": "chosen", "rejected": "rejected"},
    "argilla": {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
    "icr": {"prompt": "input", "chosen": "chosen", "rejected": "rejected"},
}
"""Columns of pairs, by the last word of a type such as `chatml.ultra`."""

ALPACA = (
    '{at}: axolotl writes "Below is an instruction ..." around rows of alpaca; here the chat template is written '
    "around them"
)


def of_axolotl(source: Source, draft: Draft, beside: Path) -> tuple[list[Rows], list[Rows]]:
    """Those to train on, and those held out."""
    found: dict[str, list[Rows]] = {}
    for key in ("datasets", "pretraining_dataset", "test_datasets"):
        listed = source.values.get(key)
        listed = [{"path": listed}] if isinstance(listed, str) else [listed] if isinstance(listed, dict) else listed
        for number, each in enumerate(listed or []):
            one = source.inside(key, number, each if isinstance(each, dict) else {})
            rows = _one(one, draft, beside, plain=key == "pretraining_dataset")
            if rows is not None:
                found.setdefault(key, []).append(rows)
        if found.get(key):
            source.converted(key, "[[eval.source]]" if key == "test_datasets" else "[[data.source]]")
    if source.get("streaming", bool):
        for rows in found.get("datasets", []):
            rows.table |= {"streaming": True} if rows.table["use"] == "hf-dataset" else {}
        source.converted("streaming", "[[data.source]] streaming")
    return [*found.get("datasets", []), *found.get("pretraining_dataset", [])], found.get("test_datasets", [])


def _one(one: Source, draft: Draft, beside: Path, *, plain: bool) -> Rows | None:
    name, files = one.get("path", str), one.values.get("data_files")
    kind = one.get("ds_type", str) or ("json" if name == "json" else "")
    if files and name in (*("json", "csv", "parquet", "text"), None):
        first = files[0] if isinstance(files, list) else files
        name, kind = str(first), kind or str(one.values.get("path"))
        more = isinstance(files, list) and len(files) > 1
        (one.could_not if more else one.converted)("data_files", "[[data.source]] path: one for each file")
    elif files:
        one.could_not("data_files", "files of a data set of the hub: fetch them, and give [[data.source]] path")
    rows = None if name is None else rows_at(name, beside, kind, one.get("name", str), one.get("split", str))
    if rows is None:
        one.could_not("path", "it is neither a file nor a data set of the hub: fetch it, and give [[data.source]] path")
        one.close(SETS)
        return None
    if (revision := one.get("revision", str)) and rows.table["use"] == "hf-dataset":
        rows.table["revision"] = revision
    for key in ("path", "name", "split", "revision", "ds_type"):
        one.converted(key, "[[data.source]]")
    rows.plain = plain
    _read_as(one, rows, draft)
    one.close(SETS)
    return rows


def _read_as(one: Source, rows: Rows, draft: Draft) -> None:
    """The format of a set's rows."""
    said = one.values.get("type")
    if isinstance(said, dict):
        _by_fields(one.inside("type", None, said), rows)
        one.converted("type", "[[data.stage]], a format with these columns")
        return
    word, _, last = str(said or "").partition(".")
    word = word.partition(":")[0]
    if said is None or word in ("chat_template", "sharegpt"):
        _messages(one, rows, pairs=last if word == "chat_template" else "")
    elif word == "alpaca" or str(said).startswith("alpaca"):
        rows.format = {"use": "alpaca"}
        draft.differs.append(ALPACA.format(at=f"{one.prefix}type"))
    elif word in ("completion", "pretrain"):
        rows.plain = True
        text = one.get("field", str) or one.get("text_column", str)
        rows.format = {"text": text} if text and text != "text" else {}
        one.converted("field", '[[data.stage]] use = "plain-text", text')
        one.converted("text_column", '[[data.stage]] use = "plain-text", text')
    elif last in PAIRS:
        rows.format, rows.template = {"use": "preferences", **PAIRS[last]}, word
    else:
        one.could_not(
            "type", "no format here is of this type: columns tell, or a [[data.stage]] names them (docs/data.md)"
        )
        return
    one.converted("type", "[[data.stage]], a format")
    template = one.get("chat_template", str) or one.get("conversation", str)
    rows.template = rows.template or template or ""
    for key in ("chat_template", "conversation"):
        one.converted(key, '[[data.stage]] use = "chat", template')
    _roles(one, rows)


def _messages(one: Source, rows: Rows, pairs: str) -> None:
    """A list of messages, with keys of other names perhaps; or a pair of them."""
    column = one.get("field_messages", str)
    chosen, rejected = one.get("field_chosen", str), one.get("field_rejected", str)
    mapped = one.values.get("message_property_mappings")
    mapped = mapped if isinstance(mapped, dict) else {}
    role = str(mapped.get("role") or one.get("message_field_role", str) or "role")
    value = str(mapped.get("content") or one.get("message_field_content", str) or "content")
    if chosen or rejected or pairs in PAIRS:
        named = {"prompt": column, "chosen": chosen, "rejected": rejected} if chosen else PAIRS.get(pairs, {})
        rows.format = {"use": "preferences", **{key: name for key, name in named.items() if name}}
    elif (role, value) != ("role", "content"):
        rows.format = {"use": "sharegpt", "conversations": column or "messages", "role": role, "value": value}
    elif column not in (None, "messages", "conversations"):
        rows.format = {"use": "messages", "messages": column}
    if (tools := one.get("field_tools", str)) and rows.format.get("use") in (None, "messages", "sharegpt"):
        rows.format = {"use": "messages", **rows.format, "tools": tools}
        one.converted("field_tools", "[[data.stage]] tools")
    for key in ("field_messages", "field_chosen", "field_rejected", "message_field_role", "message_field_content"):
        one.converted(key, "[[data.stage]], a format with these columns")
    if mapped and set(mapped) <= {"role", "content", "tool_calls", "tools", "weight"}:
        one.converted("message_property_mappings", "[[data.stage]], a format with these columns")
    elif mapped:
        one.could_not(
            "message_property_mappings", "a format reads roles and contents, thoughts and calls by their names"
        )


def _by_fields(fields: Source, rows: Rows) -> None:
    """A type that names its columns."""
    columns = {
        "field_instruction": "instruction",
        "field_input": "input",
        "field_output": "output",
        "field_system": "system",
    }
    pairs = {"field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected",
             "field_completion": "completion", "field_label": "label", "field_system": "system"}  # fmt: skip
    of_pairs = any(key in fields.values for key in ("field_chosen", "field_label", "field_prompt"))
    named = pairs if of_pairs else columns
    rows.format = {"use": "preferences" if of_pairs else "alpaca"}
    for key, option in named.items():
        if (column := fields.get(key, str)) is not None:
            rows.format |= {option: column}
            fields.converted(key, f"[[data.stage]] {option}")
    for key in ("format", "no_input_format", "system_format", "system_prompt"):
        if fields.has(key):
            fields.could_not(key, 'a text around rows is a chat template: [[data.stage]] use = "chat", template_file')
    fields.close({})


def _roles(one: Source, rows: Rows) -> None:
    """Whose turns are trained on."""
    roles: Any = one.values.get("roles_to_train")
    if not roles:
        return
    names = {str(role) for role in roles} if isinstance(roles, list) else {str(roles)}
    if names <= {"assistant", "gpt", "model"}:
        one.converted("roles_to_train", 'loss = "assistant", as is the default')
    elif {"user", "human"} & names:
        rows.everything = True
        one.converted("roles_to_train", 'loss = "all"')
    else:
        one.could_not("roles_to_train", 'loss is "assistant", "completion" or "all"')
