"""The asset pass: an asset's picture is decoded once, and all who want to see it look on.

    class Counter:                                    an observer: made for one asset, shown every picture in order
        look = {"long_side_px": 64, "format": "gray"}
        def __init__(self, context): self.num = 0
        def see(self, run): self.num += len(run.images)

    context.asset_pass.look(path, Counter).num

Whoever asks first sets it going. Along with what he asks for look on all that the worker expects to be asked for afterwards
(`expect`), so that their answers are there; whoever comes unexpected has the asset decoded again. Observers keep little per
picture: of an hour at 25 pictures a second they hold 90,000 times that, until the worker turns to another asset.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.errors import MachineError
from schemas.machine import is_trouble
from stages.media.decoder import Decoder, FileIdentity, Frames, Look, identity_of


class Observer(Protocol):
    """Looks at the pictures of one asset."""

    @property
    def look(self) -> Look:
        """How it wants to see them; `start` and `end` are not its to choose."""
        ...

    def see(self, run: Frames) -> None:
        """The next pictures. Their images are there during the call only."""
        ...


class Host(Protocol):
    """Who lends observers what they need; a worker's `stages.base.Context`."""

    @property
    def media(self) -> Decoder:
        """The worker's decoder."""
        ...


O = TypeVar("O", bound=Observer)  # noqa: E741 the usual letter
Wish = tuple[Any, ...]
"""What makes an observer, and what it is made with besides the context: hashable."""


def nobody() -> Iterable[Wish]:
    """Expects nothing."""
    return ()


@dataclass(frozen=True)
class Spent:
    """Time that somebody took."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)


@dataclass
class Seen:
    """What came of decoding an asset's picture."""

    picture: dict[str, Any] = field(default_factory=dict)
    """For `Decoder.probe`."""
    pts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [n]: of every frame, in units of num/den seconds."""
    end_pts: int = 0
    num: int = 0
    den: int = 1
    observers: dict[Wish, Observer | Exception] = field(default_factory=dict)
    """Those who looked on; where one failed, why."""

    @property
    def fps(self) -> float:
        """Mean frame rate; 25 for a single frame without duration, or none."""
        length = (self.end_pts - int(self.pts[0])) * self.num / self.den if len(self.pts) else 0.0
        return len(self.pts) / length if length > 0 else 25.0


class AssetPass:
    """The worker's asset pass; it remembers what was seen of the last asset."""

    def __init__(self, context: Host) -> None:
        self._context = context
        self.expect: Callable[[], Iterable[Wish]] = nobody
        """Who else will ask about the next asset; set by whoever carries assets through stages."""
        self.spent: dict[Wish, Spent] = {}
        """What observers took so far, of which whoever adds up the cost of stages takes note."""
        self._file: FileIdentity | None = None
        self._seen = Seen()

    def seen(self, path: Path) -> Seen:
        """What is known of the pictures of `path` as a whole. Raises MediaError where it cannot be opened."""
        if self._file != identity_of(path):
            self._show(path, self.expect())
        return self._seen

    def look(self, path: Path, make: Callable[..., O], *arguments: Any) -> O:
        """The observer `make(context, *arguments)`, which has seen every picture of `path`, if there is any.

        Raises whatever it raised, and MediaError where the file cannot be opened.
        """
        wish: Wish = (make, *arguments)
        if self._file != identity_of(path) or wish not in self._seen.observers:
            self._show(path, [*self.expect(), wish])
        found = self._seen.observers[wish]
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[return-value]

    def _show(self, path: Path, wishes: Iterable[Wish]) -> None:
        """Decodes `path` before all of `wishes`; observers of the same asset that looked on before keep their place."""
        file = identity_of(path)
        known = self._seen.observers if file == self._file else {}
        self._file, self._seen = None, Seen(observers=known)
        audience: dict[Wish, Observer | Exception] = {}
        for wish in wishes:
            if wish not in known and wish not in audience:
                audience[wish] = self._try(wish, partial(wish[0], self._context, *wish[1:]))
        places = [wish for wish, observer in audience.items() if not isinstance(observer, Exception)]
        shown = self._context.media.watch(path, [audience[wish].look for wish in places])  # type: ignore[union-attr]
        stamps: list[NDArray[np.int64]] = []
        while True:
            try:
                run, drawn = next(shown)
            except StopIteration as end:
                self._seen.picture = end.value
                break
            stamps.append(run.pts)
            self._seen.end_pts, self._seen.num, self._seen.den = run.end_pts, run.num, run.den
            for wish, frames in zip(places, drawn, strict=True):
                observer = audience[wish]
                if not isinstance(observer, Exception) and len(frames.pts):
                    audience[wish] = self._try(wish, partial(_shown, observer, frames))
        self._seen.pts = np.concatenate(stamps) if stamps else self._seen.pts
        self._seen.observers = known | audience
        self._file = file

    def _try(self, wish: Wish, step: Callable[[], Observer]) -> Observer | Exception:
        """What `step` returns or, unless it is the machine's fault, raises; its time is booked on `wish`."""
        wall, cpu = time.monotonic(), time.process_time()
        try:
            return step()
        except MachineError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and is_trouble(error):
                raise
            return error
        finally:
            used = Spent(time.monotonic() - wall, time.process_time() - cpu)
            self.spent[wish] = self.spent.get(wish, Spent()) + used


def _shown(observer: Observer, run: Frames) -> Observer:
    observer.see(run)
    return observer
