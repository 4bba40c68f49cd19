"""A run on an object store that refuses requests, cuts bodies and loses answers is the run on disk; no two write it at once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.ask.queries import Run
from pipeline.ask.stats import stats
from pipeline.ask.status import status
from pipeline.ask.verify import problems
from pipeline.config import parse_recipe
from pipeline.demo import ball_clip
from pipeline.ledger import Ledger, unit_tables
from pipeline.ledger_writer import LedgerWriter
from pipeline.plan import make_plan
from pipeline.show.plain import stats_plain
from pipeline.store import RunDir
from schemas.errors import LedgerError, MachineError
from schemas.records import Level
from stages.retry import RetryPolicy
from tests.pipeline.flaky_store import BUCKET, CUT, LOST, REFUSED, Faults, FlakyStore, flaky_store
from tests.pipeline.light_run import curate
from tests.pipeline.toy_run import advance
from tests.pipeline.toy_run import toy_source as unit

BY_THE_WAY = {"cost", "download.attempts"}
"""Columns that tell how a run went, not what it found."""
OF_COST = ("cost", "overhead", "cpu_s", "invocations")
"""The same of answers."""


@pytest.fixture(scope="module")
def server() -> Iterator[FlakyStore]:
    with flaky_store() as found:
        yield found


@pytest.fixture
def store(server: FlakyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyStore]:
    """An empty bucket that is found by the environment alone."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("stages.objects.STORE", RetryPolicy(6, 0.01))
    server.choose(Faults())
    fs = fsspec.filesystem("s3")
    fs.clear_instance_cache()
    if fs.exists(BUCKET):
        fs.rm(BUCKET, recursive=True)
    fs.mkdir(BUCKET)
    yield server
    fs.clear_instance_cache()


def artefacts(run: RunDir) -> dict[str, str]:
    """Name -> SHA-256 of everything in `shards`, `index` and `cuts`."""
    return {
        f"{folder}/{name}": hashlib.sha256(run.read(f"{folder}/{name}")).hexdigest()
        for folder in ("shards", "index", "cuts")
        for name in run.entries(folder)
    }


def rows(run: RunDir) -> list[dict[str, Any]]:
    """All rows of its ledger, with the paths of assets as seen from the run."""
    found = [row for level in Level for row in Ledger(run.url("ledger")).rows(level)]
    for row in found:
        row["download.path"] = row["download.path"] and row["download.path"].removeprefix(run.uri)
    return [{name: value for name, value in row.items() if name not in BY_THE_WAY} for row in found]


def answers(run: RunDir) -> dict[str, Any]:
    """What `stats` says of it but for its name and what it cost."""
    return {name: value for name, value in stats_plain(stats(Run(run.uri))).items() if name not in ("run", *OF_COST)}


@pytest.mark.slow
def test_a_run_on_a_store_that_fails_is_the_run_on_disk(store: FlakyStore, tmp_path: Path) -> None:
    for seed in range(2):
        ball_clip(tmp_path / "film.mp4", duration_s=3.0, seed=seed)
        fsspec.filesystem("s3").put_file(str(tmp_path / "film.mp4"), f"{BUCKET}/raw/{seed}.mp4")
    curate(f"s3://{BUCKET}/raw", tmp_path / "run")
    disk, there = RunDir(tmp_path / "run"), RunDir(f"s3://{BUCKET}/run")

    store.choose(Faults(seed=3, share=0.1))
    curate(f"s3://{BUCKET}/raw", there.uri)
    again = curate(f"s3://{BUCKET}/raw", there.uri)
    assert list(problems(Run(there.uri), is_deep=True)) == []
    assert answers(there) == answers(disk)
    assert status(Run(there.uri)).packed == status(Run(disk.uri)).packed is not None
    found = rows(there), artefacts(there)
    seen = store.choose(Faults())

    assert set(seen.faults) == {REFUSED, CUT, LOST}, "all kinds of faults happened"
    assert seen.strangers == [], "everybody takes the credentials of the environment"
    assert seen.blind_commits == []
    assert found == (rows(disk), artefacts(disk))
    assert again.num_done_before == 2
    assert (rows(there), artefacts(there)) == found


class TestLedger:
    @pytest.fixture
    def made(self, toy_recipe: dict[str, Any]) -> Any:
        """The plan, and how to make the (id, tables) of a unit."""
        plan = make_plan(parse_recipe(toy_recipe))

        def make(name: str) -> tuple[str, Any]:
            done = advance(toy_recipe, unit(name))
            return done.source.source_id, unit_tables(plan, done, plan.identity(0))

        return plan, make

    @pytest.mark.slow
    def test_of_two_writers_at_once_one_commits(self, store: FlakyStore, made: Any) -> None:
        plan, make = made
        uri = f"s3://{BUCKET}/ledger"
        LedgerWriter(uri, plan)
        for number in range(3):
            writers = [LedgerWriter(uri, plan) for _ in range(2)]
            for at, writer in enumerate(writers):
                writer.add(*make(f"{number} {at}"), is_there=False)
            start, refused = threading.Barrier(2), list[str]()

            def flush(writer: LedgerWriter, start: Any = start, refused: Any = refused) -> None:
                start.wait()
                try:
                    writer.flush()
                except LedgerError as error:
                    refused.append(error.message)

            threads = [threading.Thread(target=flush, args=[writer]) for writer in writers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert refused == [f"another run has begun to write to {uri}."]
            assert len(Ledger(uri).passed()) == number + 1
        assert store.seen().blind_commits == []

    @pytest.mark.slow
    @pytest.mark.parametrize("loses", [r"PUT .*_delta_log/.*json", r"(PUT|GET|HEAD) .*"])
    def test_lost_answers_are_recognised(self, store: FlakyStore, made: Any, loses: str) -> None:
        plan, make = made
        uri = f"s3://{BUCKET}/ledger"
        store.choose(Faults(loses=loses))
        with LedgerWriter(uri, plan) as writer:
            for name in "ab":
                writer.add(*make(name), is_there=False)
                assert writer.flush()
            writer.add(*make("a"), is_there=True)
            assert writer.flush()
            assert writer.compact(most_files=1)
        assert store.choose(Faults()).faults[LOST] >= 5, "of the table, three commits and joining its files"
        ids = Ledger(uri).passed()["source_id"]
        assert sorted(ids) == sorted(make(name)[0] for name in "ab"), "each once"


class TestRunDir:
    def test_what_others_write_is_seen_at_once(self, store: FlakyStore) -> None:
        run = RunDir(f"s3://{BUCKET}/run")
        run.write("index/a", b"1")
        assert run.names("index") == ["a"]
        assert not run.exists("index/b")
        fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(f"{BUCKET}/run/index/b", b"22")
        assert run.names("index") == ["a", "b"]
        assert run.entry("index/b").num_bytes == 2
        run.remove("index/b")
        run.remove("index/b")
        assert list(run.entries("index")) == ["a"]

    def test_what_cannot_be_is_told_at_once(
        self, store: FlakyStore, tmp_path: Path, toy_recipe: dict[str, Any]
    ) -> None:
        plan = make_plan(parse_recipe(toy_recipe))
        (tmp_path / "shard").touch()
        with pytest.raises(MachineError, match=r"s3://nowhere/run/a cannot be written.*Make the bucket"):
            RunDir("s3://nowhere/run").publish(tmp_path / "shard", "a")
        with pytest.raises(LedgerError, match=r"s3://nowhere/ledger could not be written.*NoSuchBucket"):
            LedgerWriter("s3://nowhere/ledger", plan)
        store.choose(Faults(denies=r".* /bucket.*"))
        with pytest.raises(
            MachineError, match=r"does not let it in: s3://bucket/run/recipe.yaml: Forbidden. Give cred"
        ):
            Run(f"s3://{BUCKET}/run")
        with pytest.raises(LedgerError, match=r"s3://bucket/ledger could not be written.*AccessDenied") as caught:
            LedgerWriter(f"s3://{BUCKET}/ledger", plan)
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
        assert store.seen().num_requests <= 4

    def test_a_store_that_is_away_ends_with_its_name_and_a_remedy(
        self, store: FlakyStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr("stages.objects.STORE", RetryPolicy(2, 0.01))
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(MachineError, match=r"does not answer: s3://bucket/run/a.*the same command goes on"):
            RunDir(f"s3://{BUCKET}/run").write("a", b"")
