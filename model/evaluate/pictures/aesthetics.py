"""How well the pictures of a film please, by the aesthetic predictor."""

from __future__ import annotations

from pathlib import Path

from model.evaluate.media import read_pictures
from model.evaluate.metric import Metric, SetMetric
from model.evaluate.networks import DECODER, EVERY, guarded
from schemas.networks.aesthetics import SIDE_PX, Aesthetics


class AestheticMetrics(Aesthetics):
    """What is thought of films."""

    def of_film(self, path: Path) -> float:
        """The mean over every 5th frame. Raises MediaError."""
        return self.of_pictures(read_pictures(path, SIDE_PX, "rgb24", every=EVERY)[0])

    def metrics(self) -> tuple[tuple[Metric, ...], tuple[SetMetric, ...]]:
        """How well the pictures please."""
        return (
            Metric(
                name="aesthetic", doc="how well the pictures please, 1 to 10", better="higher",
                read=guarded(lambda _, sample: self.of_film(sample)), sha256=f"{self.sha256},{self.head.sha256}",
                model=f"{self.head.path.name} on {self.kind} in {self.folder.name}", decoder=DECODER,
                crop=f"every {EVERY}th frame, as the network's front end crops it",
            ),
        ), ()  # fmt: skip
