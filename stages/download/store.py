"""Content-addressed store of assets: `ab/abcdef....ext`, named by the sha256 of the bytes, written whole or not at all."""

from __future__ import annotations

import random
import re
from pathlib import Path

from schemas.files import publish_file
from stages.objects import put


def suffix_of(name: str) -> str:
    """The suffix to keep for people's sake, lower case; empty if it does not look like one."""
    found = re.search(r"\.([A-Za-z0-9]{1,5})$", name)
    return f".{found[1].lower()}" if found else ""


class AssetStore:
    """A local folder or an fsspec URL (`s3://bucket/assets`) of assets."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.is_local = "://" not in self.root

    def partial_dir(self, otherwise: Path) -> Path:
        """Where downloads under way are kept so that a later run resumes them; `otherwise` for a remote store."""
        folder = Path(self.root, ".partial") if self.is_local else otherwise / "partial"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def put(self, path: Path, sha256_hex: str, suffix: str, *, keep: bool) -> str:
        """Path or URL of the stored bytes of `path`; content that is there already is not written again.

        `keep` leaves `path` in place (as a hard link where the file system allows), otherwise it is moved. Raises
        MachineError where a remote store is away.
        """
        place = f"{sha256_hex[:2]}/{sha256_hex}"
        return self._put_local(path, place, suffix, keep) if self.is_local else self._put_remote(path, place, suffix)

    def link(self, path: Path, sha256_hex: str, suffix: str) -> str:
        """Path by which `path` can be read under the name of its content: a link, or the stored bytes of a remote store."""
        if not self.is_local:
            return self.put(path, sha256_hex, suffix, keep=True)
        target = Path(self.root, sha256_hex[:2], sha256_hex + suffix).absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        made = target.with_name(f"{target.name}.{random.getrandbits(32):08x}")
        made.symlink_to(path.absolute())
        made.replace(target)
        return str(target)

    def _put_local(self, path: Path, place: str, suffix: str, keep: bool) -> str:
        target = Path(self.root, place + suffix).absolute()
        there = next(iter(sorted(target.parent.glob(f"{Path(place).name}*"))), None)
        if there is not None and there.stat().st_size == path.stat().st_size:
            if not keep:
                path.unlink()
            return str(there)
        publish_file(path, target, keep=keep)
        return str(target)

    def _put_remote(self, path: Path, place: str, suffix: str) -> str:
        url = f"{self.root}/{place}{suffix}"
        put(path, url)
        return url
