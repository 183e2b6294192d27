"""Sources of data, read in tests as a run reads them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from fitune.plugin.dataflow import DataContext, Row
from fitune.plugin.options import parse
from fitune.plugin.records import DataStage
from fitune_plugins.data.sources import csv_file, hf_dataset, json_file, jsonl, parquet, txt

FILES = (jsonl, json_file, csv_file, parquet, txt)


def stage(module: ModuleType) -> DataStage[Any]:
    """The one source of a plugin."""
    (record,) = module.ft_data_stages()
    return cast("DataStage[Any]", record)


def opened(module: ModuleType, path: Path | str, **options: object) -> Any:
    """The options of a source, checked as a recipe's are."""
    record = stage(module)
    parsed, problems = parse(record.options, {"id" if module is hf_dataset else "path": str(path), **options})
    assert not problems
    return parsed


def read(module: ModuleType, path: Path | str, **options: object) -> Iterator[Row]:
    """The rows of a source; a bad one stops it."""
    context = DataContext(tokenizer=cast("Any", None), length=8, seed=0)
    return cast("Iterator[Row]", stage(module).make(opened(module, path, **options), context)(iter(())))


def skipping(module: ModuleType, path: Path | str, **options: object) -> tuple[list[Row], Counter[str]]:
    """The rows of a source, and what is counted while it passes over bad ones."""
    counts: Counter[str] = Counter()

    def count(what: str) -> None:
        counts[what] += 1

    context = DataContext(tokenizer=cast("Any", None), length=8, seed=0, count=count, skip_bad_rows=True)
    rows = stage(module).make(opened(module, path, **options), context)(iter(()))
    return list(rows), counts


def problems(module: ModuleType, path: Path | str, **options: object) -> list[str]:
    """What the check of a source finds, each as `key: sentence`."""
    found = stage(module).check(opened(module, path, **options))
    return [f"{problem.key}: {problem.sentence()}" for problem in found]


def values(module: ModuleType, path: Path | str, **options: object) -> list[dict[str, Any]]:
    return [dict(row.values) for row in read(module, path, **options)]


def origins(rows: Iterator[Row], below: Path) -> list[str]:
    return [str(row.origin).removeprefix(f"{below}/") for row in rows]


def fingerprint(module: ModuleType, path: Path) -> str:
    record = stage(module)
    assert record.fingerprint is not None
    found = record.fingerprint(record.options(path=path))
    assert found is not None
    return found


def written(module: ModuleType, rows: list[dict[str, str]]) -> bytes:
    """These rows in the format of a source."""
    if module is jsonl:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if module is json_file:
        return json.dumps(rows).encode()
    if module is csv_file:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().encode()
    if module is txt:
        return "\n\n".join(row["text"] for row in rows).encode()
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=2)
    return cast("bytes", sink.getvalue().to_pybytes())


def zstd(content: bytes) -> bytes:
    import pyarrow

    return cast("bytes", pyarrow.Codec("zstd").compress(content, asbytes=True))


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def options_of(module: ModuleType) -> dict[str, object]:
    return {"row": "paragraph"} if module is txt else {}
