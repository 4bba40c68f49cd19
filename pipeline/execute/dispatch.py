"""Hands the units of a pass to the workers, a few at a time, and takes them back finished; the driver's whole part in it.

    queue of group 0 --lease--> worker --hop (by reference)--> queue of group 1 --lease--> worker --> finished units

Every worker has one lease in hand, sized by time; what it has not begun comes back when others have nothing to do. Units
that were in the hands of a worker that died are carried again, one by one, by careful workers. A worker goes on with the
parts of a long source it has in hand; others take of them when nothing else waits, so that short sources do not stand behind.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipeline.execute.gates import settle_error
from pipeline.execute.lease import Desk, Lease, Settled
from pipeline.execute.parts import Joiner
from pipeline.execute.pool import Given, LeasedUnit, Member, Pool
from pipeline.plan import Plan
from pipeline.store import RunDir
from schemas.errors import MachineError, NavaError, StageTimeoutError
from schemas.machine import GOES_ON
from schemas.records import Source

LEASE_S = 10.0
"""A lease holds what its worker does in about this time, by its own rate so far."""
MOST_UNITS = 256
TAIL = 4
"""No lease takes more than this fraction of a worker's share of what is left, so that all end together."""
BACKLOG_UNITS = 64
"""Units that wait before a later group, per worker of it, beyond which the group before it pauses."""
RECALLED_AFTER_S = 1.0
OUT_OF_MEMORY = "NODE_OUT_OF_MEMORY"
"""In what Ray says of a worker that it ended for want of memory on the node: no row's fault, as workers keep to their limit."""
MOST_MEMORY_DEATHS = 3
"""Workers that may end so, with no unit finished in between, before the run ends and says so."""
MOST_DEATHS = 10
"""A source that took this many workers down settles as an error as a whole, whatever its rows say."""


def lease_size(s_per_unit: float | None, num_waiting: int, num_workers: int) -> int:
    """Units for a worker that needs `s_per_unit`, None while that is not known: one at the beginning and near the end."""
    if s_per_unit is None:
        return 1
    by_time = LEASE_S / max(s_per_unit, LEASE_S / MOST_UNITS)
    return max(1, min(int(by_time), num_waiting // (TAIL * max(num_workers, 1))))


class Dispatch:
    """The carrying of one lease, from `run` to its end."""

    def __init__(self, ray: Any, plan: Plan, lease: Lease, directory: RunDir, monitor: Any) -> None:
        self._ray, self._plan, self._lease, self._directory = ray, plan, lease, directory
        self._pool = Pool(ray, plan, lease, directory, monitor)
        self._queues: list[deque[LeasedUnit]] = [deque() for _ in self._pool.groups]
        self._queues[0].extend(LeasedUnit(source) for source in lease.sources)
        self._parts: list[deque[LeasedUnit]] = [deque() for _ in self._pool.groups]
        self._joiner = Joiner()
        self._left = len(lease.sources)
        self._deaths: dict[str, int] = defaultdict(int)
        self._memory_deaths = 0
        self._serial = 0

    def run(self) -> Iterator[Settled]:
        """The units as they finish, long ones part by part. Raises what stopped a worker for good, a NavaError as it is."""
        try:
            while self._left:
                self._pool.look([self._ahead(group) for group in range(len(self._queues))])
                self._grant()
                self._recall()
                for settled in map(self._joiner.take, self._hear()):
                    self._left -= settled.is_done
                    self._memory_deaths = 0
                    yield settled
        finally:
            self._pool.close()

    def _ahead(self, group: int) -> int:
        in_hand = (len(member.given.items) for member in self._pool.of(group) if member.given is not None)
        return len(self._queues[group]) + len(self._parts[group]) + sum(in_hand)

    def _grant(self) -> None:
        """A lease for every idle worker, as long as there is work; later groups first, so that what is begun ends."""
        for group in reversed(range(len(self._queues))):
            for member in self._pool.of(group):
                is_work = bool(self._queues[group] or self._parts[group])
                if member.is_idle and is_work and not self._is_blocked(group):
                    self._give(member, self._chosen(member))

    def _is_blocked(self, group: int) -> bool:
        """Whether the next group has enough before it."""
        after = group + 1
        return after < len(self._queues) and len(self._queues[after]) >= BACKLOG_UNITS * max(
            len(self._pool.of(after)), 1
        )

    def _chosen(self, member: Member) -> list[LeasedUnit]:
        queue, parts = self._queues[member.group], self._parts[member.group]
        own = next((item for item in parts if item.source.source_id == member.source_id), None)
        if own is not None or not queue:
            part = parts[0] if own is None else own
            parts.remove(part)
            return [part]
        most = lease_size(member.s_per_unit, len(queue), len(self._pool.of(member.group)))
        chosen = [queue.popleft()]
        while queue and len(chosen) < most and not chosen[0].is_suspect and not queue[0].is_suspect:
            chosen.append(queue.popleft())
        return chosen

    def _give(self, member: Member, items: Sequence[LeasedUnit]) -> None:
        lease = self._lease.part([item.source for item in items])
        hops = [item.hop for item in items if item.hop is not None]
        carry = member.handle.carry.options(num_returns="streaming")
        stream = carry.remote(self._serial, lease, items[0].is_suspect, *hops)
        member.given = Given(self._serial, member.group, stream, {item.key: item for item in items}, len(items))
        member.source_id = items[-1].source.source_id
        self._serial += 1

    def _recall(self) -> None:
        """Asks the workers with most in hand for what they have not begun, where others of their group are idle."""
        for group, queue in enumerate(self._queues):
            members = self._pool.of(group)
            num_idle = sum(member.is_idle for member in members)
            if queue or self._parts[group] or not num_idle:
                continue
            for member in sorted(members, key=lambda member: -len(member.given.items) if member.given else 0)[
                :num_idle
            ]:
                given = member.given
                is_old = given is not None and time.monotonic() - given.since > RECALLED_AFTER_S
                if given is not None and is_old and len(given.items) > 1 and not given.is_recalled:
                    given.is_recalled = True
                    aside = member.handle.give_back.options(concurrency_group="aside")
                    given.recall = aside.remote(given.serial)

    def _hear(self) -> Iterator[Settled]:
        """Waits for the next news, a second at most, and takes in all there is."""
        asked: dict[Any, Member] = {}
        for member in self._pool.members:
            if member.hello is not None:
                asked[member.hello] = member
            if member.given is not None:
                asked[member.given.stream] = member
                if member.given.recall is not None:
                    asked[member.given.recall] = member
        if not asked:
            time.sleep(0.2)
            return
        ready, others = self._ray.wait(list(asked), num_returns=1, timeout=1.0, fetch_local=False)
        if others:
            ready += self._ray.wait(others, num_returns=len(others), timeout=0, fetch_local=False)[0]
        for news in ready:
            member = asked[news]
            if member not in self._pool.members:
                continue
            try:
                yield from self._take_in(member, news)
            except self._ray.exceptions.RayActorError as error:
                yield from self._bury(member, error)

    def _take_in(self, member: Member, news: Any) -> Iterator[Settled]:
        given = member.given
        if news is member.hello:
            self._pool.greeted(member, self._ray.get(news))
        elif given is not None and news is given.recall:
            given.recall = None
            self._put_back(given, self._ray.get(news))
        elif given is not None:
            try:
                yield from self._answer(member, given, next(given.stream))
            except StopIteration:
                self._finish(member, given)

    def _answer(self, member: Member, given: Given, reference: Any) -> Iterator[Settled]:
        """Takes in what a worker yielded: news, and then finished units, or a hop that is not looked at.

        What it tells of a source that was taken from it is passed over.
        """
        news, given.news = given.news, None
        if news is None:
            given.news = self._get(given, reference)
        elif news.kind == "done":
            for settled in self._get(given, reference) or ():
                if settled.is_head and settled.source_id in given.items:
                    yield settled
                elif given.items.pop(settled.key, None) is not None:
                    self._deaths.pop(settled.key, None)
                    yield settled
        elif news.key in given.items:
            item = given.items[news.key]
            if news.kind == "on":
                del given.items[news.key]
                queues = self._queues if item.part is None else self._parts
                queues[member.group + 1].append(replace(item, hop=reference))
            else:
                self._divide(member, given, replace(item, part=news.part, hop=reference))

    def _divide(self, member: Member, given: Given, part: LeasedUnit) -> None:
        """Takes in a part; once all of a unit are here, they take its place."""
        given.parts.append(part)
        assert part.part is not None
        if len(given.parts) == part.part.count:
            del given.items[part.source.source_id]
            self._parts[member.group].extend(given.parts)
            given.parts = []

    def _restart(self, source: Source) -> None:
        """A source of which a part is lost begins anew, or from what the ledger has of it; what is out of it is void."""
        self._joiner.forget(source.source_id)
        for parts in self._parts:
            kept = [item for item in parts if item.source.source_id != source.source_id]
            parts.clear()
            parts.extend(kept)
        for given in (member.given for member in self._pool.members if member.given is not None):
            for key in [key for key, item in given.items.items() if item.source == source]:
                del given.items[key]
        self._lease = replace(self._lease, known=self._lease.known | {source.source_id})
        self._queues[0].appendleft(LeasedUnit(source, is_suspect=True))

    def _get(self, given: Given, reference: Any) -> Any:
        """What the reference holds; None where it, or what the worker needed, went down with a node.

        The units in hand then begin anew.
        """
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayActorError:
            raise
        except exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, NavaError):
                raise cause from None
            if not isinstance(cause, exceptions.ObjectLostError):
                raise
            for item in given.items.values():
                item.hop = None
            return None

    def _finish(self, member: Member, given: Given) -> None:
        """The lease is through: what is still in it was given back, or lost."""
        num_done = given.num_units - len(given.items)
        self._put_back(given, list(given.items))
        member.given = None
        member.num_leases += 1
        if num_done and member.num_leases > 1:
            s_per_unit = (time.monotonic() - given.since) / num_done
            known = member.s_per_unit
            member.s_per_unit = s_per_unit if known is None else (known + s_per_unit) / 2

    def _put_back(self, given: Given, keys: Sequence[str]) -> None:
        """Puts units of a lease before their group again, in front; one whose hop is lost before the first."""
        for key in reversed(keys):
            item = given.items.pop(key, None)
            if item is None:
                continue
            if item.part is not None and item.hop is None:
                self._restart(item.source)
            elif item.part is not None:
                self._parts[given.group].appendleft(item)
            else:
                self._queues[given.group if item.hop is not None else 0].appendleft(item)

    def _bury(self, member: Member, error: Exception) -> Iterator[Settled]:
        """Takes back what a dead worker had in hand. A unit that kills careful workers again and again is given up.

        Raises MachineError where memory keeps running out on the nodes.
        """
        self._pool.lost(member, error)
        given = member.given
        is_of_memory = OUT_OF_MEMORY in str(error)
        self._memory_deaths += is_of_memory
        if self._memory_deaths >= MOST_MEMORY_DEATHS:
            msg = f"memory ran out on the nodes: Ray ended {MOST_MEMORY_DEATHS} workers for it, one after another."
            raise MachineError(msg, remedy=f"Free memory there, or run fewer workers (--cpus); {GOES_ON}")
        if given is None:
            return
        if is_of_memory:
            self._put_back(given, list(given.items))
            return
        for key, item in list(given.items.items()):
            self._deaths[key] += item.is_suspect
            item.is_suspect = True
            if self._deaths[key] >= MOST_DEATHS:
                if item.part is not None:
                    self._restart(item.source)
                    self._queues[0].popleft()
                given.items.pop(key, None)
                yield self._given_up(item)
        self._put_back(given, list(given.items))

    def _given_up(self, item: LeasedUnit) -> Settled:
        desk = Desk(self._plan, self._lease.number, self._directory)
        (unit,) = desk.units(self._lease.part([item.source]))
        msg = f"{item.source.uri}: {MOST_DEATHS} worker processes ended over it."
        error = StageTimeoutError(msg, reason="worker_crash", remedy="Look at the file, or leave it out.")
        settle_error(unit.asset, self._plan.passes[self._lease.number].stages[0], error)
        return desk.settled(unit)
