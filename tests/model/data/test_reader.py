"""The reader against real tar files: same bytes as a tar library, damage named and replaced alike, stalls attributed."""

from __future__ import annotations

import errno
import json
import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from model.data.batching import EpochPlan
from model.data.index import ShardIndex
from model.data.plan_config import PlanConfig
from model.data.reader import (
    LocalShards,
    PackLoader,
    RawSample,
    SampleReader,
    decode_latents,
    open_shards,
)
from schemas.arrow_file import table_bytes
from schemas.budget import NAVA_6B
from schemas.errors import DamagedSampleError, MachineError, ShardError
from schemas.shard import INDEX
from schemas.shard_file import ShardWriter

NUM_SHARDS, PER_SHARD = 3, 12
FLOP_TARGET = 2.0538e14
"""Of a pack of these shards' samples: what their plan would find by trials, most of a second each time."""


def write_shards(folder: Path, member: str = "safetensors") -> ShardIndex:
    """Real tar shards of small latent samples, and their index."""
    rows: list[dict[str, Any]] = []
    for shard in range(NUM_SHARDS):
        name = f"{shard:05d}.tar"
        with open(folder / name, "wb") as file, ShardWriter(file, name, (member, "json")) as out:
            for i in range(PER_SHARD):
                clip_id = f"clip{shard}-{i:02d}"
                rng = np.random.default_rng([shard, i])
                latents = {"video_latents": torch.from_numpy(rng.standard_normal((2 + i % 4, 4, 4, 6), np.float32))}
                place = out.add(clip_id, {member: save(latents), "json": json.dumps({"id": clip_id}).encode()})
                tokens = {"video_tokens": 400 * (1 + i % 4), "audio_tokens": 30, "text_tokens": 10}
                facts = {"clip_id": clip_id, "shard": name, "has_video": True, "has_audio": True, "source": "s"}
                rows.append({**facts, **tokens, **place.columns()})
    return ShardIndex.from_table(pa.Table.from_pylist(rows))


def make_plan(index: ShardIndex, **changes: Any) -> EpochPlan:
    return EpochPlan(index, PlanConfig(num_packs=2, token_budget=8000, flop_target=FLOP_TARGET, **changes), NAVA_6B)


def flip_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def take(loader: PackLoader[Any], num_packs: int) -> list[list[str]]:
    ids = [next(loader).clip_ids for _ in range(num_packs)]
    loader.close()
    return ids


def test_members_are_the_bytes_that_a_tar_library_reads(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    reader = SampleReader(index, open_shards(tmp_path))
    for row in range(len(index)):
        sample = reader.read(row)
        with tarfile.open(tmp_path / f"{row // PER_SHARD:05d}.tar") as tar:
            for extension, view in sample.members.items():
                member = tar.extractfile(f"{sample.clip_id}.{extension}")
                assert member is not None
                assert member.read() == bytes(view)
        assert set(sample.members) == {"safetensors", "json"}
    tensors = decode_latents(reader.read(5))
    assert tensors["video_latents"].shape == (3, 4, 4, 6)


def test_the_shard_contract_has_every_column_that_is_needed(tmp_path: Path) -> None:
    rows = [
        row | {"mp4_offset": 512, "mp4_bytes": 0, "split": "train"} for row in write_shards(tmp_path).table.to_pylist()
    ]
    rows[0]["split"] = "validation"
    (tmp_path / "00000.arrow").write_bytes(table_bytes(pa.Table.from_pylist(rows, schema=INDEX)))
    index = ShardIndex.open(tmp_path, split="train")
    assert len(index) == len(rows) - 1
    assert set(SampleReader(index, LocalShards(tmp_path)).read(0).members) == {"json"}
    assert ShardIndex.open(tmp_path).digest != index.digest


def test_an_object_store_gives_the_same_bytes(tmp_path: Path) -> None:
    import fsspec

    index = write_shards(tmp_path)
    memory = fsspec.filesystem("memory")
    for path in tmp_path.glob("*.tar"):
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    remote, local = SampleReader(index, open_shards("memory://bucket")), SampleReader(index, open_shards(tmp_path))
    for row in (0, 13, 35):
        assert bytes(remote.read(row).members["json"]) == bytes(local.read(row).members["json"])
    memory.rm("/bucket", recursive=True)
    with pytest.raises(ShardError, match="does not exist"):
        remote.read(0)


@settings(max_examples=25)
@given(row=st.integers(0, NUM_SHARDS * PER_SHARD - 1), where=st.floats(0, 0.999))
def test_any_flipped_byte_is_found(tmp_path_factory: pytest.TempPathFactory, row: int, where: float) -> None:
    folder = tmp_path_factory.mktemp("shards")
    index = write_shards(folder)
    place = index.location(row)
    flip_byte(folder / place.shard, place.offset + int(where * place.num_bytes))
    with pytest.raises(DamagedSampleError, match=f"{place.clip_id} in {place.shard}.*CRC-32"):
        SampleReader(index, LocalShards(folder)).read(row)


@pytest.mark.slow
def test_damage_is_named_counted_and_replaced_alike_by_every_rank(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    bad = [3, 17, 30]
    for row in bad:
        place = index.location(row)
        flip_byte(tmp_path / place.shard, place.offset + 700)
    bad_ids = {index.clip_id(row) for row in bad}
    wanted = [[index.clip_id(i.row) for i in p.items] for packs in _steps(make_plan(index), 12) for p in packs]
    runs = []
    for num_workers, prefetch in ((1, 1), (4, 6)):
        plan = make_plan(index)
        loader = PackLoader(plan.stream(), SampleReader(index, LocalShards(tmp_path)), decode_latents,
                            num_workers=num_workers, prefetch=prefetch)  # fmt: skip
        packs = [next(loader) for _ in range(24)]
        loader.close()
        assert set(loader.damaged) == bad_ids
        assert all("CRC-32" in reason for reason in loader.damaged.values())
        assert loader.num_replaced >= sum(i in bad_ids for ids in wanted for i in ids)
        for pack in packs:
            assert sum(ref.tokens for ref in pack.refs) <= 8000
            assert all(np.isfinite(t["video_latents"]).all() and t["video_latents"].any() for t in pack.samples)
        runs.append([pack.clip_ids for pack in packs])
    assert runs[0] == runs[1]
    for got, planned in zip(runs[0], wanted, strict=True):
        assert len(got) == len(planned)
        assert not bad_ids & set(got)
        assert all(g == p for g, p in zip(got, planned, strict=True) if p not in bad_ids)


def _steps(plan: EpochPlan, num_steps: int) -> list[Any]:
    stream = plan.stream()
    return [next(stream) for _ in range(num_steps)]


def test_known_damage_is_skipped_without_reading_it_again(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    known = {index.clip_id(4): "CRC-32 seen earlier"}
    loader = PackLoader(make_plan(index).stream(), SampleReader(index, LocalShards(tmp_path)), decode_latents,
                        damaged=known)  # fmt: skip
    ids = take(loader, 24)
    assert index.clip_id(4) not in {clip for pack in ids for clip in pack}
    assert loader.num_replaced > 0
    assert loader.damaged == known


def test_a_broken_data_set_stops_with_a_remedy(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    for path in tmp_path.glob("*.tar"):
        path.write_bytes(b"\0" * path.stat().st_size)
    loader = PackLoader(make_plan(index).stream(), SampleReader(index, LocalShards(tmp_path)), decode_latents)
    with pytest.raises(ShardError, match=r"substitutes are damaged.*nava-curate verify"):
        next(loader)
    loader.close()


def test_one_damaged_sample_of_a_sparse_class_never_ends_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cheapest and the dearest of sizes of which there is one each; of the cheapest nothing is as cheap."""
    index = write_shards(tmp_path)
    rows = index.table.to_pylist()
    for i, row in enumerate(rows):
        row["video_tokens"] = 400 + 40 * i
    index = ShardIndex.from_table(pa.Table.from_pylist(rows))
    for row in (0, 35):
        place = index.location(row)
        flip_byte(tmp_path / place.shard, place.offset + 700)
    runs = []
    for num_workers in (1, 4):
        loader = PackLoader(make_plan(index).stream(), SampleReader(index, LocalShards(tmp_path)), decode_latents,
                            num_workers=num_workers)  # fmt: skip
        packs = [next(loader) for _ in range(40)]
        loader.close()
        assert set(loader.damaged) == {index.clip_id(0), index.clip_id(35)}
        assert all(pack.samples for pack in packs)
        assert all(sum(ref.tokens for ref in pack.refs) <= 8000 for pack in packs), "never beyond what memory holds"
        runs.append([pack.clip_ids for pack in packs])
        said = capsys.readouterr().out.splitlines()
        assert sorted(line.split(" ")[0] for line in said) == sorted(loader.damaged), "once each"
        assert all(" is damaged, trained on " in line and "CRC-32" in line for line in said)
    assert runs[0] == runs[1]


class Failing(LocalShards):
    """Shards whose reads fail as the system says they do, so many times."""

    def __init__(self, folder: Path, number: int, times: int) -> None:
        super().__init__(folder)
        self.number, self.times = number, times

    def _open_file(self, shard: str) -> Any:
        if self.times:
            self.times -= 1
            raise OSError(self.number, os.strerror(self.number), shard)
        return super()._open_file(shard)


def test_a_mount_that_comes_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.data.retry.WAITS_S", (0.0,) * 4)
    index = write_shards(tmp_path)
    assert SampleReader(index, Failing(tmp_path, errno.ESTALE, 4)).read(5).clip_id == "clip0-05"
    with pytest.raises(MachineError, match=r"00000\.tar cannot be read: Stale.*, 5 times.*goes on"):
        SampleReader(index, Failing(tmp_path, errno.ESTALE, 100)).read(5)


def test_what_the_disk_refuses_for_good_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.data.reader.DISK_WAITS_S", (0.0,))
    index = write_shards(tmp_path)
    assert SampleReader(index, Failing(tmp_path, errno.EIO, 2)).read(5).clip_id == "clip0-05"
    with pytest.raises(DamagedSampleError, match=r"00000\.tar at .*Input/output error, 2 times"):
        SampleReader(index, Failing(tmp_path, errno.EIO, 100)).read(5)


def test_missing_and_truncated_shards(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    (tmp_path / "00002.tar").unlink()
    with pytest.raises(ShardError, match=r"00002\.tar is not in") as missing:
        SampleReader(index, LocalShards(tmp_path)).read(30)
    assert not isinstance(missing.value, DamagedSampleError)
    path = tmp_path / "00000.tar"
    path.write_bytes(path.read_bytes()[: index.location(11).offset + 100])
    with pytest.raises(DamagedSampleError, match=r"expected \d+ bytes, got 100"):
        SampleReader(index, LocalShards(tmp_path)).read(11)
    assert SampleReader(index, LocalShards(tmp_path)).read(10).clip_id == "clip0-10"


def test_a_sample_without_latents_is_damaged_not_empty(tmp_path: Path) -> None:
    index = write_shards(tmp_path, member="npy")
    with pytest.raises(DamagedSampleError, match=r"no \.safetensors member, only .*json"):
        decode_latents(SampleReader(index, LocalShards(tmp_path)).read(0))
    nonsense = RawSample("x", 0, {"safetensors": memoryview(b"nonsense")})
    with pytest.raises(DamagedSampleError, match="cannot be read"):
        decode_latents(nonsense)


@pytest.mark.slow
def test_resume_from_the_position_of_the_last_pack_taken(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    reader = SampleReader(index, LocalShards(tmp_path))
    straight = take(PackLoader(make_plan(index).stream(), reader, decode_latents, prefetch=5), 20)
    loader = PackLoader(make_plan(index).stream(), reader, decode_latents, prefetch=5)
    first = [next(loader) for _ in range(8)]
    loader.close()
    assert [pack.is_last for pack in first] == [False, True] * 4
    position = json.loads(json.dumps(first[-1].position))
    assert position["step"] == first[-1].step == 4
    rest = take(PackLoader(make_plan(index).stream(state=position), reader, decode_latents, prefetch=2), 12)
    assert [pack.clip_ids for pack in first] + rest == straight


@pytest.mark.slow
def test_prefetch_is_bounded(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    stream = make_plan(index).stream()
    decoded, lock = [0], threading.Lock()

    def count(raw: RawSample) -> str:
        with lock:
            decoded[0] += 1
        return raw.clip_id

    loader = PackLoader(stream, SampleReader(index, LocalShards(tmp_path)), count, num_workers=8, prefetch=3)
    taken = [next(loader) for _ in range(2)]
    loader._workers.shutdown(wait=True)
    most = max(len(pack.items) for packs in _steps(make_plan(index), 6) for pack in packs)
    assert stream.step <= 3
    assert sum(len(pack.samples) for pack in taken) <= decoded[0] <= 5 * most


class Clock:
    """The reader's clock: it stands still, but for a second at everything slow, which waits until the caller waits for it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._caller, self._asked, self._changed = threading.get_ident(), 0, threading.Condition()

    def perf_counter(self) -> float:
        """The caller asks three times per pack: when it hands it out, before it waits, and after."""
        with self._changed:
            self._asked += threading.get_ident() == self._caller
            self._changed.notify_all()
            return self.now_s

    def take_a_second(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._asked % 3 == 2, timeout=60)
            self.now_s += 1


@pytest.mark.parametrize("slow", ["read", "decode"])
def test_a_stall_is_attributed_to_what_was_slow(tmp_path: Path, slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index, clock = write_shards(tmp_path), Clock()
    monkeypatch.setattr("model.data.reader.time", clock)

    class SlowShards(LocalShards):
        def read(self, shard: str, offset: int, num_bytes: int) -> memoryview:
            if slow == "read":
                clock.take_a_second()
            return super().read(shard, offset, num_bytes)

    def decode(raw: RawSample) -> dict[str, Any]:
        if slow == "decode":
            clock.take_a_second()
        return decode_latents(raw)

    loader = PackLoader(make_plan(index).stream(), SampleReader(index, SlowShards(tmp_path)), decode,
                        num_workers=1, prefetch=1)  # fmt: skip
    num_samples = sum(len(next(loader).samples) for _ in range(6))
    loader.close()
    stalls = loader.stalls
    assert stalls.num_packs == 6
    waited = {"read": stalls.read_s, "decode": stalls.decode_s, "queue": stalls.queue_s}
    assert waited == {"read": 0, "decode": 0, "queue": 0, slow: num_samples}
    assert stalls.total_s == clock.now_s == num_samples


def test_a_pack_is_announced_before_it_is_read(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    calls: list[tuple[str, tuple[str, int, int]]] = []

    class Recorded(LocalShards):
        def expect(self, *where: Any) -> None:
            calls.append(("expect", where))
            super().expect(*where)

        def read(self, *where: Any) -> memoryview:
            calls.append(("read", where))
            return super().read(*where)

    loader = PackLoader(make_plan(index).stream(), SampleReader(index, Recorded(tmp_path)), decode_latents,
                        num_workers=1, prefetch=1)  # fmt: skip
    num_samples = len(next(loader).samples)
    loader.close()
    assert [kind for kind, _ in calls] == ["expect"] * num_samples + ["read"] * num_samples
    assert [where for _, where in calls[:num_samples]] == [where for _, where in calls[num_samples:]]


def test_shards_are_closed_beyond_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.data.reader.MAX_OPEN_SHARDS", 2)
    index = write_shards(tmp_path)
    shards = LocalShards(tmp_path)
    reader = SampleReader(index, shards)
    for row in (0, 13, 30, 1, 14, 31):
        assert reader.read(row).clip_id == index.clip_id(row)
        assert 1 <= num_open(tmp_path) <= 2
    shards.close()
    assert num_open(tmp_path) == 0


def test_a_shard_in_use_stays_open_however_many_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.data.reader.MAX_OPEN_SHARDS", 1)
    index = write_shards(tmp_path)
    shards = LocalShards(tmp_path)
    reader = SampleReader(index, shards)
    with ThreadPoolExecutor(8) as readers:
        found = list(readers.map(lambda row: reader.read(row).clip_id, [0, 13, 30, 1] * 60))
    assert found == [index.clip_id(row) for row in [0, 13, 30, 1] * 60]


def num_open(folder: Path) -> int:
    """Files of a folder that this process holds open."""
    inodes = {path.stat().st_ino for path in folder.iterdir()}
    found = 0
    for descriptor in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):
            found += os.fstat(descriptor).st_ino in inodes
    return found
