"""Packing and verifying whole runs on generated clips: every damage is told, and the same command mends it to the byte."""

from __future__ import annotations

import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.ask.queries import Run
from pipeline.ask.verify import problems
from pipeline.demo import ball_clip
from pipeline.ledger import Ledger
from pipeline.pack import read_index, read_manifest
from pipeline.pack.plan import bits_for, drawn, wanted
from pipeline.store import RunDir
from schemas.ids import digest
from schemas.shard import MEMBERS
from schemas.shard_file import locations
from stages.cut import Cut
from tests.pipeline.light_run import curate, files_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def no_cutting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be cut from here on."""

    def refuse(self: Cut, row: Any) -> dict[str, Any]:
        raise AssertionError("nothing had to be cut again")

    monkeypatch.setattr(Cut, "measure", refuse)


def first(out: Path, folder: str) -> Path:
    return min(path for path in (out / folder).iterdir() if path.suffix in (".tar", ".arrow"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def flip_a_sample(out: Path) -> None:
    index = read_index(RunDir(out), first(out, "index").stem)
    (place, *_) = locations(index, MEMBERS)
    flip(first(out, "shards"), place.members["mp4"][0] + 99)


def truncate(path: Path, to: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * to)])


def edit_manifest(out: Path, **changes: Any) -> None:
    path = out / "index" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_column(out: Path) -> None:
    from schemas.arrow_file import read_table, table_bytes

    path = first(out, "index")
    path.write_bytes(table_bytes(read_table(path.read_bytes()).drop_columns(["fps"])))


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str], bool]] = {
    "a shard is gone": (lambda out: first(out, "shards").unlink(), ["is missing; run the same command again"], True),
    "a byte of a sample": (
        flip_a_sample,
        ["has changed since it was written (sha256 differs): delete it", "is damaged (crc32 differs)"],
        True,
    ),
    "a byte of the end": (
        lambda out: flip(first(out, "shards"), -1),
        ["has changed since it was written (sha256 differs): delete it"],
        False,
    ),
    "half a shard": (
        lambda out: truncate(first(out, "shards")),
        ["sha256 differs", "crc32 differs", "webdataset cannot read the first sample"],
        True,
    ),
    "no index": (
        lambda out: first(out, "index").unlink(),
        ["is not there", "1 kept clips are not packed, 0 packed clips are not kept"],
        False,
    ),
    "half an index": (
        lambda out: truncate(first(out, "index")),
        ["is not an Arrow IPC file", "1 kept clips are not packed"],
        False,
    ),
    "an index of other columns": (drop_column, ["has other columns than the contract", "1 kept clips are not"], False),
    "no manifest": (
        lambda out: (out / "index/manifest.json").unlink(),
        ["index/manifest.json is missing: packing did not finish; run the same command again"],
        False,
    ),
    "half a manifest": (
        lambda out: truncate(out / "index/manifest.json"),
        ["the manifest of the shards cannot be read"],
        False,
    ),
    "a manifest of another contract": (
        lambda out: edit_manifest(out, contract_version=1),
        ["the manifest of the shards follows contract 1; this program reads contract 2. Curate again"],
        False,
    ),
}
"""Name -> (damage, findings, whether a clip has to be cut again)."""


def test_an_undamaged_run_is_sound_and_left_alone(light_run: tuple[Path, Path], no_cutting: None) -> None:
    media, out = light_run
    assert list(problems(Run(str(out)), is_deep=True)) == []
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".tar", ".arrow")}
    assert curate(media, out).num_shards == len(list((out / "shards").iterdir())) > 1
    shards = {path: when for path, when in before.items() if path.parent.name in ("shards", "index")}
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert not list((out / "cuts").rglob("*.cut")), "what is packed is not kept twice"


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_told_and_mended_by_the_same_command(
    light_run: tuple[Path, Path], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    media, out = light_run
    expected = files_of(out)
    act, findings, is_cut = DAMAGES[damage]
    act(out)
    found = list(problems(Run(str(out))))
    assert len(found) == len(findings), found
    for problem, wanted_text in zip(found, findings, strict=True):
        assert wanted_text in problem
    cut_again: list[str] = []
    original = Cut.measure

    def counted(self: Cut, row: Any) -> dict[str, Any]:
        cut_again.append(row["clip"]["clip_id"])
        return original(self, row)

    monkeypatch.setattr(Cut, "measure", counted)
    curate(media, out)
    assert files_of(out) == expected
    assert len(cut_again) == is_cut, "only what is nowhere any more is cut"
    assert list(problems(Run(str(out)))) == []


def test_all_damages_at_once_are_all_told(light_run: tuple[Path, Path]) -> None:
    _, out = light_run
    shards = sorted((out / "shards").iterdir())
    shards[0].unlink()
    flip(shards[1], 700)
    truncate(out / "index" / f"{shards[2].stem}.arrow")
    found = " | ".join(problems(Run(str(out))))
    for name, text in (
        (shards[0].name, "is missing"),
        (shards[1].name, "sha256 differs"),
        (shards[2].stem, "Arrow IPC"),
    ):
        assert any(name in part and text in part for part in found.split(" | ")), found


def test_settings_there_and_back_give_the_right_bytes(light_run: tuple[Path, Path]) -> None:
    media, out = light_run
    expected = files_of(out)
    other = ("stages.cut.crf=40", "stages.cut.allow_copy=false")
    curate(media, out, *other)
    changed = files_of(out)
    assert not set(changed) & set(expected) - {"index/manifest.json"}, "no shard of the old settings is left"
    assert list(problems(Run(str(out)))) == []
    curate(media, out)
    assert files_of(out) == expected


def test_another_shard_size_moves_bytes_and_cuts_nothing(light_run: tuple[Path, Path], no_cutting: None) -> None:
    media, out = light_run
    expected = files_of(out)
    assert curate(media, out, "pack.target_shard_mb=100").num_shards == 1
    assert list(problems(Run(str(out)), is_deep=True)) == []
    assert curate(media, out).num_shards > 1
    assert files_of(out) == expected


def test_a_new_source_touches_its_clips_shards_only(light_run: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = light_run
    before = files_of(out)
    (tmp_path / "more").mkdir()
    ball_clip(tmp_path / "more" / "new.mp4", duration_s=3.0, seed=9)
    curate(tmp_path / "more", out)
    after = files_of(out)
    touched = {name for name in after if name.startswith("shards/")} - set(before)
    assert len(touched) == 1, "one clip more, one shard more or another one"
    assert all(after[name] == before[name] for name in set(before) & set(after) if name != "index/manifest.json")
    assert list(problems(Run(str(out)))) == []
    assert read_manifest(RunDir(out)).num_samples == 5


def test_a_source_that_changed_is_an_error_and_never_cut_as_if_it_were_the_old_one(
    light_run: tuple[Path, Path], tmp_path: Path
) -> None:
    media, out = light_run
    expected = files_of(out)
    source = media / "0.mp4"
    kept, stat = source.read_bytes(), source.stat()
    try:
        ball_clip(source, duration_s=3.0, seed=77)
        curate(media, out, "stages.cut.crf=30", "stages.cut.allow_copy=false")
        clips = Ledger(str(out / "ledger")).scan("clip").select("verdict.reason", "verdict.stage").collect()
        assert clips.filter(pl.col("verdict.reason") == "source_changed")["verdict.stage"].to_list() == ["cut"]
        assert read_manifest(RunDir(out)).num_samples == 3
        assert list(problems(Run(str(out)))) == []
    finally:
        source.write_bytes(kept)
    curate(media, out)
    assert files_of(out) == expected, "the same bytes at another time are the same source"
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_source_that_was_away_is_taken_up_again_when_asked(light_run: tuple[Path, Path], tmp_path: Path) -> None:
    media, out = light_run
    settings = ("stages.cut.crf=31",)
    (media / "0.mp4").rename(tmp_path / "away")
    try:
        curate(media, out, *settings)
    finally:
        (tmp_path / "away").rename(media / "0.mp4")
    assert read_manifest(RunDir(out)).num_samples == 3
    curate(media, out, *settings)
    assert read_manifest(RunDir(out)).num_samples == 3, "an error is settled until somebody asks"
    curate(media, out, *settings, retry_errors=True)
    assert read_manifest(RunDir(out)).num_samples == 4
    assert list(problems(Run(str(out)))) == []


def test_media_damaged_before_they_were_packed_are_cut_again(
    light_run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    media, out = light_run
    settings = ("stages.cut.crf=32", "stages.cut.allow_copy=false")
    curate(media, out, *settings)
    expected = files_of(out)
    curate(media, out)
    original = Cut.measure
    damaged: list[str] = []

    def damaging(self: Cut, row: Any) -> dict[str, Any]:
        result = original(self, row)
        if not damaged:
            (path,) = (out / "cuts").rglob(f"{row['clip']['clip_id']}-*.cut")
            flip(path, 1000)
            damaged.append(path.name)
        return result

    monkeypatch.setattr(Cut, "measure", damaging)
    curate(media, out, *settings)
    assert damaged
    assert files_of(out) == expected


def test_rows_a_gate_turned_away_are_not_cut_even_for_audit(light_run: tuple[Path, Path], no_cutting: None) -> None:
    media, out = light_run
    answer = curate(media, out, "audit_fraction=1", "gates.picture.brightness.min=2", "stages.cut.crf=33")
    assert answer.num_shards == 0
    clips = Ledger(str(out / "ledger")).scan("clip").select("verdict.status", "verdict.is_audit").collect()
    assert set(clips.iter_rows()) == {("reject", True)}
    assert list(problems(Run(str(out)))) == []


def test_a_torn_newest_commit_is_named_with_its_remedy_and_done_again(light_run: tuple[Path, Path]) -> None:
    media, out = light_run
    expected = files_of(out)
    commit = max((out / "ledger/_delta_log").glob("*.json"))
    truncate(commit)
    found = list(problems(Run(str(out))))
    assert len(found) == 1
    assert f"ledger/_delta_log/{commit.name} is torn. It is the newest: delete it" in found[0]
    commit.unlink()
    curate(media, out)
    assert files_of(out) == expected
    assert list(problems(Run(str(out)))) == []


@pytest.mark.parametrize("damage", ["truncated", "gone", "flipped"])
def test_a_damaged_data_file_of_the_ledger_is_named(light_run: tuple[Path, Path], damage: str) -> None:
    _, out = light_run
    files = Ledger(str(out / "ledger")).table.file_uris()
    path = Path(next(name for name in files if "kind=clip" in name))
    if damage == "truncated":
        truncate(path)
    elif damage == "gone":
        path.unlink()
    else:
        flip(path, path.stat().st_size - 6)
    found = list(problems(Run(str(out))))
    assert any(path.name in problem and "Take it back from a copy" in problem for problem in found), found


def test_references_and_what_made_them_travel_with_the_clip(light_run: tuple[Path, Path]) -> None:
    _, out = light_run
    with tarfile.open(first(out, "shards")) as tar:
        names = [name.partition(".")[2] for name in tar.getnames()]
        note = json.load(tar.extractfile(next(name for name in tar.getnames() if name.endswith(".json"))))  # type: ignore[arg-type]
    assert tuple(names[: len(MEMBERS)]) == MEMBERS
    assert note["cut"]["references"] == []
    assert note["cut"]["mode"] in ("copy", "encode")
    assert "sha256" not in note["cut"]
    assert set(note["provenance"]["hashes"]) == set(note["provenance"]["stages"])


def test_buckets_are_kept_until_they_are_outgrown() -> None:
    assert bits_for(0, 1, None) == 0
    assert bits_for(1_000_000, 1, None) == 0
    assert bits_for(3_000_000, 1, None) == 2
    assert bits_for(3_000_000, 1, 1) == 1, "it has grown, but not beyond twice the size"
    assert bits_for(5_000_000, 1, 1) == 3
    assert bits_for(10, 1, 5) == 5, "a run that shrank keeps its shards"


def test_a_hundred_thousand_clips_are_planned_in_seconds(light_run: tuple[Path, Path]) -> None:
    """Dealing out is work on columns: no Python object per clip."""
    opened = Run(str(light_run[1]))
    few = wanted(opened.ledger, opened.plan)
    ids = pl.Series(["c" + digest(number) for number in range(100_000)])
    many = pl.select(ids.alias("clip_id")).with_columns(
        source_id=pl.lit("s0"),
        split=pl.lit("train"),
        cut_hash=pl.lit("h"),
        sha256=pl.lit("ab" * 32),
        bytes=pl.lit(2_000_000, pl.Int64),
    )
    assert many.columns == few.columns
    before_s = time.process_time()
    clips, shards = drawn(many, opened.plan, bits_for(int(many["bytes"].sum()), 512, None))
    assert time.process_time() - before_s < 2
    assert len(shards) == 512
    assert len(clips) == 100_000
    assert clips.group_by("name").len()["len"].max() < 2 * 100_000 / 512
