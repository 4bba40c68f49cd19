"""A profile of a few steps of one rank, asked for by a signal while training runs: `kill -USR2 PID`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch


class ProfileWindow:
    """Traces the next steps once `requested` is set; each ends up as a file that Perfetto and chrome://tracing open."""

    def __init__(self, folder: Path, rank: int, num_steps: int) -> None:
        self._folder, self._rank, self._num_steps = folder, rank, num_steps
        self.requested = threading.Event()
        self._profiler: Any = None
        self._left = 0

    def before_step(self) -> None:
        """Call before each step. Cost without a request: nothing."""
        if self._profiler is None and self.requested.is_set():
            self.requested.clear()
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=kinds, record_shapes=True)
            self._profiler.start()
            self._left = self._num_steps

    def after_step(self, step: int) -> None:
        """Call after each step; writes the trace after the last one of the window."""
        if self._profiler is None:
            return
        self._left -= 1
        if self._left:
            return
        self._profiler.stop()
        path = self._folder / f"step-{step:08d}-rank{self._rank:05d}.json.gz"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._profiler.export_chrome_trace(str(path))
            print(f"profile of {self._num_steps} steps up to step {step}: {path}", flush=True)
        except OSError as error:
            print(f"the profile cannot be written to {path} ({error.strerror})", flush=True)
        self._profiler = None
