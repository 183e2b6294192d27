"""Data source `hf-dataset`: a data set of the hub, by name, configuration, split and revision.

The library keeps rows in Arrow, which fills in nulls for keys that a row does not have: objects come without them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from fitune import DataContext, DataError, DataStage, Origin, Problem, Row, Stage, hookimpl, nearest, one_line
from fitune_plugins.data.sources.arrow_values import given_by

if TYPE_CHECKING:
    import datasets

STATE, SPLITS = "state.json", "dataset_dict.json"
"""What `save_to_disk` writes beside rows: of a data set, and of several splits."""

SPLIT = "train"
"""The split that a data set without one is."""

ROWS = 256
"""Rows that are taken out of Arrow at a time: one by one is ten times as slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HfDatasetOptions:
    """Options of the source `hf-dataset`."""

    id: str
    """Name on the hub, e.g. "openai/gsm8k", or the absolute path of a directory with data files, or of one that
    `save_to_disk` has written."""
    config: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = SPLIT
    """Split, or a slice of one, e.g. "train[:1000]"."""
    revision: str = "main"
    """Branch, tag or commit."""
    streaming: bool = False
    """Read rows over the network as they are needed, in place of storing the whole split first. What is prepared from
    them is not kept for the next run."""
    limit: Annotated[int, Ge(1)] | None = None
    """Only the first so many rows."""


def read(options: HfDatasetOptions) -> Iterator[Row]:
    """The rows of the split. Raises `DataError`."""
    return islice(_read(options), options.limit)


def _read(options: HfDatasetOptions) -> Iterator[Row]:
    data = _load(options)
    features = getattr(data, "features", None)  # which a stream may not know
    given = given_by(features.arrow_schema if features else None)
    name = f"{options.id}[{options.split}]"
    number = 0
    try:
        for number, values in enumerate(data if options.streaming else _batched(data), 1):
            yield Row(values=given(values), origin=Origin(file=name, row=number))
    except Exception as error:  # the network goes away, a file of the data set is damaged
        cause = one_line(str(error)).rstrip(".") or type(error).__name__
        raise DataError(f"{name}: the rows behind row {number} cannot be read: {cause}") from error


def _load(options: HfDatasetOptions) -> Any:
    """The data set, a `datasets.Dataset` or `datasets.IterableDataset`. Raises `DataError`."""
    import datasets

    try:
        if _saved(options.id):
            return _of_disk(options)
        return datasets.load_dataset(
            options.id, options.config, split=options.split, revision=options.revision, streaming=options.streaming
        )
    except DataError:
        raise
    except Exception as error:  # the library raises a dozen kinds, its clients' among them
        cause = one_line(str(error)).rstrip(".") or type(error).__name__
        offline = isinstance(error, ConnectionError) and datasets.config.HF_HUB_OFFLINE
        hint = "The environment forbids the network: unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE. " if offline else ""
        raise DataError(
            f"the data set {options.id} cannot be loaded: {cause}. {hint}To train on a local file instead: "
            "--set data.path=FILE.jsonl"
        ) from error


def _saved(id: str) -> list[Path]:
    """The files of a directory that `save_to_disk` has written; none if it is not one."""
    directory = Path(id)
    if not id.startswith("/") or not any((directory / name).is_file() for name in (STATE, SPLITS)):
        return []
    return sorted(file for file in directory.rglob("*") if file.is_file())


def _of_disk(options: HfDatasetOptions) -> Any:
    """The split of a directory that `save_to_disk` has written. Raises `DataError`."""
    import datasets

    found = datasets.load_from_disk(options.id)
    splits = found if isinstance(found, datasets.DatasetDict) else {str(found.split or SPLIT): found}
    if options.split not in splits:
        raise DataError(
            f'the data set {options.id} has no split "{options.split}". {nearest(options.split, map(str, splits))}'
        )
    data = splits[options.split]
    return data.to_iterable_dataset() if options.streaming else data


def _batched(data: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """The rows, taken out of Arrow a batch at a time."""
    for batch in data.iter(ROWS):
        columns = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _fingerprint(options: HfDatasetOptions) -> str | None:
    """The library's own, which changes with the revision's commit and, of a directory, with its files' dates; None of
    rows that are streamed, whose content nobody knows before they are read. Raises `DataError`."""
    if options.streaming:
        return None
    files = [(str(file), (seen := file.stat()).st_size, seen.st_mtime_ns) for file in _saved(options.id)]
    of_files = f"@{hashlib.sha256(repr(files).encode()).hexdigest()}" if files else ""
    return f"{_load(options)._fingerprint}@{options.revision}{of_files}"


def _check(options: HfDatasetOptions) -> Iterator[Problem]:
    saved = bool(_saved(options.id))
    if (options.streaming or saved) and "[" in options.split:
        what = f"a slice of a split cannot be {'read of what save_to_disk wrote' if saved else 'streamed'}"
        yield Problem(key="split", what=what, fix="Name the split alone, and set: limit")
    if saved and options.config is not None:
        yield Problem(key="config", what="what save_to_disk wrote has no configurations", fix="Leave it out")
    if options.id.startswith((".", "~")):
        # The library would look for it below the working directory, which is not the recipe's.
        fix = "Write its absolute path, or use the source of its files, e.g. jsonl"
        yield Problem(key="id", what=f"a relative path: {options.id}", fix=fix)
    elif options.id.startswith("/") and not Path(options.id).is_dir():
        yield Problem(key="id", what=f"no such directory: {options.id}", fix="Give a name on the hub, or a directory")


def _make(options: HfDatasetOptions, context: DataContext) -> Stage:
    return lambda nothing: read(options)


@hookimpl
def ft_data_stages() -> Iterable[DataStage[HfDatasetOptions]]:
    """Offer the source."""
    yield DataStage(
        name="hf-dataset",
        summary="Source: a data set of the hub, by name, configuration, split and revision",
        options=HfDatasetOptions,
        takes="nothing",
        gives="rows",
        make=_make,
        check=_check,
        fingerprint=_fingerprint,
    )
