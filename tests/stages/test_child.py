"""A child is contained: what it does to itself costs one request and reaches nobody else."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ItemError, MachineError
from schemas.machine import is_trouble
from stages.child import Child, ChildDiedError, ChildMemoryError, ChildTimeoutError
from stages.seal import CPU_S, KEPT, OPEN_FILES

CHILD = """
import errno, mmap, os, resource, signal, socket, subprocess, sys, threading, time
from schemas.errors import MediaError
from stages.child import contain, progress, serve

def answer(operation, arguments):
    if operation == "count":
        return ({"number": n} for n in range(arguments["to"]))
    if operation == "add":
        print("a library that prints")
        return arguments["a"] + arguments["b"]
    if operation == "refuse":
        raise MediaError("no.", reason="not_today", remedy="Come back.")
    if operation == "grow":
        return len(bytearray(arguments["bytes"]))
    if operation == "die":
        sys.exit(arguments["words"])
    if operation == "signal":
        signal.raise_signal(arguments["number"])
    if operation == "write":
        with open(arguments["path"], "wb", 0) as file:
            file.write(bytes(1))
    if operation == "read":
        raise type("ReadError", (OSError,), {})(errno.EIO, "a library finds the file damaged")
    if operation == "map":
        return len(mmap.mmap(-1, arguments["bytes"]))
    if operation == "import":
        import a_module_that_is_missing
    if operation == "limits":
        return [resource.getrlimit(resource.RLIMIT_CORE), os.environ["OMP_NUM_THREADS"], sys.argv[4:]]
    if operation == "family":
        return FAMILY.pid
    if operation == "environment":
        return dict(os.environ)
    if operation == "attempts":
        return {name: number_of(attempt) for name, attempt in ATTEMPTS.items()}
    if operation == "fill":
        with open(arguments["path"], "wb", 0) as file:
            file.truncate(arguments["bytes"])
    if operation == "thread":
        thread = threading.Thread(target=print)
        thread.start()
        thread.join()
        return "ran"
    if operation == "sleep":
        time.sleep(600)
    if operation == "work":
        for _ in range(50):
            time.sleep(0.1)
            progress()
        return "done at last"

def number_of(attempt):
    try:
        attempt()
    except OSError as error:
        return error.errno
    return 0

ATTEMPTS = {
    "network": lambda: socket.socket(),
    "local socket": lambda: socket.socket(socket.AF_UNIX),
    "program": lambda: os.execv("/bin/true", ["true"]),
    "process": os.fork,
    "signal": lambda: os.kill(os.getppid(), 0),
    "spawned": lambda: os.posix_spawn("/bin/true", ["true"], {}),
}
if "family" in sys.argv:
    FAMILY = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)

serve(contain(), answer)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Child]]:
    """Starts children of the module above."""
    (tmp_path / "contained_here.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started: list[Child] = []

    def one(*arguments: str, memory_gb: float = 1.0, retire_gb: float = 1.0, file_gb: float = 1.0) -> Child:
        started.append(Child("contained_here", *arguments, memory_gb=memory_gb, retire_gb=retire_gb, file_gb=file_gb))
        return started[-1]

    yield one
    for child in started:
        child.kill()


def is_running(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def eventually(holds: Callable[[], bool], within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


def test_answers_come_in_order_and_printing_does_not_disturb_them(start: Any) -> None:
    child = start("one", "two")
    assert child.ask("add", {"a": 1, "b": 2}, 60) == 3
    messages = list(child.request("count", {"to": 3}, 60))
    assert messages == [*({"chunk": {"number": n}} for n in range(3)), {"done": {}}]
    assert child.ask("limits", {}, 60) == [[0, 0], "1", ["one", "two"]]
    assert not child.is_busy
    assert child.cpu_since() > 0
    assert child.cpu_since() == 0


def test_a_refusal_is_an_item_error_and_the_child_goes_on(start: Any) -> None:
    child = start()
    with pytest.raises(ItemError, match=r"no\. Come back\.") as caught:
        child.ask("refuse", {}, 60)
    assert caught.value.reason == "not_today"
    assert child.ask("add", {"a": 1, "b": 1}, 60) == 2


def test_the_last_words_of_a_child_that_dies_are_told(start: Any) -> None:
    child = start()
    with pytest.raises(ChildDiedError) as caught:
        child.ask("die", {"words": "first line\nthe voice is gone"}, 60)
    assert str(caught.value) == "ended with status 1: the voice is gone"
    assert child.exit_status == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_is_killed_from_outside_is_the_machines_trouble(start: Any, number: int) -> None:
    """As when memory runs out, or a node stops; nobody of ours kills a child without saying so."""
    with pytest.raises(MachineError, match=f"from outside by signal {number}.*the same command goes on"):
        start().ask("signal", {"number": number}, 60)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGBUS])
def test_a_child_that_crashes_does_so_over_what_it_was_given(start: Any, number: int) -> None:
    with pytest.raises(ChildDiedError, match=f"was ended by signal {number}$"):
        start().ask("signal", {"number": number}, 60)


def test_the_systems_trouble_crosses_the_border_with_its_number_and_the_child_goes_on(start: Any) -> None:
    child = start()
    with pytest.raises(OSError, match="No space left") as caught:
        child.ask("write", {"path": "/dev/full"}, 60)
    assert (caught.value.errno, is_trouble(caught.value)) == (errno.ENOSPC, True)
    assert child.ask("add", {"a": 1, "b": 1}, 60) == 2


def test_a_library_that_calls_a_file_unreadable_is_no_trouble_of_the_system(start: Any) -> None:
    with pytest.raises(ChildDiedError, match="finds the file damaged"):
        start().ask("read", {}, 60)


@pytest.mark.parametrize(
    ("module", "memory_gb", "says"),
    [("there_is_no_such_module", 1.0, "No module named"), ("contained_here", 0.02, "before it began")],
)
def test_a_child_that_does_not_begin_is_nobodys_fault(start: Any, module: str, memory_gb: float, says: str) -> None:
    start()
    child = Child(module, memory_gb=memory_gb, retire_gb=1.0)
    with pytest.raises(MachineError, match=f"{module} cannot work on.*{says}"):
        child.ask("add", {"a": 1, "b": 1}, 60)


def test_a_package_that_is_missing_is_nobodys_fault(start: Any) -> None:
    with pytest.raises(MachineError, match="a_module_that_is_missing"):
        start().ask("import", {}, 60)


def test_more_memory_than_allowed_is_refused_by_the_system(start: Any) -> None:
    child = start(memory_gb=0.5)
    assert child.ask("grow", {"bytes": 2**20}, 60) == 2**20
    with pytest.raises(ChildMemoryError):
        child.ask("grow", {"bytes": 2**30}, 60)
    assert child.exit_status is not None
    with pytest.raises(ChildMemoryError):
        start(memory_gb=0.5).ask("map", {"bytes": 2**30}, 60)


def test_a_child_that_has_grown_says_so_with_its_answer(start: Any) -> None:
    child = start(retire_gb=0.1)
    child.ask("grow", {"bytes": 2**20}, 60)
    assert not child.has_grown
    assert child.ask("grow", {"bytes": 2**28}, 60) == 2**28
    assert child.has_grown


def test_a_late_child_is_ended_with_all_it_started(start: Any) -> None:
    child = start("family")
    grandchild = child.ask("family", {}, 60)
    assert is_running(grandchild)
    with pytest.raises(ChildTimeoutError, match=r"longer than 0\.2 s"):
        child.ask("sleep", {}, 0.2)
    assert child.exit_status == -9
    assert eventually(lambda: not is_running(grandchild))


def test_a_dead_child_takes_its_family_with_it(start: Any) -> None:
    child = start("family")
    grandchild = child.ask("family", {}, 60)
    with pytest.raises(ChildDiedError):
        child.ask("die", {"words": "bye"}, 60)
    assert eventually(lambda: not is_running(grandchild))


def test_a_child_is_told_nothing_it_has_no_use_for(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("LC_TIME", "C")
    told = start().ask("environment", {}, 60)
    assert told["LC_TIME"] == "C"
    assert set(told) - {"LC_TIME", "LC_CTYPE", "LC_ALL"} <= {*KEPT, "PYTHONPATH", "OMP_NUM_THREADS"}
    assert "hunter2" not in str(told)


@pytest.mark.skipif(find_library("seccomp") is None, reason="the system has no libseccomp")
def test_a_child_reaches_no_network_no_program_and_no_other_process(start: Any) -> None:
    child = start()
    assert set(child.ask("attempts", {}, 60).values()) == {errno.EPERM}
    assert child.ask("thread", {}, 60) == "ran"
    status = Path(f"/proc/{child.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


def test_a_file_grows_no_further_than_it_may(start: Any, tmp_path: Path) -> None:
    child = start(file_gb=0.001)
    with pytest.raises(OSError, match="too large"):
        child.ask("fill", {"path": str(tmp_path / "large"), "bytes": 2 << 20}, 60)
    assert child.ask("add", {"a": 1, "b": 1}, 60) == 2
    assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE)[0] <= OPEN_FILES
    assert resource.prlimit(child.pid, resource.RLIMIT_CPU)[0] <= CPU_S + 60


def test_waiting_of_the_caller_is_not_counted(start: Any) -> None:
    child = start()
    numbers = child.request("count", {"to": 3}, 10.0)
    next(numbers)
    time.sleep(0.05)
    assert [m for m in numbers if "done" in m] == [{"done": {}}]


def test_children_end_with_their_parent(start: Any, tmp_path: Path) -> None:
    """The parent is killed while its child is in the middle of a request."""
    code = (
        "import os, threading, time\nfrom stages.child import Child\n"
        "child = Child('contained_here', memory_gb=1, retire_gb=1)\n"
        "child.ask('add', {'a': 1, 'b': 1}, 60)\n"
        "threading.Thread(target=lambda: child.ask('sleep', {}, 600), daemon=True).start()\n"
        "print(child.pid, flush=True)\ntime.sleep(600)"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])])
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    assert eventually(lambda: not is_running(pid))


@pytest.mark.parametrize(
    "module", ["stages.child", "stages.transcribe.child", "stages.media.child", "pipeline.espeak_child"]
)
def test_children_import_little(module: str) -> None:
    heavy = ("torch", "ray", "cv2", "pyarrow", "pydantic", "scipy", "yaml")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_child_that_makes_progress_may_take_longer_than_its_limit(start: Callable[..., Child]) -> None:
    assert start().ask("work", {}, 3.0) == "done at last"
    with pytest.raises(ChildTimeoutError):
        start().ask("sleep", {}, 3.0)
