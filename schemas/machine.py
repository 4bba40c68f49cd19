"""Trouble of the machine: what the system reports that is no file's fault, and the sentence that ends a run over it."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

from schemas.errors import MachineError

GOES_ON = "afterwards the same command goes on, and nothing is lost."
REMEDIES = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "Make room there under the quota, or raise it",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or use another file system",
    errno.EROFS: "Make it writable",
    errno.EIO: "Check the disk, or leave that file out if no other is concerned",
    errno.ESTALE: "Mount it again",
    errno.ENOTCONN: "Mount it again",
    errno.EMFILE: "Raise the limit on open files (ulimit -n)",
    errno.ENFILE: "Raise the system's limit on open files (sysctl fs.file-max)",
    errno.ENOMEM: "Free memory there, or run fewer workers (--cpus)",
}
"""What the system reports of itself, and what to do about it. Of any other error some file or server may be the cause."""
FORBIDDEN = (errno.EACCES, errno.EPERM)
"""Trouble where a run writes: a source that may not be read is a matter of that source."""
SHORT_GB = 0.5
"""Free memory below which an allocation that fails says nothing about the file it was for."""
OF_FILES = (errno.EMFILE, errno.ENFILE)
GROUP_FILE, GROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def is_trouble(error: BaseException | None) -> bool:
    """Whether the system reports trouble of its own. Libraries that say EIO, by classes of their own, mean a damaged file."""
    return (
        isinstance(error, OSError) and error.errno in REMEDIES and (error.errno != errno.EIO or type(error) is OSError)
    )


def trouble_of(error: BaseException, places: Iterable[str | Path] = ()) -> MachineError | None:
    """`error` as one that ends the run: what happened, where, how much is left, what to do; None if it is no such thing.

    Where the system does not name the file it is the fullest of `places`, the folders that were being written to.
    """
    if isinstance(error, MachineError):
        return error
    host = socket.gethostname()
    if isinstance(error, MemoryError) and _free_memory_gb() < SHORT_GB:
        msg = f"Memory ran out on {host}, where {_free_memory_gb():.1f} GB are free."
        return MachineError(msg, remedy=f"{REMEDIES[errno.ENOMEM]}; {GOES_ON}")
    local = [str(place) for place in places if str(place) and "://" not in str(place)]
    if isinstance(error, PermissionError) and (where := _within(str(error.filename2 or error.filename), local)):
        what = os.strerror(error.errno or errno.EACCES)
        return MachineError(
            f"{what}: '{where}' on {host}, where the run writes.", remedy=f"Let this user write there; {GOES_ON}"
        )
    if not is_trouble(error):
        return None
    assert isinstance(error, OSError)
    assert error.errno is not None
    what = os.strerror(error.errno)
    if error.errno in OF_FILES:
        left = f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]} files may be open at once"
    elif error.errno == errno.ENOMEM:
        left = f"{_free_memory_gb():.1f} GB of memory are free"
    else:
        copied_to = None if error.errno == errno.EIO else error.filename2
        named = str(copied_to or error.filename or "")
        where = named or min(local, key=_free_bytes, default="")
        what, left = f"{what}: '{where}'" if where else what, _room(where)
    return MachineError(f"{what} on {host}, where {left}.", remedy=f"{REMEDIES[error.errno]}; {GOES_ON}")


def _within(path: str, places: Iterable[str]) -> str:
    """`path` if it lies in one of `places`, else nothing."""
    name = Path(path).absolute()
    return path if any(name.is_relative_to(Path(place).absolute()) for place in places) else ""


def _room(where: str) -> str:
    if not where:
        return "it is not known which disk that is"
    usage = shutil.disk_usage(_existing(where))
    return f"{usage.free / 1e9:.2f} of {usage.total / 1e9:.2f} GB are free"


def _free_bytes(place: str) -> int:
    return shutil.disk_usage(_existing(place)).free


def _existing(where: str) -> Path:
    path = Path(where).absolute()
    return next(each for each in (path, *path.parents) if each.is_dir())


def _free_memory_gb() -> float:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def limit_memory(more_gb: float) -> None:
    """Lets this process take `more_gb` of memory beyond what it has: an allocation past that fails as MemoryError.

    Counted is what only this process can write (RLIMIT_DATA; Linux counts mappings as well since 4.7). Elsewhere it does nothing.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return
    sizes = dict(line.split(":", 1) for line in status.read_text().splitlines())
    most = int(sizes["VmData"].split()[0]) * 1024 + int(more_gb * 1e9)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def oom_kills(group_file: Path = GROUP_FILE, root: Path = GROUP_ROOT) -> int:
    """Processes of this one's control group that the kernel has ended for want of memory; 0 where it does not say."""
    if not group_file.exists():
        return 0
    found = 0
    for line in group_file.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            folder, name = (root / "memory", "memory.oom_control") if controllers else (root, "memory.events")
            for counts in (
                folder / path.lstrip("/") / name,
                folder / name,
            ):  # a container's group is mounted as the root
                if counts.is_file():
                    told = dict(each.split() for each in counts.read_text().splitlines())
                    found = max(found, int(told.get("oom_kill", 0)))
    return found
