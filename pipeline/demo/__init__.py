"""Media whose truth is known because it was made here: real synthetic speech, a photographed face that says it, exact cuts."""

from pipeline.demo.clips import talking_clip
from pipeline.demo.truth import Made
from pipeline.demo.write import Encoding

__all__ = ["Encoding", "Made", "talking_clip"]
