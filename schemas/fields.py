"""Typed, documented Arrow fields: every column of the project carries its unit, its meaning and its role for others.

Roles let a stage say what everybody else must know about a field, so that nobody else has to name the stage:

    show      how it is shown: `histogram` of a number, `label` to group hours by, `lane` of stretches on the time axis,
              `curve` over the numbers of another field, `span` for a remark on each speech span
    over      for a curve: the field of the same struct that holds its x values
    in_shard  False keeps it out of the shard's .json
    private   never leaves the ledger: not in shards, exports or what `why` prints
    means     what it is to the house, whoever measured it; one of `MEANINGS`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypedDict, Unpack, get_args

import pyarrow as pa

Show = Literal["histogram", "label", "lane", "curve", "span"]
Meaning = Literal[
    "text", "reference", "embedder", "voice", "face", "payload", "picture_times", "picture_prints", "sound_prints"
]
MEANINGS: dict[Meaning, str] = {
    "text": "the text a clip is trained with",
    "reference": "embedding of a speech span's voice reference, beside its `span_index`: the shard's .npy",
    "embedder": "name of the network whose embeddings the references have",
    "voice": "embedding of a voice, unit length: two of high cosine are one person",
    "face": "embedding of a face, for Euclidean distances: two that lie close are one person",
    "picture_times": "when the pictures of `picture_prints` begin, on the clip clock",
    "picture_prints": "what a clip's pictures are recognised by, as `stages.near_duplicates.prints` makes them",
    "sound_prints": "what a clip's sound is recognised by, as `stages.near_duplicates.prints` makes it",
    "payload": "SHA-256 of a clip's media as they were cut, among the fields of `schemas.cut_file.CUT`: what is packed",
}


class Roles(TypedDict, total=False):
    """See the module docstring."""

    show: Show
    over: str
    in_shard: bool
    private: bool
    means: Meaning


def f(
    name: str, kind: pa.DataType, *, unit: str = "", doc: str, nullable: bool = True, **roles: Unpack[Roles]
) -> pa.Field:
    """A `pa.field` whose metadata holds `unit`, `doc` and the roles given.

    Units are spelled as in the column names where those have one (s, ms, us, hz, db, px, bytes, tokens, ratio), else as
    what is counted or compared: count, 1/s, time base, cosine. Raises ValueError for a role or value that does not
    exist, or a curve without its x values.
    """
    if unknown := set(roles) - set(Roles.__annotations__):
        raise ValueError(f"{name}: no role {sorted(unknown)}; known: {', '.join(Roles.__annotations__)}")
    for role, known in (("show", get_args(Show)), ("means", tuple(MEANINGS))):
        if role in roles and roles[role] not in known:  # type: ignore[literal-required]
            raise ValueError(f"{name}: {role} is {roles[role]!r}; known: {', '.join(known)}")  # type: ignore[literal-required]
    if (roles.get("show") == "curve") != ("over" in roles):
        raise ValueError(f"{name}: a curve, and nothing else, names the field that holds its x values in `over`")
    told = {role: json.dumps(value) for role, value in roles.items()}
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit, "doc": doc, **told})


def struct(*fields: pa.Field, **roles: Unpack[Roles]) -> pa.StructType:
    """A struct type of documented fields; `roles` are those of every field that does not say otherwise."""
    told = {role.encode(): json.dumps(value).encode() for role, value in roles.items()}
    return pa.struct(
        [field.with_metadata({**told, **(field.metadata or {})}) for field in fields] if told else list(fields)
    )


def unit_of(field: pa.Field) -> str:
    """The unit recorded on `field`, or an empty string."""
    return str((field.metadata or {}).get(b"unit", b"").decode())


def doc_of(field: pa.Field) -> str:
    """The meaning recorded on `field`, or an empty string."""
    return str((field.metadata or {}).get(b"doc", b"").decode())


def roles_of(field: pa.Field) -> Roles:
    """The roles given to `field`."""
    metadata = {key.decode(): value for key, value in (field.metadata or {}).items()}
    roles: Roles = {role: json.loads(metadata[role]) for role in Roles.__annotations__ if role in metadata}  # type: ignore[assignment]
    return roles


def is_private(field: pa.Field) -> bool:
    """Whether the field never leaves the ledger."""
    return bool(roles_of(field).get("private", False))


def is_in_shard(field: pa.Field) -> bool:
    """Whether the field goes into a shard's .json."""
    return bool(roles_of(field).get("in_shard", True)) and not is_private(field)


def without_roles(kind: pa.DataType) -> pa.DataType:
    """`kind` whose fields, at any depth, keep docs, units and privacy and have no other role: a copy that says the same again."""
    if pa.types.is_list(kind):
        return pa.list_(without_roles(kind.value_type))
    if not pa.types.is_struct(kind):
        return kind
    kept = {b"unit", b"doc", b"private"}
    return pa.struct(
        [
            pa.field(
                field.name,
                without_roles(field.type),
                field.nullable,
                {k: v for k, v in (field.metadata or {}).items() if k in kept},
            )
            for field in kind
        ]
    )


def children_of(kind: pa.DataType) -> list[pa.Field]:
    """The fields inside a struct or a list of structs; none inside anything else."""
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    return list(inner) if pa.types.is_struct(inner) else []


def fields_below(fields: Iterable[pa.Field], prefix: str = "") -> Iterator[tuple[str, pa.Field]]:
    """(dotted path, field) of every field at any depth, outer ones first; lists are shown as `name[]`."""
    for field in fields:
        is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        path = f"{prefix}{field.name}" + ("[]" if is_list else "")
        yield path, field
        yield from fields_below(children_of(field.type), f"{path}.")


def pruned(value: Any, kind: pa.DataType, keep: Callable[[pa.Field], bool]) -> Any:
    """`value` of type `kind` as plain data, without the fields at any depth that `keep` turns down."""
    inside = children_of(kind)
    if value is None or not inside:
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [pruned(item, kind.value_type, keep) for item in value]
    return {field.name: pruned(value.get(field.name), field.type, keep) for field in inside if keep(field)}


def values_at(value: Any, path: str) -> list[Any]:
    """What lies at a dotted `path` such as `speakers[].embedding` below the plain data `value`: one item per list element."""
    found = [value]
    for part in path.split("."):
        name = part.removesuffix("[]")
        found = [item.get(name) for item in found if item is not None]
        if part.endswith("[]"):
            found = [item for items in found for item in items or ()]
    return found


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
        here = children_of(found.type)
    assert found is not None
    return found


def describe(fields: Sequence[pa.Field], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(path, type, unit, doc) of every leaf below `fields`, lists of structs shown as `name[]`."""
    return [
        (path, str(_leaf(field.type)), unit_of(field), doc_of(field))
        for path, field in fields_below(fields, prefix)
        if not children_of(field.type)
    ]


def _leaf(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
