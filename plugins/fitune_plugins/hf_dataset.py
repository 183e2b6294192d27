"""Data source `hf-dataset`: a data set of the hub, by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fitune import DataContext, DataError, DataStage, Origin, Row, hookimpl
from fitune.dataflow import Stage
from fitune.errors import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class HfDatasetOptions:
    """Options of the source `hf-dataset`."""

    id: str
    """Name on the hub, e.g. "openai/gsm8k"."""
    config: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = "train"
    """Split, or a slice of one, e.g. "train[:1000]"."""
    revision: str = "main"
    """Branch, tag or commit."""


def _read(options: HfDatasetOptions) -> Iterator[Row]:
    """The rows of the split. Raises `DataError`."""
    import datasets

    try:
        data = datasets.load_dataset(options.id, options.config, split=options.split, revision=options.revision)
    except Exception as error:  # the library raises a dozen kinds, its clients' among them
        cause = one_line(str(error)).rstrip(".") or type(error).__name__
        raise DataError(
            f"the data set {options.id} cannot be loaded: {cause}. To train on a local file instead: "
            "--set data.path=FILE.jsonl"
        ) from error
    name = f"{options.id}[{options.split}]"
    for number, values in enumerate(data, 1):
        yield Row(values=values, origin=Origin(file=name, row=number))


def _make(options: HfDatasetOptions, context: DataContext) -> Stage:
    return lambda nothing: _read(options)


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
    )
