"""What a child process gives up before it works on bytes from elsewhere, so that whoever takes it over gets little.

| what | where |
| --- | --- |
| environment: nothing but `KEPT` variables, so no keys and tokens | everywhere |
| address space, size of a written file, open files, processor time of a request, core dumps | everywhere (setrlimit) |
| no program gains rights by being started (no_new_privs) | Linux |
| no network, no other program, no signal to or look into other processes, no mounts or namespaces | Linux with libseccomp.so.2 |

Debian, Ubuntu and Fedora have libseccomp in their base images. Containers allow a process to filter its own system calls, where
they mostly forbid it a network namespace of its own. Files are as open to the child as to its user.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys
from collections.abc import Mapping

KEPT = ("PATH", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHASHSEED")
"""Variables a child is started with; besides them those that begin with LC_."""
OPEN_FILES = 256
CPU_S = 24 * 3600
"""Processor time of one request: a day decodes 60 h of 1080p H.264. What stands still is ended long before."""
PR_SET_NO_NEW_PRIVS = 38
"""linux/prctl.h."""
CLONE_THREAD = 0x10000
"""linux/sched.h: what is made is a thread."""
DENIED = (
    "socket", "socketpair", "connect", "bind", "listen", "accept", "accept4",
    "fork", "vfork", "execve", "execveat",
    "kill", "tkill", "pidfd_open", "pidfd_send_signal", "ptrace", "process_vm_readv", "process_vm_writev",
    "mount", "umount2", "pivot_root", "chroot", "unshare", "setns",
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "add_key", "request_key", "keyctl",
)  # fmt: skip
"""System calls that nothing which decodes needs; each fails with EPERM."""


def environment(pythonpath: str) -> Mapping[str, str]:
    """The variables a child is started with."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("LC_")}
    return {**kept, "PYTHONPATH": pythonpath, "OMP_NUM_THREADS": "1"}


def limit(memory_bytes: int, file_bytes: int) -> None:
    """Sets this process's limits for good."""
    lowered(resource.RLIMIT_AS, memory_bytes)
    lowered(resource.RLIMIT_FSIZE, file_bytes)
    lowered(resource.RLIMIT_NOFILE, OPEN_FILES)
    lowered(resource.RLIMIT_CORE, 0)


def lowered(what: int, most: int) -> None:
    """Sets one limit, never above what there is."""
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def allow_time() -> None:
    """Lets the next request have its processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    until = int(used.ru_utime + used.ru_stime) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (until if hard == resource.RLIM_INFINITY else min(until, hard), hard))


def seal() -> None:
    """Gives up, for all threads of this process and for good, what the table says; less where the system knows less."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    try:
        import pyseccomp
    except (ImportError, RuntimeError):  # it says RuntimeError where there is no libseccomp
        return
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    rules.set_attr(pyseccomp.Attr.CTL_TSYNC, 1)
    for name in DENIED:
        rules.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
    is_process = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, CLONE_THREAD, 0)
    rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", is_process)
    rules.add_rule(
        pyseccomp.ERRNO(errno.ENOSYS), "clone3"
    )  # its flags lie in memory; the C library falls back to clone
    rules.load()
