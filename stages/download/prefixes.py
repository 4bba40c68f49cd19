"""The objects below a prefix of an object store, or that a pattern matches; what is left out is said."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from schemas.errors import RecipeError
from schemas.public import public_uri, told_of
from stages.download.companions import HIDDEN, OWN_FOLDERS, own_roots, stems_of, why_no_medium
from stages.download.skips import Skips
from stages.objects import at_store, other_side
from stages.retry import TryAgainError


def objects_of(url: str, skips: Skips) -> Iterator[str]:
    """URLs of the media that a URL names, sorted: an object, a prefix (a folder), or a pattern with `*`, `?` or `[...]`.

    A URL of which the store says nothing is taken as it is: fetching it will say why. Raises RecipeError for a pattern or
    prefix with nothing to take, and MachineError where the store stays away.
    """
    try:
        base, names = _listed(url)
    except (ImportError, ValueError):
        yield url
        return
    if names == [""] or not (names or url.endswith("/") or glob.has_magic(url)):
        yield url
        return
    found = list(_media(names, skips))
    if not found:
        rest = f"; {'; '.join(skips.lines())}" if skips.counts else ""
        raise RecipeError(
            f"Nothing that can be a source lies at '{public_uri(url)}'{rest}.", remedy="Check the address."
        )
    yield from (f"{base}{name}" for name in found)


def _listed(url: str) -> tuple[str, list[str]]:
    """(URL that names stand behind, sorted names of the objects there); the name "" is the object at the URL itself."""
    import fsspec  # type: ignore[import-untyped]

    def asked() -> tuple[str, list[str]]:
        with discreet(url):
            fs, place = fsspec.core.url_to_fs(url)
            if not url.endswith("/") and fs.isfile(place):
                return url, [""]
            if not glob.has_magic(url):
                base, found = url.rstrip("/") + "/", fs.find(place)
            else:
                base = url[: len(_before_magic(url))]
                found = [each for each, told in fs.glob(place, detail=True).items() if told["type"] == "file"]
            root = fs._strip_protocol(base).rstrip("/") + "/"
            return base, sorted(str(each).removeprefix(root) for each in found if not str(each).endswith("/"))

    return at_store(public_uri(url), asked)


@contextmanager
def discreet(url: str) -> Iterator[None]:
    """`other_side`, whose errors do not repeat what is secret in `url`."""
    try:
        with other_side():
            yield
    except TryAgainError as error:
        raise TryAgainError(told_of(url, error), error.wait_s) from error.__cause__


def _before_magic(url: str) -> str:
    """The part of a pattern that is a folder for certain."""
    first = min(url.find(mark) for mark in "*?[" if mark in url)
    return url[: url.rindex("/", 0, first) + 1]


def _media(names: list[str], skips: Skips) -> Iterator[str]:
    """Those names that may be media."""
    roots = own_roots(names)
    beside: dict[PurePosixPath, list[PurePosixPath]] = defaultdict(list)
    for name in names:
        beside[PurePosixPath(name).parent].append(PurePosixPath(name))
    stems = {parent: stems_of(paths) for parent, paths in beside.items()}
    for root in sorted(roots):
        skips.add(OWN_FOLDERS, root or ".")
    for name in names:
        path = PurePosixPath(name)
        if roots and ("" in roots or any(str(parent) in roots for parent in path.parents)):
            continue
        is_hidden = any(part.startswith(".") for part in path.parts)
        why = HIDDEN if is_hidden else why_no_medium(path, stems[path.parent])
        if why is None:
            yield name
        else:
            skips.add(why, name)
