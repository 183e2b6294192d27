"""Values out of Arrow without the nulls that it fills in, for the sources that read it: absent stays absent.

In a table all objects of a column have the same keys: one that a row does not have is stored as null. A row that says
null itself cannot be told from one that says nothing, so both come without the key, at every depth. Columns stay, and
so do nulls in lists and in maps, whose keys are each row's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

Given = Callable[[Any], Any]
"""From a value as Arrow gives it to the value as its row gave it."""


def given_by(schema: pyarrow.Schema | None) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """From a row of a table to what was put into it; of rows without a schema, every object counts as Arrow's."""
    if schema is None:
        return lambda row: {name: _any(value) for name, value in row.items()}
    columns = {field.name: found for field in schema if (found := _of_type(field.type)) is not None}

    def given(row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: columns[name](value) if name in columns else value for name, value in row.items()}

    return given


def _of_type(kind: pyarrow.DataType) -> Given | None:
    """How values of a type are put right; None where no struct is in it, so that there is nothing to do."""
    import pyarrow
    from pyarrow import types

    if isinstance(kind, pyarrow.BaseExtensionType):
        return _of_type(kind.storage_type)
    if types.is_struct(kind):
        return _struct({field.name: _of_type(field.type) for field in kind})
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _list(_of_type(kind.value_type))
    if types.is_map(kind):
        return _map(_of_type(kind.item_type))
    return None


def _struct(fields: Mapping[str, Given | None]) -> Given:
    def given(value: Any) -> Any:
        if not isinstance(value, Mapping):  # null, or made into something else by the library
            return value
        kept = {key: part for key, part in value.items() if part is not None}
        return {key: inner(part) if (inner := fields.get(key)) else part for key, part in kept.items()}

    return given


def _list(item: Given | None) -> Given | None:
    if item is None:
        return None
    return lambda value: [item(part) for part in value] if isinstance(value, list) else value


def _map(item: Given | None) -> Given | None:
    if item is None:
        return None
    return lambda value: {k: item(part) for k, part in value.items()} if isinstance(value, Mapping) else value


def _any(value: Any) -> Any:
    """A value of an unknown type, put right."""
    if isinstance(value, list):
        return [_any(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _any(part) for key, part in value.items() if part is not None}
    return value
