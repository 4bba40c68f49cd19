"""What a run costs beside its stages: CPU seconds of every process of each invocation, kept in the run's folder.

    spent/{began}-{id}.json   one invocation of `run`: written anew every minute and at its end, whole or not at all

A process that is killed leaves what was last written. Nobody but `stats` reads these files; deleting them changes no row.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import Any, Protocol, Self

from pipeline.execute.processes import age_s, cpu_s
from pipeline.store import RunDir
from schemas.errors import NavaError

SPENT = "spent"
WRITTEN_EVERY_S = 60.0
"""What a killed invocation leaves untold at most."""


@dataclass(frozen=True)
class Bill:
    """CPU seconds of one invocation so far, by who spent them; they add up to all there were."""

    stages: dict[str, float] = field(default_factory=dict)
    """Stage -> in the workers, while it measured. Also what was lost since, or measured again."""
    workers: float = 0.0
    """Of the workers beside their stages: start of the process, models, passing on."""
    packing: float = 0.0
    driver: float = 0.0
    """The process of the command itself."""
    ray: float | None = None
    """Ray's own processes, the monitor and idle workers; None without Ray, and on a cluster that was there before."""
    started_at: float | None = None
    """Unix time at which the first worker was there; None if none was."""
    started_cpu_s: float = 0.0
    """CPU seconds of all processes until then."""

    @property
    def total(self) -> float:
        """CPU seconds of all processes."""
        return sum(self.stages.values()) + self.workers + self.packing + self.driver + (self.ray or 0.0)


@dataclass(frozen=True)
class Invocation:
    """One call of `run`."""

    began: float
    """Unix time."""
    wall_s: float
    cores: float
    """CPUs that it could use."""
    is_whole: bool
    """Whether it went through to the end."""
    cpu: Bill

    @property
    def utilisation(self) -> float:
        """Share of the cores' time that was used."""
        return self.cpu.total / max(self.wall_s * self.cores, 1e-9)

    @property
    def utilisation_started(self) -> float | None:
        """The same from when the first worker was there; None if none was."""
        if self.cpu.started_at is None:
            return None
        wall_s = max(self.began + self.wall_s - self.cpu.started_at, 1e-9)
        return (self.cpu.total - self.cpu.started_cpu_s) / (wall_s * self.cores)

    @classmethod
    def of(cls, told: dict[str, Any]) -> Self:
        """The invocation in one of the files; keys that another version wrote are passed over."""
        cpu = Bill(**{each.name: told["cpu"][each.name] for each in fields(Bill) if each.name in told["cpu"]})
        return cls(**{each.name: told[each.name] for each in fields(cls) if each.name != "cpu"}, cpu=cpu)


class Spender(Protocol):
    """Whoever carries a run out."""

    def cores(self) -> float:
        """CPUs that it can use."""
        ...

    def spent(self) -> Bill:
        """CPU seconds so far, those of this process from its start."""
        ...


class Book:
    """Keeps the record of one invocation, which begins now, or, if it `is_process`, with this process."""

    def __init__(self, directory: RunDir, *, is_process: bool = False) -> None:
        self._directory = directory
        self._before_s, self._began = (0.0, time.time() - age_s()) if is_process else (cpu_s(), time.time())
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._began))
        self._name = f"{SPENT}/{stamp}-{uuid.uuid4().hex[:8]}.json"
        self._written = time.monotonic()

    @contextmanager
    def of(self, spender: Spender) -> Iterator[Callable[[], None]]:
        """While the body runs, what it is given writes what is spent, if it is time; at its end that is written anyway.

        What cannot be written on the way, or after the body has failed, is not.
        """

        def note() -> None:
            if time.monotonic() - self._written > WRITTEN_EVERY_S:
                with suppress(NavaError, OSError):
                    self._write(spender, is_whole=False)

        is_whole = False
        try:
            yield note
            is_whole = True
        finally:
            with suppress(*(() if is_whole else (NavaError, OSError))):
                self._write(spender, is_whole=is_whole)

    def _write(self, spender: Spender, *, is_whole: bool) -> None:
        cpu = spender.spent()
        driver, started_cpu_s = (max(0.0, each - self._before_s) for each in (cpu.driver, cpu.started_cpu_s))
        cpu = replace(cpu, driver=driver, started_cpu_s=started_cpu_s)
        told = Invocation(self._began, time.time() - self._began, spender.cores(), is_whole, cpu)
        self._directory.write(self._name, json.dumps(asdict(told), indent=1).encode())
        self._written = time.monotonic()


def invocations(directory: RunDir) -> list[Invocation]:
    """What was recorded of a run, in the order in which it began; files that are none of ours are passed over."""
    names = sorted(name for name in directory.names(SPENT) if PurePosixPath(name).suffix == ".json")
    found = []
    for name in names:
        with suppress(ValueError, KeyError, TypeError):
            found.append(Invocation.of(json.loads(directory.read(f"{SPENT}/{name}"))))
    return sorted(found, key=lambda each: each.began)
