"""Reading compared: how close to raw sequential reads of the same bytes each reader comes, per CPU second and cold.

    python -m benchmarks.loader --json FILE [--samples 2000] [--repeats 5] [--folder DIR]

One corpus of about 1.1 MB samples (picture, sound, timbre, annotations) in 16 parts, each a tar shard with its index and the
same as MosaicML shards. Every reader hands over every byte of every sample and one byte of each 4 KiB page is touched; opening
is not counted. The ceiling is `readinto` of the same tar file into one reused, page-aligned 8 MiB buffer, in the same process.
Virtual cores and shared disks change their speed by half within minutes, so a pass takes one part, a tenth of a second,
stands between two passes of the ceiling over that part and is compared with their mean; a share is the median of these ratios
over parts and repeats, readers in random order, with its 95 % bootstrap interval. `warm`: files in the page cache, bytes per
CPU second (user + system of the process). `cold`: the files' pages are dropped before each pass, wall time. A share whose
interval is wider than 0.15 is marked unsure.

MosaicML Streaming is compared when it is installed (`pip install mosaicml-streaming`); it needs torchvision to import but
not to read bytes, so an empty stand-in is put in its place where torchvision itself is absent.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import mmap
import os
import platform
import random
import resource
import sys
import tempfile
import time
import types
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from itertools import chain, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from benchmarks.intervals import bootstrap_interval
from model.data.batching import EpochPlan
from model.data.index import ShardIndex
from model.data.plan_config import PlanConfig
from model.data.reader import LocalShards, PackLoader, SampleReader
from schemas.arrow_file import table_bytes
from schemas.budget import NAVA_6B
from schemas.shard import MEMBERS
from schemas.shard_file import ShardWriter

NUM_PARTS = 16
PACK_FLOPS = 7.7e15
"""What the plan itself takes for packs of 150,000 tokens; to derive it would take longer than to read a part."""
Mode = Literal["warm", "cold"]
MODES: tuple[Mode, ...] = ("warm", "cold")
Sample = dict[str, Any]
Reader = Callable[[Path], Iterator[Sample]]
MAX_INTERVAL = 0.15
"""Width of a share's interval from which the table calls it unsure."""
CEILING_BUFFER = memoryview(mmap.mmap(-1, 8 << 20))
"""Begins at a page: the kernel copies up to five times slower into addresses that are no multiple of 32 bytes."""


# ---------------------------------------------------------------------------------------------------------- corpus


def make_sample(number: int) -> dict[str, bytes]:
    """Incompressible members of one sample: a log-normal picture of 0.15 ... 4 MB, 64 kB of sound, small annotations."""
    rng = np.random.default_rng(number)
    picture_bytes = int(np.clip(np.exp(rng.normal(np.log(0.9e6), 0.5)), 1.5e5, 4e6))
    return {
        "mp4": rng.bytes(picture_bytes),
        "flac": rng.bytes(64_000),
        "refs.flac": rng.bytes(32_000),
        "json": json.dumps({"clip_id": f"{number:08d}", "caption": "x" * 400}).encode(),
        "npy": rng.bytes(40_000),
    }


def write_corpus(folder: Path, num_samples: int) -> list[Path]:
    """Folders of the parts: a tar shard, its Arrow index, and MosaicML shards when that library is there."""
    parts = [folder / f"{part:02d}" for part in range(NUM_PARTS)]
    for part, path in enumerate(parts):
        numbers = range(part * num_samples // NUM_PARTS, (part + 1) * num_samples // NUM_PARTS)
        (path / "tar").mkdir(parents=True)
        rows = _write_shard(path / "tar" / "00000.tar", numbers)
        (path / "index.arrow").write_bytes(table_bytes(pa.Table.from_pylist(rows)))
        if _import_streaming():
            from streaming import MDSWriter

            columns = dict.fromkeys(MEMBERS, "bytes")
            with MDSWriter(out=str(path / "mds"), columns=columns, size_limit=1 << 27) as out:
                for number in numbers:
                    out.write(make_sample(number))
    return parts


def _write_shard(path: Path, numbers: range) -> list[dict[str, Any]]:
    facts = {"has_video": True, "has_audio": True, "source": "random"}
    tokens = {"video_tokens": 27_280, "audio_tokens": 127, "text_tokens": 100}
    with path.open("wb") as file, ShardWriter(file, path.name, MEMBERS) as shard:
        places = [shard.add(f"{number:08d}", make_sample(number)) for number in numbers]
    return [{"clip_id": place.clip_id, "shard": place.shard, **facts, **tokens, **place.columns()} for place in places]


# --------------------------------------------------------------------------------------------------------- readers


def read_raw(folder: Path) -> int:
    """Bytes read by the ceiling."""
    total = 0
    for path in sorted((folder / "tar").iterdir()):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(CEILING_BUFFER):
                total += count
    return total


def read_ours(folder: Path, *, verify: bool) -> Iterator[Sample]:
    """Index, one read per sample, slices."""
    index = ShardIndex.open(folder / "index.arrow")
    reader = SampleReader(index, LocalShards(folder / "tar"), verify=verify)
    return (reader.read(row).members for row in range(len(index)))


def read_ours_planned(folder: Path) -> Iterator[Sample]:
    """The whole path of training: plan, packs, one worker thread ahead; one epoch in shuffled order, unverified."""
    index = ShardIndex.open(folder / "index.arrow")
    config = PlanConfig(num_packs=1, num_epochs=1, token_budget=150_000, flop_target=PACK_FLOPS)
    plan = EpochPlan(index, config, NAVA_6B)
    reader = SampleReader(index, LocalShards(folder / "tar"), verify=False)
    loader = PackLoader(plan.stream(), reader, lambda raw: raw.members, num_workers=1, prefetch=2)

    def samples() -> Iterator[Sample]:
        num_read = 0
        for pack in loader:
            yield from pack.samples
            num_read += len(pack.samples)
            if num_read == len(index):
                break
        loader.close()

    return samples()


def read_webdataset(folder: Path) -> Iterator[Sample]:
    """webdataset without decoding or shuffling."""
    import webdataset

    urls = [str(path) for path in sorted((folder / "tar").iterdir())]
    return iter(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


def read_streaming(folder: Path) -> Iterator[Sample]:
    """MosaicML Streaming from local shards, unshuffled."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    return iter(StreamingDataset(local=str(folder / "mds"), shuffle=False, batch_size=1, num_canonical_nodes=1))


def _import_streaming() -> bool:
    """Whether MosaicML Streaming imports, with an empty torchvision in place if there is none."""
    if importlib.util.find_spec("streaming") is None:
        return False
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for name in ("", ".transforms", ".transforms.functional", ".datasets"):
            module = types.ModuleType(f"torchvision{name}")
            module.__spec__, module.__path__ = ModuleSpec(module.__name__, None), []
            sys.modules[module.__name__] = module
        sys.modules["torchvision"].__dict__["transforms"] = sys.modules["torchvision.transforms"]
        sys.modules["torchvision.transforms.functional"].__dict__["to_tensor"] = None
        sys.modules["torchvision.datasets"].__dict__["VisionDataset"] = object
    import streaming

    return bool(streaming.__version__)


# ------------------------------------------------------------------------------------------------------- measuring


@dataclass
class Passes:
    """Of one reader in one mode: its rates in bytes per second (CPU warm, wall cold), and their ratios to the ceiling."""

    rates: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Median share with its 95 % bootstrap interval, None for one pass; median, least and greatest rate."""
        shares = np.array(self.shares)
        interval = bootstrap_interval(lambda picked: float(np.median(shares[picked])), len(shares))
        return {
            "share": float(np.median(shares)),
            "interval": interval,
            "mb_per_s": [round(float(f(self.rates)) / 1e6) for f in (np.median, np.min, np.max)],
        }


def drop_pages(folder: Path) -> None:
    """Ask the kernel to forget the cached pages of every file under a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def consume(samples: Iterator[Sample]) -> int:
    """Bytes of a full pass, touching one byte per page of every member."""
    num_bytes = 0
    for sample in samples:
        for extension in MEMBERS:
            data = sample[extension]
            memoryview(data)[::4096].tobytes()
            num_bytes += len(data)
    return num_bytes


def content(reader: Reader, parts: list[Path]) -> tuple[int, int]:
    """(samples, checksum of all members that does not depend on the order of samples)."""
    total, num_samples = 0, 0
    for sample in chain.from_iterable(map(reader, parts)):
        num_samples += 1
        total ^= zlib.crc32(b"".join(bytes(sample[extension]) for extension in MEMBERS))
    return num_samples, total


def measure(reader: Reader | None, folder: Path, mode: Mode) -> float:
    """Bytes per CPU second (warm) or wall second (cold) of one pass over a part; None reads raw."""
    samples = reader(folder) if reader else None
    if mode == "cold":
        drop_pages(folder)
    gc.collect()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    num_bytes = consume(samples) if samples else read_raw(folder)
    wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return num_bytes / (cpu_s if mode == "warm" else wall_s)


def contenders() -> tuple[dict[str, Reader], dict[str, str]]:
    """(readers by name, reason why a reader is missing by name)."""
    readers: dict[str, Reader] = {
        "ours, unverified": lambda folder: read_ours(folder, verify=False),
        "ours, CRC-32 verified": lambda folder: read_ours(folder, verify=True),
        "ours, planned packs in a worker thread, unverified": read_ours_planned,
    }
    skipped = {}
    if importlib.util.find_spec("webdataset"):
        readers["webdataset"] = read_webdataset
    else:
        skipped["webdataset"] = "not installed"
    if _import_streaming():
        readers["MosaicML Streaming"] = read_streaming
    else:
        skipped["MosaicML Streaming"] = "not installed: pip install mosaicml-streaming"
    return readers, skipped


def compare(parts: list[Path], repeats: int) -> dict[str, Any]:
    """Ratios to the ceiling of every contender that returned the right bytes."""
    readers, skipped = contenders()
    expected = content(readers["ours, CRC-32 verified"], parts)
    for name in list(readers):
        if (got := content(readers[name], parts)) != expected:
            skipped[name] = f"returned other bytes than were written: {got} instead of {expected}"
            del readers[name]
    passes = {mode: {name: Passes() for name in readers} for mode in MODES}
    order = list(readers)
    for mode in MODES:
        for repeat, part in product(range(repeats), parts):
            random.Random(f"{repeat}{part.name}").shuffle(order)
            ceiling = measure(None, part, mode)
            for name in order:
                rate = measure(readers[name], part, mode)
                before, ceiling = ceiling, measure(None, part, mode)
                passes[mode][name].rates.append(rate)
                passes[mode][name].shares.append(rate / ((before + ceiling) / 2))
    results = {name: {mode: passes[mode][name].summary() for mode in MODES} for name in readers}
    return {"results": results, "skipped": skipped}


def random_access_ms(parts: list[Path], num_reads: int = 400) -> tuple[float, float]:
    """(median, 99th percentile) milliseconds to read one sample anywhere, warm, unverified."""
    readers = [
        SampleReader(ShardIndex.open(part / "index.arrow"), LocalShards(part / "tar"), verify=False) for part in parts
    ]
    for part in parts:
        read_raw(part)
    rng = random.Random(3)
    times = []
    for _ in range(num_reads):
        reader = rng.choice(readers)
        row = rng.randrange(len(reader.index))
        began = time.perf_counter()
        reader.read(row)
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.percentile(times, 50)), float(np.percentile(times, 99))


def print_table(report: dict[str, Any]) -> None:
    """The result as a Markdown table."""
    print("| reader | warm, share per CPU-s | warm MB per CPU-s (min-max) | cold, share | cold MB/s (min-max) |")
    print("|---|---|---|---|---|")
    for name, row in report["results"].items():
        cells = []
        for mode in MODES:
            interval, (median, least, most) = row[mode]["interval"], row[mode]["mb_per_s"]
            width = "" if interval is None else " [{:.2f}-{:.2f}]".format(*interval)
            doubt = " unsure" if interval is None or interval[1] - interval[0] > MAX_INTERVAL else ""
            cells.append(f"{row[mode]['share']:.2f}{width}{doubt} | {median} ({least}-{most})")
        print(f"| {name} | {' | '.join(cells)} |")
    for name, reason in report["skipped"].items():
        print(f"| {name} | skipped: {reason} | | | |")
    print("random access: {:.3f} ms median, {:.3f} ms p99".format(*report["random_access_ms"]))


def main(arguments: list[str] | None = None) -> None:
    """Write the corpus, measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where to put the corpus (2.3 GB each format); default: a temp folder"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        parts = write_corpus(Path(scratch), options.samples)
        report = compare(parts, options.repeats)
        report["random_access_ms"] = random_access_ms(parts)
    about = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "samples": options.samples}
    options.json.write_text(json.dumps({**about, **report}, indent=1))
    print_table(report)


if __name__ == "__main__":
    main()
