"""Structs as flat columns named by dotted paths, and back: a question then reads the leaves it needs and nothing else.

A struct whose fields are flat loses whether it was null; whoever flattens it keeps that in a column of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa


def leaves(name: str, kind: pa.DataType) -> Iterator[pa.Field]:
    """The flat columns of a column `name`: one per field that is no struct, lists of structs kept whole; no metadata."""
    if not pa.types.is_struct(kind):
        yield pa.field(name, bare(kind))
        return
    for field in kind:
        yield from leaves(f"{name}.{field.name}", field.type)


def bare(kind: pa.DataType) -> pa.DataType:
    """`kind` without the metadata of the fields inside: docs and roles would outweigh the rows of a small file."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, bare(field.type), field.nullable) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(bare(kind.value_type))
    return kind


def flattened(name: str, values: Sequence[Mapping[str, Any] | None], kind: pa.StructType) -> dict[str, pa.Array]:
    """Flat column -> its values, of structs as plain data; a null struct is null in all of them."""
    return dict(_flat(name, pa.array(values, type=bare(kind))))


def _flat(name: str, array: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    if not pa.types.is_struct(array.type):
        yield name, array
        return
    for field, values in zip(array.type, array.flatten(), strict=True):
        yield from _flat(f"{name}.{field.name}", values)


def nested(name: str, row: Mapping[str, Any], kind: pa.StructType) -> dict[str, Any]:
    """The struct that lies in the flat columns of `row` under `name`; null in fields that came after the row was written."""
    return {
        field.name: nested(f"{name}.{field.name}", row, field.type)
        if pa.types.is_struct(field.type)
        else row.get(f"{name}.{field.name}")
        for field in kind
    }


def is_vector(kind: pa.DataType) -> bool:
    """Whether values are lists of numbers, at any depth: what no question about hours ever reads."""
    if pa.types.is_list(kind):
        return pa.types.is_floating(kind.value_type) or is_vector(kind.value_type)
    return pa.types.is_struct(kind) and any(is_vector(field.type) for field in kind)


def small_first(fields: Iterable[pa.Field]) -> list[pa.Field]:
    """`fields` in their order, but scalars before lists and vectors last, so that what is read together lies together."""
    return sorted(fields, key=lambda field: 2 if is_vector(field.type) else int(pa.types.is_list(field.type)))
