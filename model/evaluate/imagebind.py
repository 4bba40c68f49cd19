"""IB: what ImageBind makes of picture and sound, held against each other."""

from __future__ import annotations

from pathlib import Path

from model.evaluate.media import mono_sound, read_pictures
from model.evaluate.metric import Metric
from model.evaluate.networks import DECODER, VOICE_HZ, guarded
from model.evaluate.records import Protocol
from schemas.networks.folders import cosine
from schemas.networks.imagebind import SIDE_PX, ImageBind


def likeness(network: ImageBind, path: Path) -> float:
    """Cosine of what the picture and the sound of a file are about. Raises MediaError."""
    seen = network.of_pictures(*read_pictures(path, SIDE_PX, "rgb24"))
    return cosine(seen, network.of_sound(mono_sound(path, VOICE_HZ)[0]))


def imagebind_metrics(path: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """The cosine of picture and sound, by the network in a file."""
    network = ImageBind(path)
    return (
        Metric(
            name="ib", doc="cosine of what picture and sound are about", unit="cosine", better="higher",
            read=guarded(lambda _, sample: likeness(network, sample)),
            model=f"ImageBind in {path.name}", sha256=network.weights.sha256, decoder=DECODER,
            crop="5 clips of 2 frames by 3 crops at 224 px; 3 clips of 2 s of sound; means",
        ),
    )  # fmt: skip
