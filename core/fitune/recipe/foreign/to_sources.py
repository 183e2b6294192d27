"""Of a configuration: where rows come from, as tables of `[[data.source]]`, and the format that each is of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitune.recipe.foreign.source import Source
from fitune.recipe.foreign.to_model import seen

SUFFIXES = {".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "txt"}

TYPES = {"json": "json", "csv": "csv", "parquet": "parquet", "text": "txt"}
"""Types of files, as axolotl calls them."""


@dataclass(slots=True, kw_only=True)
class Rows:
    """A source of rows."""

    table: dict[str, Any]
    """Its table."""
    format: dict[str, Any] = field(default_factory=dict)
    """The stage that reads them; empty where columns tell."""
    plain: bool = False
    """Whether its rows are whole texts."""
    template: str = ""
    """The chat template that the configuration names for it."""
    everything: bool = False
    """Whether all of a text is trained on."""


def rows_at(
    name: str, beside: Path, kind: str = "", config: str | None = None, split: str | None = None
) -> Rows | None:
    """A file or a data set of the hub; None for what is neither, e.g. an address."""
    if "://" in name:
        return None
    path = Path(name).expanduser()
    suffixes = [suffix for suffix in path.suffixes if suffix in SUFFIXES]
    if suffixes or name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists():
        return Rows(table={"use": _kind(path, kind, suffixes), "path": seen(name, beside)})
    table: dict[str, Any] = {"use": "hf-dataset", "id": name}
    table |= {"config": config} if config else {}
    return Rows(table={**table, "split": split or "train"})


def _kind(path: Path, kind: str, suffixes: list[str]) -> str:
    """The source that reads a file: JSON may be lines, whatever its name says."""
    found = SUFFIXES[suffixes[-1]] if suffixes else TYPES.get(kind, "jsonl")
    if path.is_dir():
        known = [SUFFIXES[one.suffix] for one in sorted(path.iterdir()) if one.suffix in SUFFIXES]
        return known[0] if known else found
    if found == "json" and path.is_file():
        with path.open(encoding="utf-8", errors="replace") as lines:
            start = lines.read(4096).lstrip()
        return "jsonl" if start.startswith("{") else "json"
    return found


def of_trl(source: Source, beside: Path) -> tuple[list[Rows], list[Rows]]:
    """Those to train on, and those held out."""
    found: list[Rows] = []
    name, split = source.get("dataset_name", str), source.get("dataset_train_split", str)
    config = source.get("dataset_config", str)
    if name is not None and (rows := rows_at(name, beside, config=config, split=split)) is not None:
        found.append(rows)
        for key in ("dataset_name", "dataset_config", "dataset_train_split"):
            source.converted(key, "[[data.source]]")
    mixture = source.values.get("dataset_mixture")
    mixture = mixture if isinstance(mixture, dict) else {}
    listed = source.values.get("datasets") or mixture.get("datasets") or []
    key = "dataset_mixture.datasets" if mixture else "datasets"
    found += [one for number, each in enumerate(listed) if (one := _of_mixture(source, key, number, each, beside))]
    if listed:
        source.converted("datasets", "[[data.source]]")
    _mixer(source, found, beside)
    if source.get("dataset_streaming", bool):
        for rows in found:
            rows.table |= {"streaming": True} if rows.table["use"] == "hf-dataset" else {}
        source.converted("dataset_streaming", "[[data.source]] streaming")
    return found, _test_of_trl(source, beside, mixture)


def _test_of_trl(source: Source, beside: Path, mixture: dict[str, Any]) -> list[Rows]:
    """The rows that TRL evaluates on, where it does."""
    strategy = source.get("eval_strategy", str) or source.get("evaluation_strategy", str) or "no"
    if mixture:
        inner = source.inside("dataset_mixture", None, {k: v for k, v in mixture.items() if k != "datasets"})
        size = inner.get("test_split_size", float) or 0.0
        is_share = 0 < size < 1
        (inner.converted if is_share else inner.could_not)("test_split_size", "[eval] fraction is a share of the rows")
        inner.could_not("seed", "one seed is for all: seed, above the first table")
        inner.close({})
        source.converted("dataset_mixture", "[[data.source]]")
    name = source.get("dataset_name", str)
    if strategy == "no" or name is None:
        source.needless("dataset_test_split", "there is no evaluation (eval_strategy)")
        return []
    split, config = source.get("dataset_test_split", str) or "test", source.get("dataset_config", str)
    rows = rows_at(name, beside, config=config, split=split)
    if rows is None or rows.table["use"] != "hf-dataset":
        source.could_not(
            "dataset_test_split", "a file has no splits: [[eval.source]] names another, or [eval] fraction"
        )
        return []
    source.converted("dataset_test_split", "[[eval.source]]")
    return [rows]


def _of_mixture(source: Source, key: str, number: int, each: object, beside: Path) -> Rows | None:
    """One of TRL's `datasets`, or of a mixture of the alignment handbook."""
    if not isinstance(each, dict):
        return None
    one = source.inside(key, number, each)
    name = one.get("id", str) or one.get("path", str)
    config = one.get("config", str) or one.get("name", str)
    rows = None if name is None else rows_at(name, beside, config=config, split=one.get("split", str))
    if rows is None:
        one.close({})
        return None
    weight = one.get("weight", float)
    rows.table |= {} if weight is None or weight == 1 else {"weight": weight}
    for said in ("id", "path", "config", "name", "split", "weight"):
        one.converted(said, "[[data.source]]")
    one.needless("columns", "a format reads the columns that it is of")
    one.close({})
    return rows


def _mixer(source: Source, found: list[Rows], beside: Path) -> None:
    """The older mixture of the alignment handbook: names with shares, and splits for all."""
    mixer, splits = source.values.get("dataset_mixer"), source.values.get("dataset_splits")
    if not isinstance(mixer, dict):
        return
    split = next((str(one) for one in splits or [] if "train" in str(one)), "train")
    for name, share in mixer.items():
        if (rows := rows_at(str(name), beside, split=split)) is not None:
            rows.table |= {} if share in (1, 1.0) else {"weight": share}
            found.append(rows)
    source.converted("dataset_mixer", "[[data.source]]")
    source.converted("dataset_splits", f'[[data.source]] split = "{split}"; others as [[eval.source]]')
