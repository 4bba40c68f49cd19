"""What looking on at the asset pass costs, booked on the stages that look and not on the one that set the pass going."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from schemas.records import Cost
from stages.asset_pass import AssetPass, Spent, Wish


class LookCosts:
    """Shares out the time of observers among stages."""

    def __init__(self) -> None:
        self._stages: dict[Wish, str] = {}
        self._ahead: dict[str, Spent] = {}

    def of(self, watching: Mapping[Wish, str]) -> Iterable[Wish]:
        """The observers of `watching`, whose time is that of their stages from here on."""
        self._stages = dict(watching)
        return self._stages

    def shared_out(self, stage: str, used: Spent, asset_pass: AssetPass) -> Spent:
        """What of `used` in `stage` is its own, with what was spent for it while others were measuring."""
        while asset_pass.spent:
            wish, spent = asset_pass.spent.popitem()
            name = self._stages.get(wish, stage)
            self._ahead[name] = self._ahead.get(name, Spent()) + spent
            used -= spent
        return used + self._ahead.pop(stage, Spent())

    def unasked(self) -> list[Cost]:
        """What was spent for stages that no row came to."""
        left, self._ahead = self._ahead, {}
        return [Cost(stage, spent.wall_s, spent.cpu_s, 0) for stage, spent in left.items()]
