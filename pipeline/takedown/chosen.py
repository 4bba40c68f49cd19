"""Which sources of a run are meant: by key, by a list of addresses, by a person's voice or face.

A person is told by embeddings in the ledger, whoever measured them, and a source in which the person is met goes as a whole:
a face that is missed in one clip may be in the next. All sources with the bytes of one that goes, go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.addresses import Addresses
from pipeline.ask.find import Found, locate
from pipeline.ask.queries import Run
from pipeline.run import read_sources
from pipeline.splits import embeddings_at
from schemas.errors import LedgerError, RecipeError
from schemas.fields import Meaning, values_at
from schemas.records import Level

BLOCK = 65_536
"""Embeddings compared at a time."""
F32 = NDArray[np.float32]


class Somebody(NamedTuple):
    """Who is meant by a voice or a face."""

    meaning: Meaning
    """voice or face."""
    key: str
    """A .npy file of embeddings, or KEY:NAME, the name that somebody has in a source or clip of the run."""


@dataclass(frozen=True)
class TakedownRequest:
    """What is to go."""

    keys: tuple[str, ...] = ()
    """Sources by id, asset id or file name, or by a clip of theirs."""
    lists: tuple[str, ...] = ()
    """Lists of addresses, see `Addresses.of`."""
    people: tuple[Somebody, ...] = ()
    same_voice: float | None = None
    """Least cosine of two embeddings of one voice; None: the recipe's `pack.same_voice`."""
    same_face: float | None = None
    """Most that two embeddings of one face are apart; None: the recipe's `pack.same_face`."""


@dataclass(frozen=True)
class Meant:
    """One source that is meant."""

    source_id: str
    asset_id: str | None
    uri: str
    why: str
    """What named it, and how alike the person was: `voice A of talk.mp4, cosine 0.83`."""


def chosen(run: Run, request: TakedownRequest) -> list[Meant]:
    """The sources that a request means, in the order of their addresses.

    Raises LedgerError for a key that names nothing, RecipeError for lists and embeddings that cannot be read or compared.
    """
    assets = run.ledger.scan(Level.ASSET).select("source_id", "asset_id").collect(engine="streaming")
    asset_of: dict[str, str | None] = dict(assets.iter_rows())
    sources = {source.source_id: source for source in read_sources(run.dir)}
    why: dict[str, str] = {}
    for key in request.keys:
        found = locate(run, key)
        why |= dict.fromkeys((found.source_id, *found.also), f"source {key}")
    listed = Addresses.of(request.lists)
    for source in sources.values():
        if listed.name(source):
            why.setdefault(source.source_id, "list of addresses")
    for person in request.people:
        met = dict(_met(run, person, request))
        why |= {each: met[asset] for each, asset in asset_of.items() if asset in met and each not in why}
    of_bytes = {asset_of[each]: sources[each].uri for each in sorted(why) if asset_of.get(each) and each in sources}
    for each, asset in asset_of.items():
        if asset in of_bytes:
            why.setdefault(each, f"same bytes as {of_bytes[asset]}")
    meant = [
        Meant(each, asset_of.get(each), sources[each].uri if each in sources else "", told)
        for each, told in why.items()
    ]
    return sorted(meant, key=lambda each: (each.uri, each.source_id))


def _met(run: Run, person: Somebody, request: TakedownRequest) -> Iterator[tuple[str, str]]:
    """(asset id, why) of every asset in which a person is met."""
    wanted, told = _embeddings_of(run, person)
    reach, unit = _reach(run, person.meaning, request)
    best: dict[str, float] = {}
    for level, path in run.plan.meaning(person.meaning):
        owners, table = embeddings_at(run.ledger.scan(level), path)
        if len(table) and table.shape[1] != wanted.shape[1]:
            raise RecipeError(
                f"{person.key} has embeddings of {wanted.shape[1]} numbers; the {person.meaning}s of the run have "
                f"{table.shape[1]}.",
                remedy="Embed it with the network of the run's recipe, or name somebody as KEY:NAME.",
            )
        for first in range(0, len(table), BLOCK):
            near = _likeness(person.meaning, table[first : first + BLOCK], wanted)
            for at in np.flatnonzero(near >= reach):
                owner = owners[first + int(at)]
                best[owner] = max(best.get(owner, -np.inf), float(near[at]))
    for owner, value in best.items():
        yield owner, f"{person.meaning} {told}, {unit} {abs(value):.2f}"


def _likeness(meaning: Meaning, table: F32, wanted: F32) -> F32:
    """[n] how near each row of `table` [n, d] is to the nearest of `wanted` [m, d]: cosines, or distances below zero."""
    if meaning == "voice":
        return np.asarray((table @ wanted.T).max(axis=1), np.float32)
    apart = np.stack([np.linalg.norm(table - each, axis=1) for each in wanted])
    return np.asarray(-apart.min(axis=0), np.float32)


def _reach(run: Run, meaning: Meaning, request: TakedownRequest) -> tuple[float, str]:
    """From which likeness on it is one person, and what it is called."""
    pack = run.recipe.pack
    given = request.same_voice if meaning == "voice" else request.same_face
    usual = pack.same_voice if meaning == "voice" else pack.same_face
    found = usual if given is None else given
    if found is None:
        raise RecipeError(
            f"the recipe of {run.dir.uri} does not say how alike two {meaning}s of one person are.",
            remedy="Give --same-voice." if meaning == "voice" else "Give --same-face.",
        )
    return (found, "cosine") if meaning == "voice" else (-found, "distance")


def _embeddings_of(run: Run, person: Somebody) -> tuple[F32, str]:
    """[m, d] and what they are called."""
    if person.key.endswith(".npy"):
        return _from_file(Path(person.key)), person.key
    key, _, name = person.key.rpartition(":") if ":" in person.key else (person.key, "", "")
    found = locate(run, key)
    known: dict[str, list[Any]] = {}
    for level, path in run.plan.meaning(person.meaning):
        for row in _rows(run, found, level, path):
            items = values_at(row, path.rpartition(".")[0])
            for at, item in enumerate(each for each in items if each["embedding"]):
                known.setdefault(_name_of(item, at), []).append(item["embedding"])
    if not known:
        raise LedgerError(f"no {person.meaning} was told apart in {key}.", remedy="Name another one; of faces, a clip.")
    if name not in known and (name or len(known) > 1):
        listed = ", ".join(f"{key}:{each}" for each in known)
        raise LedgerError(f"{key} has several {person.meaning}s: {listed}.", remedy="Name one of them.")
    return np.array(known[name or next(iter(known))], np.float32), f"{name or next(iter(known))} of {key}"


def _rows(run: Run, found: Found, level: Level, path: str) -> Iterator[Mapping[str, Any]]:
    """What lies at a path of a level for a named row: its own, or its source's. Of a source nothing of clips: names of faces
    are those of one clip."""
    import polars as pl

    if level is not found.level and level is not Level.ASSET:
        return
    row_id = pl.col("row_id") == found.row_id
    where = pl.col("source_id") == found.source_id
    head = path.partition("[]")[0]
    column, _, inside = head.partition(".")
    for row in run.ledger.rows(level, where if level is Level.ASSET else where & row_id, [head]):
        yield {column: {inside: row[head] or []}}


def _name_of(item: Mapping[str, Any], at: int) -> str:
    """What somebody is called in a row: the first field that is a name or a number of theirs."""
    return next((str(value) for value in item.values() if isinstance(value, str | int)), str(at))


def _from_file(path: Path) -> F32:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{path} cannot be read as embeddings: {error}.", remedy="Give [d] or [n, d] numbers."
        ) from error
    table = np.atleast_2d(np.asarray(found, np.float32))
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise RecipeError(f"{path} holds {found.shape} numbers.", remedy="Give [d] or [n, d] finite ones.")
    return table


def uris_of(found: Sequence[Meant]) -> list[str]:
    """A line per source, for people."""
    return [f"{each.uri or each.source_id}  ({each.why})" for each in found]
