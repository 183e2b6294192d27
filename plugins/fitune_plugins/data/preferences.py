"""Data stage `preferences`: rows of pairs of answers, or of judged answers, told by the columns of each file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fitune import DataContext, DataError, DataStage, Preference, Row, Stage, hookimpl
from fitune_plugins.data.preference_columns import PreferencesOptions, columns_of
from fitune_plugins.data.sides import LeftOut, Reader


def _make(options: PreferencesOptions, context: DataContext) -> Stage:
    readers: dict[str, Reader] = {}

    def read(row: Row) -> Preference:
        reader = readers.get(row.origin.file)
        if reader is None:
            columns = columns_of(options, row.values, row.origin, context.takes)
            reader = readers[row.origin.file] = Reader(columns, loss=options.loss_keys)
        found = reader.pair(row) if reader.columns.chosen else reader.judged(row)
        context.count(f"rows read as {reader.columns}")
        return found

    def preferences(rows: Iterator[Row]) -> Iterator[Preference]:
        for row in rows:
            try:
                found = read(row)
            except LeftOut as reason:
                context.count(str(reason))
                continue
            except DataError as error:
                context.reject(error)
                continue
            yield found

    return preferences


@hookimpl
def ft_data_stages() -> Iterable[DataStage[PreferencesOptions]]:
    """Offer the stage."""
    yield DataStage(
        name="preferences",
        summary="Format: pairs of a chosen and a rejected answer, or judged answers, told by columns and stated",
        options=PreferencesOptions,
        takes="rows",
        gives="preferences",
        closes="gap",
        make=_make,
    )
