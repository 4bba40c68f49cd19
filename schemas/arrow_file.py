"""Arrow tables as IPC files: written to bytes or an open file, read from memory, a buffer or a memory-mapped path.

Facts about the whole table stand in its schema's metadata, as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa


def write_table(file: BinaryIO | pa.NativeFile, table: pa.Table) -> None:
    """Writes `table` to an open file: the same table gives the same bytes."""
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def table_bytes(table: pa.Table) -> bytes:
    """`table` as the bytes of an IPC file."""
    sink = pa.BufferOutputStream()
    write_table(sink, table)
    return bytes(sink.getvalue().to_pybytes())


def read_table(source: bytes | pa.Buffer | Path) -> pa.Table:
    """The table of an IPC file, without a copy; a path is memory-mapped. Raises pa.ArrowInvalid if it is none."""
    return pa.ipc.open_file(_buffer(source)).read_all()


def read_facts(source: bytes | pa.Buffer | Path) -> dict[str, str]:
    """What `facts_of` says of an IPC file; its rows are not read. Raises pa.ArrowInvalid if it is none."""
    return facts_of(pa.ipc.open_file(_buffer(source)).schema)


def facts_of(schema: pa.Schema) -> dict[str, str]:
    """The facts in a schema's metadata."""
    return {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}


def with_facts(schema: pa.Schema, facts: Mapping[str, str]) -> pa.Schema:
    """`schema` with these facts after those it has."""
    return schema.with_metadata({**facts_of(schema), **facts})


def _buffer(source: bytes | pa.Buffer | Path) -> pa.Buffer:
    return pa.memory_map(str(source)).read_buffer() if isinstance(source, Path) else pa.py_buffer(source)
