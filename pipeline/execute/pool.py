"""The workers of a pass: as many of every group as the cluster holds and the work can use, looked at again and again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.execute.cluster import alive_nodes
from pipeline.execute.lease import Lease
from pipeline.execute.ray_worker import GroupWorker, News, Place
from pipeline.plan import Plan, WorkerGroup
from pipeline.store import RunDir
from pipeline.unit import Part, unit_key
from schemas.errors import NavaError, PlanError
from schemas.records import Source

LOOKED_EVERY_S = 30.0
"""How soon new nodes are used."""
SHORT_LOOKED_EVERY_S = 1.0
"""The same while a group has no worker at all."""
MOST_SHORT_S = 120.0
"""How long a run waits, after nodes were lost, for room for one worker of every group."""
MOST_FAILED_STARTS = 3
CLOSING_S = 5.0


@dataclass(eq=False)
class LeasedUnit:
    """A unit that waits for, or is in the hands of, a worker of one group."""

    source: Source
    part: Part | None = None
    hop: Any = None
    """Reference to the unit as the group before left it; None for a whole one in front of the first group."""
    is_suspect: bool = False
    """Whether a worker died that had it in hand."""

    @property
    def key(self) -> str:
        """The unit's."""
        return unit_key(self.source.source_id, self.part)


@dataclass(eq=False)
class Given:
    """A lease in a worker's hands: its one task in flight."""

    serial: int
    group: int
    stream: Any
    """Ray's generator of references to what the worker yields."""
    items: dict[str, LeasedUnit]
    """Key -> what is not yet back, in the order of the work."""
    num_units: int
    """Units it began with."""
    since: float = field(default_factory=time.monotonic)
    news: News | None = None
    """What the worker will yield next, if it said so."""
    parts: list[LeasedUnit] = field(default_factory=list)
    """Parts of a unit that is being divided, as far as they are here."""
    recall: Any = None
    """Reference to the answer, once the worker was asked to give back what it has not begun."""
    is_recalled: bool = False


@dataclass(eq=False)
class Member:
    """A worker process."""

    group: int
    name: str
    handle: Any
    hello: Any
    """Reference to the id of its node; None once that is known."""
    node: str | None = None
    given: Given | None = None
    source_id: str | None = None
    """The last source it had in hand, whose parts it goes on with."""
    num_leases: int = 0
    s_per_unit: float | None = None
    """By its own rate, the first lease left out: that one loads models."""

    @property
    def is_idle(self) -> bool:
        """Whether it runs and has nothing to do."""
        return self.hello is None and self.given is None


class Pool:
    """The workers of pass `lease.number`. `close` ends them."""

    def __init__(self, ray: Any, plan: Plan, lease: Lease, directory: RunDir, monitor: Any) -> None:
        self._ray, self._number, self._monitor = ray, lease.number, monitor
        self._plan, self._directory = ray.put(plan), directory
        self.groups: Sequence[WorkerGroup] = plan.passes[lease.number].groups or (WorkerGroup(()),)
        self.members: list[Member] = []
        self._started = self._failed_starts = 0
        self._looked = self._short_since = -float("inf")

    def of(self, group: int) -> list[Member]:
        """The workers of one group."""
        return [member for member in self.members if member.group == group]

    def look(self, waiting: Sequence[int]) -> None:
        """Starts what fits, if it is time; `waiting` says how many units each group has before it.

        Raises PlanError where one worker of a group fits nowhere.
        """
        is_short = any(not self.of(group) for group in range(len(self.groups)))
        if time.monotonic() - self._looked < (SHORT_LOOKED_EVERY_S if is_short else LOOKED_EVERY_S):
            return
        is_first, self._looked = self._looked < 0, time.monotonic()
        free = self._free()
        for group in range(len(self.groups)):
            if not self.of(group) and not self._start(group, free):
                self._make_room(group, free)
                self._wait_for_room(group, is_first)
        wanted = sorted(range(len(self.groups)), key=lambda group: -self.groups[group].gpus)
        while started := [group for group in wanted if self._is_short(group, waiting) and self._start(group, free)]:
            wanted = [group for group in wanted if group in started]
        for group in range(len(self.groups)):
            if self._is_short(group, waiting) and waiting[group] > 2 * len(self.of(group)):
                self._make_room(group, free)

    def _is_short(self, group: int, waiting: Sequence[int]) -> bool:
        """Whether there is work for one worker more. All of it comes to a group on a GPU in the end."""
        ahead = sum(waiting[: group + 1]) if self.groups[group].gpus else waiting[group]
        return ahead > len(self.of(group))

    def _free(self) -> dict[str, dict[str, float]]:
        """Node -> what our workers leave of it; one that is still starting stands where it fits first."""
        free = alive_nodes(self._ray)
        for member in sorted(self.members, key=lambda member: member.node is None):
            node = member.node if member.node in free else self._node_for(member.group, free)
            if node is not None:
                self._take(member.group, free[node])
        return free

    def _needs(self, group: int) -> dict[str, float]:
        """Ray's name of a resource -> what a worker of a group takes of it."""
        needs = self.groups[group]
        return {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory_gb * 1e9}

    def _node_for(self, group: int, free: dict[str, dict[str, float]]) -> str | None:
        needs = self._needs(group)
        fits = (node for node, has in free.items() if all(has.get(name, 0.0) >= need for name, need in needs.items()))
        return next(fits, None)

    def _take(self, group: int, node: dict[str, float], sign: int = -1) -> None:
        for name, need in self._needs(group).items():
            node[name] = node.get(name, 0.0) + sign * need

    def _start(self, group: int, free: dict[str, dict[str, float]]) -> bool:
        """Starts one worker if it fits anywhere."""
        node = self._node_for(group, free)
        if node is None:
            return False
        self._take(group, free[node])
        self._short_since = -float("inf")
        needs, name = self.groups[group], f"{self.groups[group].name} {self._started}"
        self._started += 1
        actor = self._ray.remote(
            num_cpus=needs.cpus, num_gpus=needs.gpus, memory=int(needs.memory_gb * 1e9), max_restarts=0,
            concurrency_groups={"aside": 1},
        )(GroupWorker)  # fmt: skip
        handle = actor.remote(self._plan, Place(self._number, group, name), self._directory.uri, self._monitor)
        self.members.append(Member(group, name, handle, handle.hello.options(concurrency_group="aside").remote()))
        return True

    def _make_room(self, group: int, free: dict[str, dict[str, float]]) -> None:
        """Ends a worker of another group that has nothing to do, where `group` then fits instead."""
        for member in self.members:
            is_spare = member.is_idle and member.group != group and len(self.of(member.group)) > 1
            if is_spare and member.node in free:
                self._take(member.group, free[str(member.node)], 1)
                if self._node_for(group, free) is not None:
                    self.end(member)
                    self._start(group, free)
                    return
                self._take(member.group, free[str(member.node)])

    def _wait_for_room(self, group: int, is_first: bool) -> None:
        if self.of(group):
            return
        now, needs = time.monotonic(), self.groups[group]
        if self._short_since < 0:
            self._short_since = now
        if is_first or now - self._short_since > MOST_SHORT_S:
            have = "; ".join(
                f"{has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs, {has.get('memory', 0) / 1e9:.1f} GB"
                for has in alive_nodes(self._ray).values()
            )
            msg = (
                f"a worker for {needs.name} needs {needs.cpus:g} CPUs, {needs.gpus:g} GPUs and {needs.memory_gb:g} GB on "
                f"one node, beside one of every other group; the nodes have {have}."
            )
            names = ", ".join(f"resources.{spec.name}" for spec in needs.stages[:1])
            raise PlanError(msg, remedy=f"Lower {names or 'what other groups take'}, or add a larger node.")

    def greeted(self, member: Member, node: str) -> None:
        """The worker runs on `node`."""
        member.node, member.hello = node, None
        self._failed_starts = 0

    def lost(self, member: Member, error: Exception) -> None:
        """The worker is no more. Raises NavaError when workers keep ending before they begin."""
        self.members.remove(member)
        self._forget(member)
        self._looked = 0.0
        if member.hello is not None:
            self._failed_starts += 1
        if self._failed_starts >= MOST_FAILED_STARTS:
            said = str(error).strip().split("\n")[-1]
            msg = f"workers for {self.groups[member.group].name} end before they begin: {said}"
            raise NavaError(msg, remedy="Give every node the same code and packages (docs/cluster.md).")

    def end(self, member: Member) -> None:
        """Ends an idle worker."""
        self.members.remove(member)
        self._close([member])

    def close(self) -> None:
        """Ends all workers; those that are idle clean up after themselves."""
        members, self.members = self.members, []
        self._close(members)

    def _close(self, members: Sequence[Member]) -> None:
        closing = [
            member.handle.close.options(concurrency_group="aside").remote() for member in members if member.is_idle
        ]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSING_S)
        for member in members:
            self._forget(member)

    def _forget(self, member: Member) -> None:
        """Makes sure of its end, whatever a broken connection says, and takes it off the display."""
        self._ray.kill(member.handle)
        self._monitor.report.remote(member.name, None, {})
