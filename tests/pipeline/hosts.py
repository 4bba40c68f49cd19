"""Hosts on one machine that can be lost: network, processes and Ray's folder are each host's own, joined by a bridge.

They share the rest of the file system, as hosts with a shared mount do, and reach each other by address only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RAY_FOLDER = Path("/tmp/ray")
"""Where Ray keeps sessions and sockets."""
PROGRAMS = ("ip", "setpriv", "unshare", "nsenter")
KEPT = [
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--net",
    "--pid",
    "--mount",
    "--mount-proc",
    "--fork",
    "--kill-child",
    "sh",
    "-c",
]


@dataclass(frozen=True)
class Host:
    """One of the hosts."""

    address: str
    keeper: subprocess.Popen[str]
    """Ends every process of the host when it is killed."""
    init: int
    """First process of the host, by its number outside."""
    switch: int
    """The same of the host with the bridge."""

    def start(self, *command: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """A process on this host, whose output can be read."""
        inside = ["nsenter", f"--target={self.init}", "--net", "--pid", "--mount", "--", *command]
        out, none = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(inside, stdin=none, stdout=out, stderr=subprocess.STDOUT, text=True, env=environment)

    def commands(self) -> list[str]:
        """What runs on this host."""
        if self.keeper.poll() is not None:
            return []
        found, here = [], os.readlink(f"/proc/{self.init}/ns/pid")
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{pid}/ns/pid") == here:
                    found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def vanish(self) -> None:
        """First nothing is heard of the host any more, then all its processes are gone."""
        if self.keeper.poll() is None:
            _ip(self.switch, "link", "set", f"port{self.address.rpartition('.')[2]}", "down")
            _end(self.keeper)


def why_not() -> str | None:
    """Why there can be no hosts here; None if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"these programs are missing: {missing}"
    tried = subprocess.run([*KEPT, "true"], capture_output=True, text=True, check=False)
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


@contextmanager
def hosts(number: int, folder: Path) -> Iterator[Sequence[Host]]:
    """`number` hosts at 10.77.0.1 and so on; all that runs on them is killed in the end."""
    RAY_FOLDER.mkdir(exist_ok=True)
    keepers: list[subprocess.Popen[str]] = []

    def kept(prepared: str) -> int:
        """The first process of a host of its own."""
        command = [*KEPT, f"{prepared} && ip link set lo up && echo ready && exec sleep infinity"]
        keepers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert keepers[-1].stdout.readline() == "ready\n"
        return int(Path(f"/proc/{keepers[-1].pid}/task/{keepers[-1].pid}/children").read_text())

    try:
        switch = kept("ip link add bridge type bridge && ip link set bridge up")
        found = []
        for at in range(1, number + 1):
            ray = folder / f"ray{at}"
            ray.mkdir(parents=True)
            init = kept(f"mount --bind {ray} {RAY_FOLDER}")
            port = f"port{at}"
            _ip(switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(init))
            _ip(switch, "link", "set", port, "master", "bridge", "up")
            _ip(init, "address", "add", f"10.77.0.{at}/24", "dev", "eth0")
            _ip(init, "link", "set", "eth0", "up")
            found.append(Host(f"10.77.0.{at}", keepers[-1], init, switch))
        yield found
    finally:
        for keeper in keepers:
            _end(keeper)


def _end(keeper: subprocess.Popen[str]) -> None:
    keeper.kill()
    keeper.wait()


def _ip(init: int, *arguments: str) -> None:
    subprocess.run(["nsenter", f"--target={init}", "--net", "ip", *arguments], check=True)
