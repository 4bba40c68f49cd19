"""Published networks that a recipe has paths for: refused at the start where nothing lies there, else one for a whole worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from schemas.errors import RecipeError
from stages.base import Context


class Loadable(Protocol):
    """A network whose weights are read when it is first asked, or told to."""

    def ready(self) -> None:
        """Reads them."""
        ...


N = TypeVar("N", bound=Loadable)


def asked(ctx: Context, device: str, make: Callable[[Path, str], N], setting: str, path: str, *inside: str) -> N | None:
    """The network at `path`, which the recipe gives as `setting`, one for all stages of a worker; None for no path.

    Raises RecipeError where nothing lies there, and ModelError where it is another network.
    """
    if not path:
        return None
    place = Path(path).expanduser()
    if not place.joinpath(*inside).is_file():
        raise RecipeError(
            f"{setting}: '{place.joinpath(*inside)}' does not exist.",
            remedy="Set it to the published weights, or leave it empty, and that network is not asked.",
        )
    network: N = ctx.model(loaded, make, place, device)
    return network


def loaded(make: Callable[[Path, str], N], place: Path, device: str) -> N:
    """The network at `place`, its weights read."""
    network = make(place, device)
    network.ready()
    return network
