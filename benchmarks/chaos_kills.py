"""Runs that are killed at random instants and begun again, beside one that nobody disturbs.

Every command is a real one: small generated media, real stages, cut and packing. Three things are other ones. Words and speakers,
which these media have not, are not looked for (`benchmarks.chaos_stages`): loading those networks would be half of every run.
And so that there is more to hit, every unit is a commit of its own, and a ledger of more than two files is compacted
whenever it is opened.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.chaos_watch import MARK, Seen, Watch, folders_left, segments, segments_left
from pipeline.demo import Encoding, ball_clip, cuts_clip
from pipeline.ledger import Ledger
from schemas.errors import NavaError
from schemas.records import Level

RECIPE = {
    "name": "chaos",
    "audit_fraction": 0.0,
    "stages": {
        "download": {},
        "probe": {},
        "shot_split": {"engine": "content"},
        "transcribe": {},
        "diarize": {},
        "clip": {},
        "picture": {},
        "audio": {},
        "duplicates": {},
        "cut": {},
    },
    "gates": {
        "probe": {"has_video": {"equals": True}},
        "picture": {"brightness": {"min": 0}},
        "duplicates": {"is_representative": {"equals": True}},
    },
    "pack": {"target_shard_mb": 0.3},
}
"""Two passes, no lips and no words: what is asked here is asked of the machinery."""
STAND_INS = """
import stages
stages.CATALOG |= {"transcribe": "benchmarks.chaos_stages:NoWords", "diarize": "benchmarks.chaos_stages:Nobody"}
"""
"""Carried out by every Python process of a run when it starts, those that Ray starts included."""
NUM_BALLS = 5
SMALL = Encoding(160, 120)
HALF = 5
"""Sources of the run that is there already when a compaction is killed."""
MOST_FILES = 2
PROCESSES: dict[str, Callable[[str], bool]] = {
    "worker": lambda command: command.startswith("ray::GroupWorker"),
    "decoder": lambda command: "stages.media.child" in command,
    "raylet": lambda command: command.split(" ")[0].endswith("/raylet"),
    "gcs": lambda command: command.split(" ")[0].endswith("/gcs_server"),
    "packer": lambda command: command.startswith("ray::_pack_remote"),
    "monitor": lambda command: command.startswith("ray::Monitor"),
}
"""Kind -> whether a process of a run is of it, by its command line."""
MOMENTS = ("commit", "compaction")
"""What the driver does and is killed in the middle of."""
HERE = ("here", *MOMENTS)
"""Kinds that are killed in a run without Ray: the one process there is, at any instant or in the middle of something."""
KINDS = ("driver", "here", "worker", "commit", "raylet", "decoder", "compaction", "gcs", "packer", "monitor")
LAUNCH = "from benchmarks.chaos_kills import launch; launch()"
MOST_COMMANDS = 4
"""The one that is killed and three more."""
MOST_S = 300.0
"""A command that takes longer than this hangs: undisturbed it needs a tenth of it."""
LOOKED_EVERY_S = 0.05
RAY_LINE = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+ [A-Z] \d+ \d+\] ")
SAID_CHARS = 1500
"""End of what a command said that is kept, where it was not what it should say."""


def launch() -> None:
    """`nava-curate`, with a file in the folder of the first argument while a commit or a compaction goes on."""
    from pipeline import ledger_writer
    from pipeline.cli import main

    marks, writer = Path(sys.argv.pop(1)), ledger_writer.LedgerWriter
    compact = functools.partialmethod(writer.compact, most_files=MOST_FILES)
    ledger_writer.FLUSH_UNITS = 1
    for name, moment, what in (("commit", "_write", writer._write), ("compaction", "compact", compact)):
        setattr(writer, moment, _marked(what, marks / name))
    main()


def _marked(what: Any, mark: Path) -> Callable[..., Any]:
    def marking(self: Any, *arguments: Any) -> Any:
        called = what.__get__(self)
        mark.touch()
        began = time.monotonic()
        answer = called(*arguments)
        mark.unlink()
        mark.with_suffix(".s").write_text(str(time.monotonic() - began))
        return answer

    return marking


@dataclass(frozen=True)
class Facts:
    """What of a finished run has to be the same however often it was killed."""

    rows: dict[str, list[dict[str, Any]]]
    """Kind -> its ledger rows, what they cost left out."""
    files: dict[str, str]
    """Name -> SHA-256 of everything in shards, index and cuts."""

    @classmethod
    def of(cls, out: Path) -> Facts:
        """The facts of the run in `out`."""
        ledger = Ledger(str(out / "ledger"))
        rows = {
            str(level): [{key: value for key, value in row.items() if key != "cost"} for row in ledger.rows(level)]
            for level in Level
        }
        files = {
            path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in ("shards", "index", "cuts")
            for path in sorted((out / folder).rglob("*"))
            if path.is_file()
        }
        return cls(rows, files)

    def differences_in(self, out: Path) -> list[str]:
        """Names of files, and of rows with their columns, that are others in the run in `out` or that only one side has."""
        try:
            other = Facts.of(out)
        except NavaError as error:
            return [str(error)]
        names = self.files.keys() | other.files.keys()
        found = [name for name in sorted(names) if self.files.get(name) != other.files.get(name)]
        for kind in self.rows:
            mine, its = ({(row["source_id"], row["row_id"]): row for row in each.rows[kind]} for each in (self, other))
            if len(self.rows[kind]) != len(other.rows[kind]):
                found.append(f"{kind}: {len(other.rows[kind])} rows, expected {len(self.rows[kind])}")
            for key in sorted(mine.keys() | its.keys()):
                a, b = mine.get(key, {}), its.get(key, {})
                columns = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
                if columns:
                    found.append(f"{kind} {key[1]}: {', '.join(columns[:4])} ({b.get('verdict.message')})")
        return found


@dataclass
class Trial:
    """One kill and what came of it."""

    kind: str
    at_s: float
    """Seconds from the command's start to the kill."""
    endings: list[int] = field(default_factory=list)
    """Exit codes of the commands it took, the one that was hit first."""
    differences: list[str] = field(default_factory=list)
    """Rows and files that are not as in the undisturbed run; empty where all is equal."""
    unclear: list[str] = field(default_factory=list)
    """What commands said that was neither one sentence of an error nor the balance of a run."""
    num_ray_lines: int = 0
    """Lines that Ray's own libraries wrote to the user's screen."""
    processes: list[str] = field(default_factory=list)
    segments: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    """What was left when the last command had ended: processes, shared memory, temporary folders."""
    lost_s: float = 0.0
    """Seconds all commands took, less what an undisturbed run takes."""


@dataclass
class Undisturbed:
    """The run that nobody disturbs."""

    took_s: float
    facts: Facts
    seen_s: dict[str, float]
    """Kind -> seconds between the first and the last look at which there was a process of it to kill."""
    moment_s: dict[str, float]
    """How long the last commit and the last compaction took."""


class Campaign:
    """Trials in one folder, which has to be empty and of a short name: Ray puts sockets below it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self._random = folder, random.Random(seed)
        self._serial = 0
        media = folder / "media"
        media.mkdir()
        for number in range(NUM_BALLS):
            ball_clip(media / f"{number}.mp4", duration_s=2.5, encoding=SMALL, seed=number)
        cuts_clip(media / "cuts.mp4", num_shots=4, shot_frames=(55, 70), encoding=SMALL)
        shutil.copyfile(media / "0.mp4", media / "again.mp4")
        (media / "broken.mp4").write_text("not a video")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
        (folder / "sitecustomize.py").write_text(STAND_INS)
        half = Command(folder, folder / "half", "--limit", str(HALF), is_here=True)
        half.wait(MOST_S)
        self._half = half.out
        self.undisturbed: dict[str, Undisturbed] = {}
        """What a trial would be if nobody were killed: `ray`, `here`, and `half` where half the sources are there before."""

    def of(self, kind: str) -> Undisturbed:
        """The undisturbed run that trials of this kind are held against; made at first."""
        name = "half" if kind == "compaction" else "here" if kind in HERE else "ray"
        if name not in self.undisturbed:
            begun = self._half if name == "half" else None
            self.undisturbed[name] = self._undisturbed(begun, is_here=name != "ray")
        return self.undisturbed[name]

    def trial(self, kind: str) -> Trial | None:
        """Kills one process of this kind and runs the same command to its end; None if the command was quicker."""
        expected = self.of(kind)
        command = self._command(self._half if kind == "compaction" else None, is_here=kind in HERE)
        try:
            return self._tried(command, kind, expected)
        finally:
            command.clean()

    def _tried(self, command: Command, kind: str, expected: Undisturbed) -> Trial | None:
        before, began = segments(), time.monotonic()
        at_s = self._kill(command, kind, expected)
        if at_s is None:
            command.wait(MOST_S)
            return None
        is_inside = kind not in MOMENTS or (command.marks / kind).exists()
        done = Trial(kind if is_inside else "here", at_s)
        while True:
            code = command.wait(MOST_S)
            is_killed = not done.endings and kind in ("driver", *HERE)
            done.endings.append(code)
            said, num_ray_lines = command.said()
            done.num_ray_lines += num_ray_lines
            if not command.is_clear(is_killed=is_killed):
                done.unclear.append(said[-SAID_CHARS:])
            if code == 0 or len(done.endings) == MOST_COMMANDS:
                break
            command = command.again()
        done.lost_s = time.monotonic() - began - expected.took_s
        done.differences = expected.facts.differences_in(command.out) if code == 0 else ["never ended well"]
        done.processes = [each.command[:80] for each in command.watch.outlived()]
        done.segments, done.folders = segments_left(before), folders_left(command.temporary)
        return done

    def _undisturbed(self, begun: Path | None, *, is_here: bool) -> Undisturbed:
        began = time.monotonic()
        command = self._command(begun, is_here=is_here)
        first: dict[str, float] = {}
        last: dict[str, float] = {}
        while command.code() is None:
            now, seen = time.monotonic() - began, command.watch.seen()
            for kind in KINDS:
                if command.victims(kind, seen):
                    first.setdefault(kind, now)
                    last[kind] = now
            time.sleep(LOOKED_EVERY_S)
        took_s = time.monotonic() - began
        if command.code() != 0 or not command.is_clear(is_killed=False):
            raise RuntimeError(f"the undisturbed run failed: {command.said()[0]}")
        seen_s = {kind: last[kind] - first[kind] for kind in first}
        moment_s = {kind: float((command.marks / f"{kind}.s").read_text()) for kind in MOMENTS}
        facts = Facts.of(command.out)
        command.clean()
        return Undisturbed(took_s, facts, seen_s, moment_s)

    def _command(self, begun: Path | None, *, is_here: bool) -> Command:
        """The command on a new run, or on a copy of one that is there."""
        self._serial += 1
        out = self.folder / str(self._serial)
        if begun is not None:
            shutil.copytree(begun, out)
        return Command(self.folder, out, is_here=is_here)

    def _kill(self, command: Command, kind: str, expected: Undisturbed) -> float | None:
        """Kills at an instant drawn from the time in which the kind is there; when, or None if the command ended before."""
        began, due = time.monotonic(), None
        after_s = self._random.uniform(0, expected.seen_s.get(kind, 0.0))
        within_s = self._random.uniform(0, expected.moment_s.get(kind, 0.0))
        while command.code() is None:
            victims = command.victims(kind, command.watch.seen() if kind in PROCESSES else ())
            if victims:
                due = due or time.monotonic() + after_s
                if time.monotonic() >= due:
                    time.sleep(within_s)
                    try:
                        os.kill(self._random.choice(victims), signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    return time.monotonic() - began
            time.sleep(0.002 if kind in MOMENTS else LOOKED_EVERY_S)
        return None


class Command:
    """One `nava-curate run` into `out`, started as a user starts it, in a session and with a temporary folder of its own."""

    def __init__(self, folder: Path, out: Path, *options: str, is_here: bool, sessions: tuple[int, ...] = ()) -> None:
        self._folder, self.out, self._is_here = folder, out, is_here
        self.temporary, self.marks = (folder / f"{out.name}{suffix}" for suffix in ("t", "m"))
        shutil.rmtree(self.marks, ignore_errors=True)
        self.temporary.mkdir(exist_ok=True)
        self.marks.mkdir()
        self._screen = self.marks / "screen"
        words = ["run", str(folder / "recipe.yaml"), "--input", str(folder / "media"), "--out", str(out)]
        words += ["--quiet", *(["--here"] if is_here else ["--cpus", "2"]), *options]
        env = {"TMPDIR": str(self.temporary), MARK: str(out), "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
        with self._screen.open("wb") as screen, (self.marks / "balance").open("wb") as balance:
            self._process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(self.marks), *words],
                stdout=balance, stderr=screen, stdin=subprocess.DEVNULL, start_new_session=True,
                env=os.environ | env,
            )  # fmt: skip
        self.watch = Watch((*sessions, self._process.pid), str(out))

    def again(self) -> Command:
        """The same command once more; what is left of this one is still watched."""
        return Command(self._folder, self.out, is_here=self._is_here, sessions=self.watch.sessions)

    def code(self) -> int | None:
        """Exit code; None while it runs."""
        return self._process.poll()

    def victims(self, kind: str, seen: Iterable[Seen]) -> list[int]:
        """Processes that are of this kind now, of all those seen."""
        if kind in MOMENTS:
            return [self._process.pid] if (self.marks / kind).exists() else []
        if kind in ("driver", "here"):
            return [self._process.pid]
        return [each.pid for each in seen if PROCESSES[kind](each.command)]

    def wait(self, most_s: float) -> int:
        """Exit code, once it ends; a command that hangs is killed, and what it said ends in saying so."""
        try:
            return self._process.wait(most_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with self._screen.open("a") as screen:
                screen.write(f"\nhung: was killed after {most_s:g} s")
            return self._process.wait()

    def said(self) -> tuple[str, int]:
        """(what it said beside its result, how many more lines were Ray's)."""
        lines = self._screen.read_text(errors="replace").strip().splitlines()
        own = [line for line in lines if not RAY_LINE.match(line)]
        return "\n".join(own), len(lines) - len(own)

    def is_clear(self, *, is_killed: bool) -> bool:
        """Whether it said nothing where it ended well or was killed itself, and else one sentence about an error."""
        lines = self.said()[0].splitlines()
        if is_killed or self._process.returncode == 0:
            return not lines
        return len(lines) == 1 and lines[0].startswith("error: ")

    def clean(self) -> None:
        """Ends what is left of it, and removes what it wrote."""
        for each in self.watch.seen():
            try:
                os.kill(each.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for folder in (self.out, self.temporary, self.marks):
            shutil.rmtree(folder, ignore_errors=True)


def dumped(trial: Trial) -> dict[str, Any]:
    """A trial as plain data."""
    plain: dict[str, Any] = json.loads(json.dumps(vars(trial)))
    return plain
