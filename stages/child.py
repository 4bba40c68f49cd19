"""A child process that can crash, hang or grow without costing its caller more than one request.

Whoever runs code that untrusted bytes can bring down (decoders, C libraries) runs it behind `Child`, in a module whose
`main` calls `contain` and then `serve`. The caller starts it as `python -P -m MODULE MEMORY_BYTES RETIRE_BYTES FILE_BYTES ...`
and both sides speak JSON lines:

    at first   {"ready": true}, once everything is imported
    request    {"operation": NAME, argument: value, ...}
    answers    {"chunk": ...}, any number, each acknowledged by a line so that at most two chunks exist at a time
               {"alive": true} every second for as long as the operation calls `progress`
               then one of {"done": ...}, {"error": ..., "reason": ..., "remedy": ...}, {"no_memory": true},
               {"trouble": [errno, ...]}, {"missing": MODULE}

The child may not use more address space than it was told, ends when its parent does, and gives up what it has no use for
(`stages.seal`).

A request can fail in two ways. What its input did (a crash, too much memory, a standstill) is a ChildError or an ItemError.
What the machine did (a full disk, a kill from outside, a child that does not even start) is an OSError as the system reported
it (`schemas.machine`) or a MachineError, and no input's fault. This module imports the standard library, `stages.seal`,
`schemas.errors` and `schemas.machine` only.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from schemas.errors import ItemError, MachineError
from schemas.machine import GOES_ON, is_trouble, oom_kills
from stages.seal import allow_time, environment, limit, seal

ALIVE_EVERY_S = 1.0
"""How often a child that makes progress says so; a limit on standing still means little below twice that."""
PARENT_POLL_S = 2.0
"""How often a child looks whether its parent still lives."""
FILE_GB = 4.0
"""Largest file a child may write, unless it is told otherwise."""
TAIL_BYTES = 400
"""End of the child's stderr that is searched for its last line."""
CRASHES = frozenset(
    {
        signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS,
        signal.SIGXCPU, signal.SIGXFSZ,
    }
)  # fmt: skip
"""Signals by which a process ends over its input. Any other comes from outside: the system without memory, a node that stops."""

Message = dict[str, Any]


class ChildError(Exception):
    """The child gave no answer to a request and has been ended."""


class ChildTimeoutError(ChildError):
    """It did not answer in time."""


class ChildMemoryError(ChildError):
    """It reached its memory limit and said so."""


class ChildDiedError(ChildError):
    """It ended over what it was given."""

    def __init__(self, how: str, last_line: str) -> None:
        super().__init__(f"{how}: {last_line}" if last_line else how)
        self.how = how
        """With which status or by which signal."""
        self.last_line = last_line
        """What it last wrote to stderr."""


class Child:
    """One child process and its two pipes, with at most `memory_gb` of address space and one thread for arithmetic.

    No file it writes may grow beyond `file_gb`. `arguments` follow the limits on its command line, `shared` are open files that
    it gets as well. Once it has touched more than `retire_gb` of memory, `has_grown` tells its owner to let another take over.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        memory_gb: float,
        retire_gb: float,
        file_gb: float = FILE_GB,
        shared: Sequence[int] = (),
    ) -> None:
        root = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        limits = [str(int(gb * 2**30)) for gb in (memory_gb, retire_gb, file_gb)]
        self.is_busy = False
        """Whether a request is not answered to the end; then it can only be killed."""
        self.has_grown = False
        self._module, self._is_ready, self._oom_kills = module, False, oom_kills()
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 lives as long as the child
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *limits, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env=environment(paths),
                pass_fds=shared,
                start_new_session=True,
            )
        except OSError as error:
            self._complaints.close()
            raise MachineError(f"{module} cannot be started: {error}.", remedy=f"Look at that; {GOES_ON}") from error
        assert self._process.stdin
        assert self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        self._pending = b""
        self._cpu_s = self._known_cpu_s = 0.0
        self._counts: Counter[str] = Counter()
        self._known_counts: Counter[str] = Counter()

    @property
    def pid(self) -> int:
        """Process id, which is also that of its group."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs, else its status, negative for a signal."""
        return self._process.poll()

    def request(self, operation: str, arguments: Message, timeout_s: float) -> Iterator[Message]:
        """`{"chunk": ...}` messages as they come, then `{"done": ...}`.

        `timeout_s` is how long it may stand still, not how long it may take: a long file is no broken one. Raises ItemError
        where the operation raised one, and ChildError, after which the child is gone; OSError and MachineError where it is
        the machine's fault. A caller that stops early has to `kill` it.
        """
        deadline = _Deadline(timeout_s)
        self.is_busy = True
        self._send({"operation": operation, **arguments})
        while True:
            answer = self._receive(deadline)
            if "alive" in answer or "ready" in answer:
                self._is_ready = True
                deadline.restart()
                continue
            if "chunk" in answer:
                deadline.restart()
                self._send({})
                yield answer
                continue
            if "no_memory" in answer:
                self.kill()
                raise ChildMemoryError("needs more memory than allowed")
            self.is_busy, self.has_grown, self._cpu_s = False, answer.pop("has_grown"), answer.pop("cpu_s")
            self._counts = Counter(answer.pop("counts"))
            if "trouble" in answer:
                raise OSError(*answer["trouble"])
            if "missing" in answer:
                raise self._broken(f"misses something: {answer['missing']}")
            if "error" in answer:
                raise ItemError(answer["error"], reason=answer["reason"], remedy=answer["remedy"])
            yield answer
            return

    def ask(self, operation: str, arguments: Message, timeout_s: float) -> Any:
        """The answer to a request without chunks; errors as for `request`."""
        return list(self.request(operation, arguments, timeout_s))[-1]["done"]

    @property
    def cpu_s(self) -> float:
        """Processor seconds it has used, as of its last answer."""
        return self._cpu_s

    def cpu_since(self) -> float:
        """Processor seconds it used since the last call, as of its last answer."""
        used, self._known_cpu_s = max(0.0, self._cpu_s - self._known_cpu_s), self._cpu_s
        return used

    def counted_since(self) -> Counter[str]:
        """What it counted (`count`) since the last call, as of its last answer."""
        new, self._known_counts = self._counts - self._known_counts, self._counts
        return new

    def kill(self) -> None:
        """Ends the child and whatever it started, at once. May be called twice."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        with suppress(BrokenPipeError):  # a request that never left is flushed here once more
            self._in.close()
        self._out.close()
        self._complaints.close()

    def _send(self, message: Message) -> None:
        with suppress(BrokenPipeError):  # the next receive says why the child is gone
            self._in.write(json.dumps(message).encode() + b"\n")
            self._in.flush()

    def _receive(self, deadline: _Deadline) -> Message:
        while b"\n" not in self._pending:
            if not deadline.wait(self._out.fileno()):
                self.kill()
                raise ChildTimeoutError(f"took longer than {deadline.limit_s:g} s and was stopped")
            block = os.read(self._out.fileno(), 1 << 16)
            if not block:
                raise self._death()
            self._pending += block
        line, _, self._pending = self._pending.partition(b"\n")
        answer: Message = json.loads(line)
        return answer

    def _death(self) -> ChildDiedError | MachineError:
        """Whose fault its end is: that of what it was given, or the machine's."""
        if self._process.returncode is None:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)  # unreaped, it still names its group
        size = self._complaints.seek(0, os.SEEK_END)
        self._complaints.seek(max(0, size - TAIL_BYTES))
        tail = self._complaints.read().decode(errors="replace").strip()
        last_line = tail.splitlines()[-1] if tail else ""
        self.kill()
        code = self._process.returncode
        if code < 0 and -code not in CRASHES:
            num_killed = oom_kills() - self._oom_kills
            why = (
                f"memory ran out, {num_killed} processes were ended for it"
                if num_killed
                else "the system does not say why"
            )
            msg = f"{self._module} was ended from outside by signal {-code} on {socket.gethostname()}; {why}."
            return MachineError(msg, remedy=f"Give it more memory or run fewer workers (--cpus); {GOES_ON}")
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        return ChildDiedError(how, last_line) if self._is_ready else self._broken(f"{how} before it began: {last_line}")

    def _broken(self, how: str) -> MachineError:
        msg = f"{self._module} cannot work on {socket.gethostname()}: it {how}."
        return MachineError(msg, remedy=f"Install what constraints.txt names, and allow it enough memory; {GOES_ON}")


class _Deadline:
    """Counts only the time spent waiting for the child, not the time its caller takes between chunks."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = self.left_s = limit_s

    def restart(self) -> None:
        """The child has made progress: all of the time is left again."""
        self.left_s = self.limit_s

    def wait(self, descriptor: int) -> bool:
        """Whether `descriptor` became readable before the time was up."""
        before = time.monotonic()
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN | select.POLLHUP)
        ready = waiting.poll(max(0.0, self.left_s) * 1000)
        self.left_s -= time.monotonic() - before
        return bool(ready)


# --- inside the child


def contain() -> TextIO:
    """Puts this process under the limits in its arguments and returns the stream for `serve`'s answers.

    What libraries print to stdout goes to stderr from here on. To be called before anything heavy is imported.
    """
    limit(memory_bytes=int(sys.argv[1]), file_bytes=int(sys.argv[3]))
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


_steps = 0
"""Calls of `progress` in this process."""


def progress() -> None:
    """The operation has come a step further; called by loops over what a file holds."""
    global _steps  # noqa: PLW0603 one counter per process, read by its own reporter
    _steps += 1


_counts: Counter[str] = Counter()


def count(what: str) -> None:
    """One more of `what` in this process; the sums go with every final answer."""
    _counts[what] += 1


def serve(answers: TextIO, answer: Callable[[str, Message], Any]) -> None:
    """Answers requests from stdin one by one with `answer(operation, arguments)` until stdin closes.

    A generator as its result gives chunks, dataclasses among them as mappings, and what it returns is the final answer. Every
    final answer says what this process has used and counted so far, and whether it has grown too large to serve another.
    """
    retire_bytes = int(sys.argv[2])

    lock = threading.Lock()

    def say(message: Message) -> None:
        with lock:
            answers.write(json.dumps(message, default=asdict) + "\n")
            answers.flush()

    threading.Thread(target=_report_steps, args=(say,), daemon=True).start()
    seal()
    say({"ready": True})

    def finish(message: Message, *, has_grown: bool | None = None) -> None:
        is_large = _peak_bytes() > retire_bytes if has_grown is None else has_grown
        say({**message, "cpu_s": time.process_time(), "counts": dict(_counts), "has_grown": is_large})

    def told(chunks: Generator[Message, None, Any]) -> Any:
        while True:
            try:
                chunk = next(chunks)
            except StopIteration as end:
                return end.value or {}
            say({"chunk": chunk})
            requests.readline()

    with open(0, encoding="utf-8", closefd=False) as requests:
        for line in requests:
            arguments = json.loads(line)
            allow_time()
            try:
                result = answer(arguments.pop("operation"), arguments)
                finish({"done": told(result) if isinstance(result, Generator) else result})
            except ItemError as error:
                finish({"error": error.message, "reason": error.reason, "remedy": error.remedy})
            except ImportError as error:
                finish({"missing": str(error)})
            except OSError as error:
                if not is_trouble(error):
                    raise
                if error.errno == errno.ENOMEM:
                    say({"no_memory": True})
                    return
                why = [error.errno, error.strerror, error.filename]
                finish({"trouble": why}, has_grown=True)  # looking would open a file
            except MemoryError:
                say({"no_memory": True})
                return


def _report_steps(say: Callable[[Message], None]) -> None:
    """Says that the operation goes on, as often as it does."""
    known = _steps
    while True:
        time.sleep(ALIVE_EVERY_S)
        if _steps != known:
            known = _steps
            say({"alive": True})


def _peak_bytes() -> int:
    """Most memory this program held. `ru_maxrss` will not do on Linux: it begins at the size of the parent that forked."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _watch_parent(parent: int) -> None:
    """Ends this process once `parent` is gone, even in the middle of a request."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)
