"""Packs of equal work, filled alone: no rank looks at another, because every rank aims at the same FLOPs.

    item    one sample to train on: its row and what it costs
    team    the `members` ranks that share long samples; 1 without context parallelism
    pack    what one rank computes in one micro-step: whole items of its own, and its slice of the team's shared ones

A packer holds a small buffer of descriptors. The oldest opens a pack, random ones fill it to a quarter or until three
more can close it, and the oldest one, two or three that land within 0.05 % of the target do; where none do, items of the
pack change places with slightly dearer ones of the buffer. Tokens are a second limit (memory). The error does not depend
on the number of ranks, so the slowest rank of a step is hardly slower than the mean one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.data.order import mix

CLOSE_BELOW = 0.75
"""Share of the target left to the closing search. Measured imbalance on corpus S1 after 600 steps: 1.0019 at 0.55,
1.0004 at 0.75 and at 0.9, where less of a pack is random."""
NUM_LEADS = 8
"""Oldest items tried as the first of three; 16 gave the same balance at more cost."""
MAX_CANDIDATES = 256
"""Items the closing search looks at; a team's larger buffer is thinned evenly over the costs."""
GOOD_ENOUGH = 5e-4
"""Relative shortfall at which a pack is closed: a sixth of the imbalance aimed at, so that age can decide among many."""
MAX_EXCHANGES = 16
"""Exchanges tried to close one pack. With clips of four sizes, 7 to 50 in a pack, three packs of four took at most four
and one of 26 took all; on corpus S1 one of 45 took any."""


class Item(NamedTuple):
    """One draw of one sample. `serial` counts draws of this packer; tokens are video plus audio."""

    serial: int
    part: int
    epoch: int
    row: int
    flops: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pack may hold. `members` > 1 lets a team share items that one pack could not hold."""

    flop_target: float
    token_budget: int
    members: int = 1

    def fits_alone(self, flops: float, tokens: int) -> bool:
        """Whether one rank can hold the item; the last 5 % are left for filling when the team could share it."""
        most = self.flop_target if self.members == 1 else 0.95 * self.flop_target
        return flops <= most and tokens <= self.token_budget

    def fits_team(self, flops: float, tokens: int) -> bool:
        """Whether the whole team together can hold the item."""
        return flops <= self.flop_target * self.members and tokens <= self.token_budget * self.members


@dataclass(frozen=True, slots=True)
class Pack:
    """One rank's micro-step. FLOPs and tokens are the rank's own share: shared items count for 1/members."""

    own: tuple[Item, ...]
    shared: tuple[Item, ...]
    flops: float
    tokens: float

    @property
    def items(self) -> tuple[Item, ...]:
        """Shared items first, then the rank's own."""
        return self.shared + self.own


@dataclass(frozen=True, slots=True)
class Room:
    """What is left in a pack; `slack` is how far below it a pack may close."""

    flops: float
    tokens: float
    slack: float


class Packer:
    """Endless packs for one team from `supply`, which returns the next item or None at the end of a finite plan.

    Deterministic in (key, supply). `state` is everything that is needed to continue: buffer and number of random draws.
    """

    def __init__(
        self,
        supply: Callable[[], Item | None],
        limits: Limits,
        buffer_size: int,
        key: int,
        *,
        buffer: Iterable[Item] = (),
        num_draws: int = 0,
    ) -> None:
        self._supply, self._limits, self._key = supply, limits, key
        self._buffer_size, self._num_draws = buffer_size, num_draws
        self._items: dict[int, Item] = {}
        self._flops: list[float] = []
        self._serials: list[int] = []
        self._tokens: list[int] = []
        for item in buffer:
            self._add(item)
        self._fill()

    @property
    def state(self) -> tuple[list[Item], int]:
        """(buffer from oldest to newest, number of random draws made)."""
        return list(self._items.values()), self._num_draws

    @property
    def is_empty(self) -> bool:
        """True when a finite supply has ended and every item is out."""
        return not self._items

    def team_step(self) -> tuple[Pack, ...]:
        """The next pack of each member. Packs are empty only after a finite supply has ended."""
        shared = self._take_shared()
        flops = sum(item.flops for item in shared) / self._limits.members
        tokens = sum(item.tokens for item in shared) / self._limits.members
        packs = tuple(self._pack(shared, flops, tokens) for _ in range(self._limits.members))
        self._fill()
        return packs

    def _take_shared(self) -> tuple[Item, ...]:
        """Oldest items, as long as they are too large for one rank and still fit the team together."""
        shared: list[Item] = []
        flops, tokens = 0.0, 0
        while self._items:
            oldest = next(iter(self._items.values()))
            flops, tokens = flops + oldest.flops, tokens + oldest.tokens
            if self._limits.fits_alone(oldest.flops, oldest.tokens) or not self._limits.fits_team(flops, tokens):
                break
            shared.append(self._remove(oldest.serial))
        return tuple(shared)

    def _pack(self, shared: tuple[Item, ...], flops: float, tokens: float) -> Pack:
        own: list[Item] = []
        target, budget = self._limits.flop_target, self._limits.token_budget
        for oldest in self._items.values():
            if not self._limits.fits_alone(oldest.flops, oldest.tokens):
                continue
            if flops + oldest.flops <= target and tokens + oldest.tokens <= budget:
                own.append(self._remove(oldest.serial))
                flops, tokens = flops + oldest.flops, tokens + oldest.tokens
            break
        while target - flops > GOOD_ENOUGH * target and (chosen := self._choose(target - flops, budget - tokens)):
            for serial in chosen:
                item = self._remove(serial)
                own.append(item)
                flops, tokens = flops + item.flops, tokens + item.tokens
            self._fill()
        for _ in range(MAX_EXCHANGES):
            room = Room(target - flops, budget - tokens, GOOD_ENOUGH * target)
            if room.flops <= room.slack or (places := self._exchange(own[1:], room)) is None:
                break
            old, new = own[1 + places[0]], self._remove(self._serials[places[1]])
            own[1 + places[0]] = new
            self._add(old)
            self._items = dict(sorted(self._items.items()))
            flops, tokens = flops + new.flops - old.flops, tokens + new.tokens - old.tokens
        return Pack(tuple(own), shared, flops, tokens)

    def _exchange(self, own: list[Item], room: Room) -> tuple[int, int] | None:
        """(position in `own`, position in the buffer) of the exchange that adds most without exceeding the room."""
        if not own or not self._items:
            return None
        mine = np.array([(item.flops, item.tokens) for item in own])
        flops, tokens = np.array(self._flops), np.array(self._tokens)
        partner = np.searchsorted(flops, mine[:, 0] + room.flops, side="right") - 1
        fits = (partner >= 0) & (tokens[partner] - mine[:, 1] <= room.tokens)
        gain = np.where(fits, flops[partner] - mine[:, 0], 0.0)
        best = int(gain.argmax())
        return (best, int(partner[best])) if gain[best] > 0 else None

    def _choose(self, flops_left: float, tokens_left: float) -> tuple[int, ...]:
        """Serials of what to add next: a random item far from the target, what closes the pack nearer to it."""
        num_fitting = bisect_right(self._flops, flops_left)
        if not num_fitting:
            return ()
        closable = min(CLOSE_BELOW * self._limits.flop_target, 3 * self._flops[num_fitting - 1])
        if flops_left > closable and num_fitting > 8:
            self._num_draws += 1
            serial = self._serials[mix(self._key + self._num_draws) % num_fitting]
            if self._items[serial].tokens <= tokens_left:
                return (serial,)
        every = slice(0, num_fitting, -(-num_fitting // MAX_CANDIDATES))
        flops, serials, tokens = (np.array(of[every]) for of in (self._flops, self._serials, self._tokens))
        leads = np.argsort(serials)[:NUM_LEADS]
        room = Room(flops_left, tokens_left, GOOD_ENOUGH * self._limits.flop_target)
        ages = next(reversed(self._items)) - serials
        return tuple(int(serials[i]) for i in best_close(flops, tokens, ages, leads, room))

    def _add(self, item: Item) -> None:
        place = bisect_right(self._flops, item.flops)
        while place and self._flops[place - 1] == item.flops and self._serials[place - 1] > item.serial:
            place -= 1
        self._flops.insert(place, item.flops)
        self._serials.insert(place, item.serial)
        self._tokens.insert(place, item.tokens)
        self._items[item.serial] = item

    def _remove(self, serial: int) -> Item:
        item = self._items.pop(serial)
        place = self._serials.index(serial, bisect_left(self._flops, item.flops))
        del self._flops[place], self._serials[place], self._tokens[place]
        return item

    def _fill(self) -> None:
        while len(self._items) < self._buffer_size and (item := self._supply()) is not None:
            self._add(item)


def best_close(
    flops: NDArray[np.float64],
    tokens: NDArray[np.int64],
    ages: NDArray[np.int64],
    leads: NDArray[np.int64],
    room: Room,
) -> tuple[int, ...]:
    """Positions of the one, two or three items that close a pack, empty when nothing fits.

    flops: [n] ascending; tokens, ages: [n]; leads: [m] positions that may be the first of three. Of every combination
    (lead or none, any item, its best partner) that comes within `room.slack` of the room, the one of greatest mean age
    wins, so that no kind of item piles up in the buffer; without one the closest wins. O(m n log n).
    """
    n = len(flops)
    first_equal = np.searchsorted(flops, flops)  # the oldest of those that cost the same
    lead = np.concatenate([[n, n], leads])[:, None]
    lead_flops, lead_tokens = np.append(flops, 0.0)[lead], np.append(tokens, 0)[lead]
    lead_ages, num_items = np.append(ages, 0)[lead], np.array([1, 2] + [3] * len(leads))[:, None]
    partner = np.searchsorted(flops, room.flops - lead_flops - flops, side="right") - 1
    partner = np.minimum(partner, np.arange(n) - 1)
    is_possible = partner >= 0
    partner = first_equal[np.maximum(partner, 0)]
    has_partner = num_items > 1
    total = lead_flops + flops + has_partner * flops[partner]
    is_possible &= (lead != np.arange(n)) & (lead != partner)
    is_possible |= ~has_partner
    is_possible &= total <= room.flops
    is_possible &= lead_tokens + tokens + has_partner * tokens[partner] <= room.tokens
    reached = np.where(is_possible, total, -1.0)
    best = int(reached.argmax())
    most = float(reached.flat[best])
    if most <= 0:
        return ()
    if most >= room.flops - room.slack:
        age = (lead_ages + ages + has_partner * ages[partner]) / num_items
        best = int(np.where(reached >= room.flops - room.slack, age, -1.0).argmax())
    row, item = divmod(best, n)
    return (item, int(partner[row, item]), int(lead[row, 0]))[: int(num_items[row, 0])]
