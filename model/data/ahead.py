"""Packs planned ahead of their step and given out so that what they cost to make ready stays near its mean.

Packs of equal FLOPs differ in what encoding their clips costs. Encoders that work at the mean rate fall behind by the
largest excess of any run of packs, which grows with the run's length where packs come in a random order. Taking the one
of a few that brings the sum back to the mean keeps it smaller; what clips a stream holds for longer, no order can change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from model.data.packing import Pack, Packer

FORGETTING = 0.9
"""Share of the debt that is left after a pack, so that slow drifts do not have the cheapest kind taken always: runs of 32
packs on corpus S2 were 0.72 packs above the mean, 0.78 with all of it kept, 1.53 in the order of planning."""


class PacksAhead:
    """A window of packs of one stream. `next_pack` is a function of what it holds, `debt` and the step: no random numbers."""

    def __init__(
        self, packer: Packer, excess: Callable[[Pack], float], size: int, packs: Iterable[Pack] = (), debt: float = 0.0
    ) -> None:
        self._packer, self._excess, self._size = packer, excess, size
        self.packs = list(packs)
        """From oldest to newest."""
        self.debt = debt
        """What the packs given out lately cost beyond the mean."""

    @property
    def is_empty(self) -> bool:
        """True when a finite plan has ended and every pack is out."""
        return not self.packs and self._packer.is_empty

    def next_pack(self, step: int) -> Pack:
        """The pack of a step: that after which the debt is smallest, and once in as many steps as it looks ahead the oldest."""
        while len(self.packs) < self._size and not self._packer.is_empty:
            self.packs += self._packer.team_step()
        if not self.packs:
            return self._packer.team_step()[0]
        chosen = 0
        if step % self._size:
            chosen = min(range(len(self.packs)), key=lambda i: abs(self.debt + self._excess(self.packs[i])))
        pack = self.packs.pop(chosen)
        self.debt = FORGETTING * self.debt + self._excess(pack)
        return pack
