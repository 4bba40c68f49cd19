"""CPU seconds of processes as the kernel counts them, children included; without /proc those of children that ended."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process as it is at one look."""

    pid: int
    parent: int
    began: int
    """Clock ticks after the start of the machine: with the pid its identity."""
    own_s: float
    """CPU seconds of itself."""
    ended_s: float
    """CPU seconds of children that it has waited for, and of theirs."""


@dataclass(frozen=True)
class Account:
    """What a process on some host has spent so far, its children included."""

    host: str
    pid: int
    cpu_s: float

    @classmethod
    def own(cls) -> Self:
        """Of this process."""
        return cls(socket.gethostname(), os.getpid(), cpu_s())


def own_cpu_s() -> float:
    """CPU seconds of this process alone so far."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def cpu_s() -> float:
    """CPU seconds of this process and all its children so far, of those that live and of those it has waited for."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = sum(each.own_s + each.ended_s for each in below(os.getpid()))
    return own_cpu_s() + ended.ru_utime + ended.ru_stime + living


def age_s() -> float:
    """Wall seconds since this process was started; 0 where the system does not say."""
    own = _look(os.getpid())
    return 0.0 if own is None else time.clock_gettime(time.CLOCK_BOOTTIME) - own.began / os.sysconf("SC_CLK_TCK")


def below(pid: int) -> Iterator[Process]:
    """The living descendants of a process, nearest first."""
    waiting = _children(pid)
    while waiting:
        found = _look(waiting.pop(0))
        if found is not None:
            yield found
            waiting += _children(found.pid)


def end(processes: Iterable[Process]) -> None:
    """Kills each of them that is still there; another one that was given its pid is left alone."""
    for each in processes:
        now = _look(each.pid)
        if now is not None and now.began == each.began:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(each.pid, signal.SIGKILL)


def fallen(pid: int) -> dict[int, str]:
    """Children of a process that have ended and that it has not waited for: pid -> name of the program, 15 characters at most."""
    told = {child: _read(f"{child}/stat") for child in _children(pid)}
    ends = {child: stat.rpartition(b")") for child, stat in told.items()}
    return {child: name.partition(b"(")[2].decode() for child, (name, _, rest) in ends.items() if rest[:3] == b" Z "}


def _children(pid: int) -> list[int]:
    try:
        tasks = os.listdir(PROC / f"{pid}/task")
    except OSError:
        return []
    return [int(child) for task in tasks for child in _read(f"{pid}/task/{task}/children").split()]


def _look(pid: int) -> Process | None:
    """None where it has ended."""
    told = _read(f"{pid}/stat").rpartition(b")")[2].split()
    if not told:
        return None
    own, ended = sum(map(int, told[11:13])), sum(map(int, told[13:15]))
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    return Process(pid, int(told[1]), int(told[19]), own / ticks_per_s, ended / ticks_per_s)


def _read(name: str) -> bytes:
    try:
        return (PROC / name).read_bytes()
    except OSError:
        return b""


def command(pid: int) -> str:
    """The arguments of a process, or the title it gave itself; empty once it has ended."""
    return _read(f"{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


class Family:
    """The descendants of a process, each as it was at the last look: what those spent that nobody waited for is not forgotten.

    Look often: what such a process does between the last look and its end is lost.
    """

    def __init__(self, pid: int | None = None) -> None:
        self.pid = pid or os.getpid()
        self._seen: dict[tuple[int, int], Process] = {}
        self._living: set[tuple[int, int]] = set()

    def look(self) -> None:
        """Sees what lives now; a millisecond for some ten processes."""
        found = {(each.pid, each.began): each for each in below(self.pid)}
        self._seen |= found
        self._living = set(found)

    def ended(self, pid: int, cpu_s: float) -> None:
        """A child was waited for: all that it and those it has waited for have spent, as the kernel then says."""
        known = [each for each in self._seen.values() if each.pid == pid]
        last = known[-1] if known else Process(pid, self.pid, 0, cpu_s, 0.0)
        self._seen[pid, last.began] = replace(last, ended_s=max(last.ended_s, cpu_s - last.own_s))
        self._living.discard((pid, last.began))

    def cpu_s(self, without: Iterable[int] = ()) -> float:
        """CPU seconds of all that were seen and of what they waited for; `without` and what descends from those left out."""
        parents, left_out = {each.pid: each.parent for each in self._seen.values()}, set(without)

        def is_counted(pid: int) -> bool:
            while pid in parents and pid not in left_out:
                pid = parents[pid]
            return pid not in left_out

        counted = {key: each for key, each in self._seen.items() if is_counted(each.pid)}
        waited_for: dict[int, float] = defaultdict(float)
        for key, each in counted.items():
            if key not in self._living:
                waited_for[each.parent] += each.own_s + each.ended_s
        unseen = (max(0.0, each.ended_s - waited_for[each.pid]) for each in counted.values())
        return sum(each.own_s for each in counted.values()) + sum(unseen)
