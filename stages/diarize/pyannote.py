"""Diarization by a pyannote.audio pipeline that lies in a local folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecipeError
from schemas.spans import SPEECH_RATE_HZ, Turn
from stages.diarize.diarized import Diarized


@dataclass
class PyannoteDiarizer:
    """Any `pyannote.audio` pipeline with local weights, such as pyannote/speaker-diarization-community-1.

    Published figures for that one are 11 to 20 % DER on the usual corpora. It wants a GPU: on one CPU core expect slower
    than real time. Here the loading and calling code was run with a pipeline built on the weights inside the whisperx
    wheel; the published weights themselves were not available.
    """

    pipeline: Any

    @classmethod
    def load(cls, weights: str, device: str) -> PyannoteDiarizer:
        """The pipeline described by `weights`, a config.yaml or a folder that holds one.

        Nothing is fetched and nothing is reported home: pyannote's telemetry is on unless told otherwise. It unpickles
        the pipeline's checkpoints without restriction, so they must come from somebody you trust.
        Raises RecipeError when the path does not exist or does not hold a pipeline.
        """
        path = Path(weights).expanduser()
        config = path / "config.yaml" if path.is_dir() else path
        if not weights or not config.is_file():
            raise RecipeError(
                f"No pyannote pipeline at '{weights}'.",
                remedy="Set stages.diarize.weights to a local folder with the pipeline's config.yaml, or use engine: embedded.",
            )
        os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
        os.environ["HF_HUB_OFFLINE"] = "1"
        from stages.engines.torchaudio_shim import make_torchaudio_importable

        make_torchaudio_importable()
        import torch
        from pyannote.audio import Pipeline

        pipeline = Pipeline.from_pretrained(config)
        if pipeline is None:
            raise RecipeError(
                f"'{config}' does not describe a pyannote pipeline.", remedy="Check stages.diarize.weights."
            )
        return cls(pipeline.to(torch.device(device)))

    def hear(self, samples: NDArray[np.float32]) -> Diarized:
        """Turns in mono `samples` at 16 kHz; the pipeline gives no confidence and keeps its embeddings to itself."""
        import torch

        answer = self.pipeline({"waveform": torch.from_numpy(np.array(samples))[None], "sample_rate": SPEECH_RATE_HZ})
        annotation = getattr(answer, "speaker_diarization", answer)
        return Diarized(
            [
                Turn(str(label), float(segment.start), float(segment.end), None)
                for segment, _, label in annotation.itertracks(yield_label=True)
            ]
        )
