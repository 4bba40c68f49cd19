"""Media whose truth is known because it was made here: synthetic speech, a photographed face that says it, exact cuts."""

from pipeline.demo.clips import (
    KINDS,
    ball_clip,
    cuts_clip,
    dialog_clip,
    flash_and_click,
    frame_number,
    swapped_clip,
    talking_clip,
    turns_audio,
    variable_rate,
    write_known_truth,
)
from pipeline.demo.demo_set import write_demo
from pipeline.demo.truth import Made
from pipeline.demo.write import Encoding

__all__ = [
    "KINDS",
    "Encoding",
    "Made",
    "ball_clip",
    "cuts_clip",
    "dialog_clip",
    "flash_and_click",
    "frame_number",
    "swapped_clip",
    "talking_clip",
    "turns_audio",
    "variable_rate",
    "write_demo",
    "write_known_truth",
]
