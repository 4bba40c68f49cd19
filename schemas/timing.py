"""Exact times: a span is two integers and a time base, never two floats.

asset clock   the container's own clock after edit lists and start offsets, in pts x time_base seconds
clip clock    seconds since the clip's first frame
sound         the sample index of an instant is round(instant x rate), half up: at most half a sample off
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open stretch of an asset's clock, [start_pts, end_pts) in units of num/den seconds."""

    start_pts: int
    end_pts: int
    num: int
    den: int

    def __post_init__(self) -> None:
        if self.end_pts < self.start_pts or self.num <= 0 or self.den <= 0:
            raise ValueError(f"not a span: {self}")

    @property
    def time_base(self) -> Fraction:
        """Seconds per pts."""
        return Fraction(self.num, self.den)

    @property
    def start(self) -> Fraction:
        """Start in exact seconds on the asset clock."""
        return self.start_pts * self.time_base

    @property
    def end(self) -> Fraction:
        """End in exact seconds on the asset clock."""
        return self.end_pts * self.time_base

    @property
    def duration(self) -> Fraction:
        """Length in exact seconds."""
        return self.end - self.start

    @property
    def duration_us(self) -> int:
        """Length in microseconds as a difference of rounded ends, so that adjoining spans add up exactly."""
        return microseconds(self.end) - microseconds(self.start)


def microseconds(seconds: Fraction) -> int:
    """`seconds` in whole microseconds, half up."""
    return _round_half_up(seconds * 1_000_000)


def sample_at(seconds: Fraction, rate_hz: int) -> int:
    """The index of the audio sample nearest to an instant, half up."""
    return _round_half_up(seconds * rate_hz)


def _round_half_up(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)
