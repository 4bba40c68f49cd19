"""Lets `torchaudio` import beside a CPU build of torch.

The torchaudio wheels on PyPI are CUDA builds: their compiled extension needs libcudart, so `import torchaudio` raises OSError
where torch itself is a CPU build, and pyannote.audio and whisperx import torchaudio. Everything they use is written in Python
and does not need the extension. On a CUDA build of torch this does nothing.
"""

from __future__ import annotations

import sys
import warnings
from types import ModuleType
from typing import Any


def make_torchaudio_importable() -> None:
    """To be called before the first import of torchaudio, whisperx or pyannote.audio. Costs one import of torch.

    Puts a stand-in for `torchaudio._extension` into sys.modules that reports the compiled parts as absent. What is then
    missing is forced_align, the RNN-T loss and CTC decoding, none of which is used here. pyannote.audio's page-long warning
    that torchcodec cannot be loaded is left out as well: sound is handed over decoded.
    """
    import torch

    warnings.filterwarnings("ignore", message=r"\s*torchcodec is not installed", category=UserWarning)

    if torch.version.cuda is not None or "torchaudio" in sys.modules:
        return
    name = "torchaudio._extension"
    stand_in: Any = ModuleType(name, "Stand-in for torchaudio's compiled extension, which needs CUDA.")
    stand_in.__path__ = []
    stand_in._IS_TORCHAUDIO_EXT_AVAILABLE = False
    stand_in._IS_ALIGN_AVAILABLE = False
    stand_in._check_cuda_version = _no_cuda
    stand_in.fail_if_no_align = _fail_if_no_align
    sys.modules.setdefault(name, stand_in)


def _no_cuda() -> None:
    return None


def _fail_if_no_align(function: Any) -> Any:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError(
            f"torchaudio's {function.__name__} needs its compiled extension, absent on CPU builds of torch"
        )

    return refuse
