"""What other bounds would keep, answered at once: the clips of a run as arrays, for pages on which bounds are dragged.

The answers are those of `what_if` for gates on clips, from memory: a bound that moves costs one comparison, and histograms
are mended by the clips that change sides. While it moves, a sorted column gives the hours exactly, a sample the histograms.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.ask.stats import NUM_BINS
from schemas.errors import LedgerError
from schemas.recipe import nearest
from schemas.verdict import Check

if TYPE_CHECKING:
    pass

Mask = NDArray[np.bool_]
Bounds = Mapping[str, float | None]
"""Name of a check, such as `sync.offset_ms.abs_max` -> its new bound; None: the gate is dropped."""
ORDERED = ("min", "max", "abs_max")
SAMPLE = 100_000
"""Clips that histograms are drawn of while a bound is dragged."""
KEPT_CURVES = 2
"""Of gates that were dragged last: 16 bytes a clip each."""
KEPT_VALUES = 3
"""Of gates whose bound moved last: 8 bytes a clip each. Those of others are read from the facts when they are asked about."""


@dataclass(frozen=True)
class Axis:
    """The bins of one measure."""

    path: str
    unit: str
    edges: NDArray[np.float64]
    """Float64 [NUM_BINS + 1]; the first and the last bin gather what lies beyond."""


@dataclass(frozen=True)
class GateNow:
    """One gate under the bounds asked about."""

    name: str
    bound: Any
    """None where it is dropped."""
    gross_us: int
    alone_us: int
    """Of clips that nothing else turns away."""


@dataclass(frozen=True)
class Moved:
    """What is kept under the bounds asked about; times in microseconds."""

    now_us: int
    now_clips: int
    low_us: int
    """Of clips that are certainly kept."""
    low_clips: int
    high_us: int
    """With those that were never measured to the end."""
    high_clips: int
    estimate_us: int | None
    """What the audit lane makes of the undecided part; None where it holds nothing that tells."""
    gates: tuple[GateNow, ...]
    kept_us: Mapping[str, NDArray[np.int64]]
    """Path -> int64 [NUM_BINS + 1] of clips kept then, those not measured last."""
    labels: Mapping[str, Mapping[str, tuple[int, int]]]
    """Path -> label -> (kept now, kept then)."""
    sampled: tuple[int, int] | None = None
    """(clips looked at, clips) where histograms and labels are scaled from a sample."""

    @property
    def is_exact(self) -> bool:
        """Whether every clip concerned was measured."""
        return self.low_us == self.high_us


@dataclass(frozen=True)
class GateOnClips:
    """What one check says of every clip, apart from its bound."""

    check: Check
    read: Callable[[], NDArray[np.float64]]
    """Float64 [num_clips]: what the gate looks at, NaN where it does not look."""
    fixed: Mask
    """Turned away whatever the bound: could not be measured, and missing means reject. Of gates without an order, all."""
    errors: Mask
    unreached: Mask

    def rejects(self, bound: float | None) -> Mask:
        """The clips it turns away under a bound; none if it is dropped."""
        if bound is None:
            return np.zeros(len(self.fixed), bool)
        if self.check.operator not in ORDERED:
            return self.fixed
        values = self.read()
        found: Mask = values < bound if self.check.operator == "min" else values > bound
        if self.check.operator == "abs_max":
            found |= values < -bound
        found |= self.fixed
        return found


@dataclass
class Measures:
    """The clips of kept sources of one version of a run: lengths, how they stand, what gates look at, bins and labels."""

    us: NDArray[np.int64]
    is_kept: Mask
    is_stuck: Mask
    """Errors of stages: no gate brings them back."""
    audits: NDArray[np.int64]
    """Places of rejected clips of the audit lane."""
    decided: NDArray[np.int64]
    """Per clip of the audit lane, in the order of gates, how many come up to the one that decided on it."""
    gates: tuple[GateOnClips, ...]
    axes: tuple[Axis, ...]
    codes: Mapping[str, NDArray[np.uint8]]
    """Path -> bin, NUM_BINS where not measured."""
    labels: Mapping[str, tuple[list[str], NDArray[np.uint8]]]
    num_all: int | None = None
    """Of a sample: how many clips it stands for."""
    _curves: OrderedDict[tuple[Any, ...], tuple[NDArray[np.float64], NDArray[np.int64], int]] = field(
        default_factory=OrderedDict
    )

    @property
    def checks(self) -> list[Check]:
        """The gates on clips, in order."""
        return [gate.check for gate in self.gates]

    @cached_property
    def bounds(self) -> dict[str, Any]:
        """The recipe's own."""
        return {check.name: check.bound for check in self.checks}

    def asked(self, bounds: Bounds) -> dict[str, Any]:
        """All bounds with those asked about instead. Raises LedgerError for a gate that is none, or has no order."""
        for name, bound in bounds.items():
            if name not in self.bounds:
                raise LedgerError(f"no gate on clips is called '{name}'.", remedy=nearest(name, self.bounds))
            if bound is not None and name.rpartition(".")[2] not in ORDERED:
                raise LedgerError(f"{name} has no order.", remedy=f"Drop it with gate.{name}=off.")
        return {**self.bounds, **bounds}

    @cached_property
    def _own(self) -> Callable[[int], Mask]:
        """What the gate of a number turns away under the recipe's own bound; kept as values are."""
        return lru_cache(KEPT_VALUES)(lambda at: self.gates[at].rejects(self.bounds[self.gates[at].check.name]))

    @cached_property
    def _base(self) -> tuple[NDArray[np.uint8], NDArray[np.uint16], list[int], NDArray[np.bool_]]:
        """Under the recipe's own bounds: how many gates turn a clip away; the sum of their numbers, which names the one where
        it is one; microseconds that each gate turns away; and bool [num_gates, num_audits], which audited clips."""
        num, numbers = np.zeros(len(self.us), np.uint8), np.zeros(len(self.us), np.uint16)
        gross_us, of_audits = [], np.zeros((len(self.gates), len(self.audits)), bool)
        for at in range(len(self.gates)):
            own = self._own(at)
            num += own
            numbers += own * np.uint16(at)
            gross_us.append(int(self.us[own].sum()))
            of_audits[at] = own[self.audits]
        return num, numbers, gross_us, of_audits

    @cached_property
    def _base_open(self) -> NDArray[np.uint8]:
        return np.sum([gate.unreached for gate in self.gates], axis=0, dtype=np.uint8) + np.zeros(
            len(self.us), np.uint8
        )

    @cached_property
    def _base_errors(self) -> NDArray[np.uint8]:
        return np.sum([gate.errors for gate in self.gates], axis=0, dtype=np.uint8) + self.is_stuck.astype(np.uint8)

    @cached_property
    def _totals(self) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]]]:
        """What is kept now, by bin and by label."""
        us = (self.us * self.is_kept).astype(np.float64)
        by_bin = {path: _summed(codes, us, NUM_BINS + 1) for path, codes in self.codes.items()}
        by_label = {path: _summed(codes, us, len(names)) for path, (names, codes) in self.labels.items()}
        return by_bin, by_label

    @cached_property
    def _now(self) -> tuple[int, int]:
        """(microseconds, clips) kept now."""
        return int(self.us[self.is_kept].sum()), int(self.is_kept.sum())

    def answer(self, bounds: Bounds) -> Moved:
        """What these bounds keep. Raises LedgerError for a gate that is none."""
        asked = self.asked(bounds)
        base = self._base
        num, numbers, gross_us, of_audits = base[0].copy(), base[1].copy(), list(base[2]), base[3].copy()
        errors, is_open = self._base_errors, self._base_open
        for at, gate in enumerate(self.gates):
            name = gate.check.name
            if asked[name] == self.bounds[name]:
                continue
            new = gate.rejects(asked[name])
            gross_us[at] = int(self.us[new].sum())
            of_audits[at] = new[self.audits]
            change = new.view(np.int8) - self._own(at).view(np.int8)
            num += change.view(np.uint8)
            numbers += (change.astype(np.int16) * at).view(np.uint16)
            if asked[name] is None:
                errors, is_open = errors - gate.errors, is_open - gate.unreached
        is_undecided = (num == 0) & (errors == 0)
        then = is_undecided & (is_open == 0)
        is_undecided &= ~then
        low_us, undecided_us = int(self.us[then].sum()), int(self.us[is_undecided].sum())
        low_clips = int(then.sum())
        return Moved(
            now_us=self._now[0],
            now_clips=self._now[1],
            low_us=low_us,
            low_clips=low_clips,
            high_us=low_us + undecided_us,
            high_clips=low_clips + int(is_undecided.sum()),
            estimate_us=self._estimate(low_us, undecided_us, of_audits, then),
            gates=self._gates_now(asked, gross_us, num, numbers),
            **self._spread(then),
        )

    def _gates_now(
        self, asked: Mapping[str, Any], gross_us: list[int], num: NDArray[np.uint8], numbers: NDArray[np.uint16]
    ) -> tuple[GateNow, ...]:
        single = num == 1
        alone_us = _summed(numbers[single], self.us[single], len(self.gates))
        return tuple(
            GateNow(check.name, asked[check.name], gross, int(alone))
            for check, gross, alone in zip(self.checks, gross_us, alone_us, strict=True)
        )

    def _spread(self, then: Mask) -> dict[str, Any]:
        """Histograms and labels of what is kept `then`: those of now and the clips that change sides, or, of fewer, anew."""
        is_moved = then != self.is_kept
        is_anew = np.count_nonzero(then) < np.count_nonzero(is_moved)
        rows = np.flatnonzero(then if is_anew else is_moved)
        us = self.us[rows].astype(np.float64)
        us[~then[rows]] *= -1
        by_bin, by_label = self._totals
        kept = {
            path: total * (not is_anew) + _summed(self.codes[path][rows], us, NUM_BINS + 1)
            for path, total in by_bin.items()
        }
        labels = {}
        for path, (names, codes) in self.labels.items():
            now = by_label[path]
            after = now * (not is_anew) + _summed(codes[rows], us, len(names))
            labels[path] = {name: (int(a), int(b)) for name, a, b in zip(names, now, after, strict=True)}
        return {"kept_us": kept, "labels": labels}

    def _estimate(self, low_us: int, undecided_us: int, of_audits: NDArray[np.bool_], then: Mask) -> int | None:
        """See `what_if`: the share that is kept of audited clips which get as far as before."""
        if not undecided_us:
            return low_us
        is_before = np.arange(len(self.gates))[:, None] < self.decided
        us = self.us[self.audits] * ~(of_audits & is_before).any(axis=0)
        audited, passed = int(us.sum()), int(us[then[self.audits]].sum())
        return low_us + round(undecided_us * passed / audited) if audited else None

    def dragged(self, name: str, bounds: Bounds) -> Moved:
        """`answer`, with exact hours of what is kept and histograms of a sample; `name` is the gate whose bound moves."""
        asked = self.asked(bounds)
        values, sums, always = self._curve(name, asked)
        bound = asked[name]
        if bound is None or not len(values):
            place = len(values)
        elif name.endswith(".min"):
            place = len(values) - int(np.searchsorted(values, bound, "left"))
        else:
            place = int(np.searchsorted(values, bound, "right"))
        low_us = always + int(sums[place])
        told = self.sample.answer(bounds)
        scale = len(self.us) / max(len(self.sample.us), 1)
        return replace(
            told,
            now_us=self._now[0],
            now_clips=self._now[1],
            low_us=low_us,
            high_us=max(low_us, round(told.high_us * scale)),
            low_clips=round(told.low_clips * scale),
            high_clips=round(told.high_clips * scale),
            estimate_us=None,
            kept_us={path: np.rint(each * scale).astype(np.int64) for path, each in told.kept_us.items()},
            sampled=(len(self.sample.us), len(self.us)),
        )

    def _curve(self, name: str, asked: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
        """Of clips that all other gates keep: the gate's values in order, time before each, and time that it never looks at."""
        key = (name, *(bound for other, bound in asked.items() if other != name))
        if key not in self._curves:
            others = self._base[0].copy()
            errors, is_open = self._base_errors, self._base_open
            for at, gate in enumerate(self.gates):
                bound = None if gate.check.name == name else asked[gate.check.name]
                if bound != self.bounds[gate.check.name]:
                    others += (gate.rejects(bound).view(np.int8) - self._own(at).view(np.int8)).view(np.uint8)
                if asked[gate.check.name] is None:
                    errors, is_open = errors - gate.errors, is_open - gate.unreached
            (gate,) = (each for each in self.gates if each.check.name == name)
            left = (others == 0) & (errors == 0) & (is_open == 0) & ~gate.fixed
            seen_by_it = gate.read()
            is_seen = ~np.isnan(seen_by_it)
            looked = left & is_seen
            values = np.abs(seen_by_it[looked]) if gate.check.operator == "abs_max" else seen_by_it[looked]
            order = np.argsort(values, kind="stable")
            us = self.us[looked][order]
            sums = np.concatenate([[0], np.cumsum(us[::-1] if gate.check.operator == "min" else us)])
            self._curves[key] = values[order], sums, int(self.us[left & ~is_seen].sum())
            if len(self._curves) > KEPT_CURVES:
                self._curves.popitem(last=False)
        return self._curves[key]

    @cached_property
    def sample(self) -> Measures:
        """`SAMPLE` of the clips, drawn evenly at random, or all where there are fewer."""
        if len(self.us) <= SAMPLE:
            return self
        rows = np.sort(np.random.default_rng(0).choice(len(self.us), SAMPLE, replace=False))
        inside = np.searchsorted(rows, self.audits)
        is_in = np.isin(self.audits, rows)
        masks = ("fixed", "errors", "unreached")
        return Measures(
            us=self.us[rows],
            is_kept=self.is_kept[rows],
            is_stuck=self.is_stuck[rows],
            audits=inside[is_in],
            decided=self.decided[is_in],
            gates=tuple(
                replace(gate, read=_held(gate.read()[rows]), **{name: getattr(gate, name)[rows] for name in masks})
                for gate in self.gates
            ),
            axes=self.axes,
            codes={path: codes[rows] for path, codes in self.codes.items()},
            labels={path: (names, codes[rows]) for path, (names, codes) in self.labels.items()},
            num_all=len(self.us),
        )


def _summed(codes: NDArray[Any], us: NDArray[np.int64] | NDArray[np.float64], num: int) -> NDArray[np.int64]:
    """Int64 [num]: microseconds by code. Sums of whole numbers below 2^53 are exact in doubles."""
    return np.bincount(codes, us, num).astype(np.int64)


def _held(values: NDArray[np.float64]) -> Callable[[], NDArray[np.float64]]:
    return lambda: values
