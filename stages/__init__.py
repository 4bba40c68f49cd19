"""What is done to data. One file or folder per stage, one line per stage here; nothing registers itself on import."""

from __future__ import annotations

from importlib import import_module
from typing import Any

CATALOG: dict[str, str] = {
    "rights": "stages.rights:Rights",
    "download": "stages.download.stage:Download",
    "probe": "stages.probe:Probe",
    "shot_split": "stages.shot_split.stage:ShotSplit",
    "transcribe": "stages.transcribe.stage:Transcribe",
    "diarize": "stages.diarize.stage:Diarize",
    "clip": "stages.clip:ClipSplit",
    "picture": "stages.picture:Picture",
    "quality": "stages.quality.stage:Quality",
    "ocr": "stages.ocr.stage:Ocr",
    "audio": "stages.audio:Audio",
    "sound": "stages.sound.stage:SoundStage",
    "faces": "stages.faces:Faces",
    "framing": "stages.framing:Framing",
    "camera": "stages.camera:Camera",
    "sync": "stages.sync.stage:Sync",
    "timbre": "stages.timbre:Timbre",
    "safety": "stages.safety.stage:Safety",
    "caption": "stages.caption.stage:Caption",
    "match": "stages.match.stage:Match",
    "fingerprint": "stages.fingerprint:Fingerprint",
    "duplicates": "stages.duplicates:Duplicates",
    "near_duplicates": "stages.near_duplicates.stage:NearDuplicates",
    "cut": "stages.cut:Cut",
}
"""Stage name -> `module:class`, in the order the stages run."""
MOVED = {
    "sync_repair": "stages.cut.sync_repair",
    "pack.crf": "stages.cut.crf",
    "pack.allow_copy": "stages.cut.allow_copy",
}
"""Recipe keys that became settings of a stage, and where they are now."""


def load(name: str) -> Any:
    """The stage class called `name`; its heavy libraries stay unimported until `setup`."""
    module, _, attribute = CATALOG[name].partition(":")
    return getattr(import_module(module), attribute)
