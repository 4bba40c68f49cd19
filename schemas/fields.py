"""Typed, documented Arrow fields: every column of the project carries its unit and its meaning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa


def f(name: str, kind: pa.DataType, *, unit: str = "", doc: str, nullable: bool = True) -> pa.Field:
    """A `pa.field` whose metadata holds `unit` and `doc`.

    Units are spelled as in the column names: s, ms, us, hz, db, px, bytes, tokens, ratio, count.
    """
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit, "doc": doc})


def struct(*fields: pa.Field) -> pa.StructType:
    """A struct type of documented fields."""
    return pa.struct(list(fields))


def unit_of(field: pa.Field) -> str:
    """The unit recorded on `field`, or an empty string."""
    return str((field.metadata or {}).get(b"unit", b"").decode())


def doc_of(field: pa.Field) -> str:
    """The meaning recorded on `field`, or an empty string."""
    return str((field.metadata or {}).get(b"doc", b"").decode())


def resolve(schema: pa.Schema | pa.StructType, path: str) -> pa.Field:
    """The field at a dotted `path` such as `sync.confidence`.

    Raises KeyError with the part that does not exist and the names that do.
    """
    here: Iterable[pa.Field] = schema
    found: pa.Field | None = None
    for part in path.split("."):
        by_name = {field.name: field for field in here}
        if part not in by_name:
            raise KeyError(f"'{part}' in '{path}' (known: {', '.join(by_name) or 'nothing'})")
        found = by_name[part]
        kind = found.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        here = list(kind) if pa.types.is_struct(kind) else []
    assert found is not None
    return found


def describe(fields: Sequence[pa.Field], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(path, type, unit, doc) of every leaf below `fields`, lists of structs shown as `name[]`."""
    rows: list[tuple[str, str, str, str]] = []
    for field in fields:
        kind, path = field.type, f"{prefix}{field.name}"
        if pa.types.is_list(kind):
            kind, path = kind.value_type, f"{path}[]"
        if pa.types.is_struct(kind):
            rows += describe(list(kind), f"{path}.")
        else:
            rows.append((path, str(kind), unit_of(field), doc_of(field)))
    return rows
