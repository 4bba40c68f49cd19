"""What lies among the inputs and is no source, by why: counted and named, so that nothing is left out without a word."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from schemas.printable import percent_escaped

MOST_NAMES = 10_000
"""Names kept for each reason; the rest is only counted."""
SHOWN_NAMES = 3


@dataclass
class Skips:
    """Reason, in the plural and for people -> how many there are, and what they are called."""

    counts: Counter[str] = field(default_factory=Counter)
    names: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, why: str, name: object) -> None:
        """One more."""
        self.counts[why] += 1
        if len(self.names[why]) < MOST_NAMES:
            self.names[why].append(percent_escaped(str(name)))

    def text(self) -> str:
        """All names that were kept, each behind its reason, a line each."""
        return "".join(f"{why}\t{name}\n" for why, names in self.names.items() for name in names)

    def lines(self, most: int = SHOWN_NAMES) -> list[str]:
        """A line per reason, with the first `most` names."""
        found = []
        for why, number in self.counts.items():
            named = self.names[why][:most]
            rest = f" and {number - len(named)} more" if number > len(named) else ""
            found.append(f"skipped {why}: {number} ({', '.join(named)}{rest})")
        return found
