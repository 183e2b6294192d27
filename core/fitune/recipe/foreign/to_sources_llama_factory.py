"""Of LLaMA-Factory's configuration: data sets by the names that its `dataset_info.json` has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fitune.recipe.foreign.source import Source
from fitune.recipe.foreign.to_model import seen
from fitune.recipe.foreign.to_sources import Rows, rows_at

INFO = "dataset_info.json"

NO_INFO = (
    "{names}: in LLaMA-Factory's dataset_info.json, which is not in {place}: --dataset-info FILE, or name the file"
)


def of_llama_factory(source: Source, beside: Path, info: Path | None) -> tuple[list[Rows], list[Rows]]:
    """Those to train on, and those held out; `info` is a `dataset_info.json`, where one was found."""
    known = _known(info)
    found = [_named(source, key, known, info, beside) for key in ("dataset", "eval_dataset")]
    limit = source.get("max_samples", int)
    for rows in (*found[0], *found[1]) if limit else ():
        rows.table["limit"] = limit
    source.converted("max_samples", "[[data.source]] limit")
    if source.get("streaming", bool):
        for rows in found[0]:
            rows.table |= {"streaming": True} if rows.table["use"] == "hf-dataset" else {}
        source.converted("streaming", "[[data.source]] streaming")
    mix = source.get("mix_strategy", str) or "concat"
    why = "[[data.source]] weight says how often rows occur in an epoch"
    (source.needless if mix == "concat" else source.could_not)("mix_strategy", why)
    return found[0], found[1]


def _named(source: Source, key: str, known: Mapping[str, Any], info: Path | None, beside: Path) -> list[Rows]:
    said = source.values.get(key)
    names = [str(one) for one in said] if isinstance(said, list) else str(said or "").split(",")
    found, unknown, unlike = [], [], list[str]()
    for name in filter(None, map(str.strip, names)):
        entry = known.get(name)
        rows = _of_entry(entry, info, beside) if isinstance(entry, dict) and info is not None else None
        unlike += [f"{name}: {what}" for what in _unlike(entry if isinstance(entry, dict) else {})]
        if rows is None:
            unknown.append(name)
            rows = Rows(table={"use": "json", "path": f"data/{name}.json"})
        found.append(rows)
    if unknown:
        place = str(info) if info is not None else source.get("dataset_dir", str) or "data"
        source.could_not(key, NO_INFO.format(names=", ".join(unknown), place=place))
    elif unlike:
        source.could_not(key, "; ".join(unlike))
    else:
        source.converted(key, "[[eval.source]]" if key == "eval_dataset" else "[[data.source]]")
    return found


def _unlike(entry: Mapping[str, Any]) -> Iterator[str]:
    """What of a data set's rows is not read as LLaMA-Factory does."""
    columns = entry.get("columns")
    columns = columns if isinstance(columns, dict) else {}
    if entry.get("ranking") and "query" in columns:
        yield f"the column {columns['query']} is not put behind the prompt: write both into one"
    if "kto_tag" in columns:
        yield "judged answers are rows of prompt, completion and label (docs/preference.md)"
    if set(columns) & {"images", "videos", "audios"}:
        yield "images, videos and sounds are not read"


def _known(info: Path | None) -> Mapping[str, Any]:
    try:
        found = {} if info is None else json.loads(info.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_entry(entry: Mapping[str, Any], info: Path, beside: Path) -> Rows | None:
    """A data set as that file describes it."""
    columns = entry.get("columns") if isinstance(entry.get("columns"), dict) else {}
    tags = entry.get("tags") if isinstance(entry.get("tags"), dict) else {}
    if file := entry.get("file_name"):
        place = info.parent / str(file)
        rows = rows_at(str(place.absolute()), beside)
        if rows is not None:
            rows.table["path"] = seen(str(place), beside)
    else:
        hub = entry.get("hf_hub_url")
        rows = rows_at(str(hub), beside, config=entry.get("subset"), split=entry.get("split")) if hub else None
    if rows is not None and not entry.get("ranking"):
        rows.format = _format(str(entry.get("formatting", "alpaca")), columns or {}, tags or {})
    elif rows is not None and columns:
        rows.format = {
            "use": "preferences",
            **{k: v for k, v in columns.items() if k in ("prompt", "chosen", "rejected")},
        }
        if entry.get("formatting") == "sharegpt" and "messages" in columns:
            rows.format["prompt"] = columns["messages"]
    return rows


def _format(formatting: str, columns: Mapping[str, Any], tags: Mapping[str, Any]) -> dict[str, Any]:
    """The stage that reads such rows; empty where columns tell."""
    if formatting == "sharegpt":
        column, role = columns.get("messages", "conversations"), tags.get("role_tag", "from")
        tools = {"tools": columns["tools"]} if columns.get("tools", "tools") != "tools" else {}
        if role == "role" and column not in ("messages", "conversations"):
            return {"use": "messages", "messages": column, **tools}
        if role == "from" and (column != "conversations" or tools):
            return {"use": "sharegpt", "conversations": column, **tools}
        return {}
    names = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
    named = {names[key]: value for key, value in columns.items() if key in names and value != names[key]}
    return {"use": "alpaca", **named} if named else {}
