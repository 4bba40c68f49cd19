"""Whether what was trained on was held against a set, told from the records of runs and pools."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from model.evaluate.contamination import UNKNOWN, contamination_notes
from schemas.arrow_file import table_bytes, with_facts
from schemas.errors import RecipeError
from schemas.held_against import CONTAMINATED, HeldAgainst, held_against

SCHEMA = pa.schema([(name, pa.string()) for name in ("clip_id", "by", "item", "set")])


def write_run(folder: Path, *held: HeldAgainst, rows: list[dict[str, str]] | None = None) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text("")
    schema = SCHEMA
    for each in held:
        schema = with_facts(schema, each.fact())
    (folder / CONTAMINATED).write_bytes(table_bytes(pa.Table.from_pylist(rows or [], schema=schema)))
    return folder


def test_nothing_is_known_until_a_run_is_named_and_was_held_against_the_set(tmp_path: Path) -> None:
    (tmp_path / "set" / "part").mkdir(parents=True)
    given, plain = tmp_path / "set", tmp_path / "plain"
    plain.mkdir()
    assert contamination_notes(given, []) == [UNKNOWN]
    with pytest.raises(RecipeError, match="neither a run nor a pool"):
        contamination_notes(given, [plain])
    (plain / "recipe.yaml").write_text("")
    assert "held against no set: whether" in contamination_notes(given, [plain])[0]
    whole = HeldAgainst(name="all", places=(str(tmp_path / "set"),), ways=("seen", "said"))
    other = HeldAgainst(name="other", places=(str(tmp_path / "elsewhere"), "https://a.org/x"), ways=("seen",))
    rows = [
        {"clip_id": "c1", "by": "said", "item": "i", "set": "all"},
        {"clip_id": "c2", "by": "seen", "item": "j", "set": "other"},
    ]
    run = write_run(tmp_path / "run", whole, other, rows=rows)
    (told,) = contamination_notes(given, [run])
    assert "held against this set by seen, said and not by heard, voice: 1 clips of the run" in told
    assert told.endswith("are near an item (said 1)")
    meta = given / "meta.lst"
    meta.write_text("")
    assert "held against this set" in contamination_notes(meta, [run])[0]
    part = HeldAgainst(name="voices", places=(str(given / "part"),), ways=("voice",))
    (told,) = contamination_notes(given, [write_run(tmp_path / "half", part, other)])
    assert "held against a part of this set alone, voices, by voice and not by seen, heard, said: 0 clips" in told
    (tmp_path / "new").mkdir()
    (told,) = contamination_notes(tmp_path / "new", [run])
    assert "held against all, other, not against this set" in told
    (run / CONTAMINATED).write_bytes(b"no table")
    with pytest.raises(RecipeError, match="no record of decontamination"):
        contamination_notes(given, [run])


def test_a_set_is_read_as_it_was_written() -> None:
    held = HeldAgainst(name="a,b", places=("/x", "https://a.org"), ways=("seen",))
    assert list(held_against(held.fact() | {"other": "fact"})) == [held]
