"""PySceneDetect's detectors with their default settings, as engines and as the yardstick of the benchmark."""

from __future__ import annotations

from typing import Literal

from stages.shot_split.content import Boundary
from stages.shot_split.thumbs import Thumbs


class SceneDetectDetector:
    """PySceneDetect's ContentDetector or AdaptiveDetector; hard cuts only, no confidence of its own.

    AdaptiveDetector finds most cuts and rarely a false one; ContentDetector also fires on flashes and fast motion.
    Both need a shot of 15 frames before the next cut, by their default. Costs about 0.3 ms per frame.
    """

    frame_size = (256, 144)
    """The width to which PySceneDetect scales frames down itself."""

    def __init__(self, kind: Literal["content", "adaptive"]) -> None:
        self.kind = kind

    def detect(self, thumbs: Thumbs, fps: float) -> list[Boundary]:
        """The boundaries in `thumbs` [n, 144, 256, 3], in order."""
        from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

        detector = AdaptiveDetector() if self.kind == "adaptive" else ContentDetector()
        cuts: list[int] = []
        for number, frame in enumerate(thumbs):
            found = detector.process_frame(FrameTimecode(number, fps), frame[..., ::-1].copy())
            cuts += [cut.frame_num for cut in found]
        if len(thumbs):
            cuts += [cut.frame_num for cut in detector.post_process(FrameTimecode(len(thumbs) - 1, fps))]
        return [Boundary(cut, cut, "hard", 1.0) for cut in sorted(set(cuts)) if 0 < cut < len(thumbs)]
