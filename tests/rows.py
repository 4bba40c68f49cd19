"""Rows and records for tests, with plain values for all that a test does not name.

Rows are what a stage sees: structs have every field that their stage declares, null where nothing is given, and refuse
others. Records are the typed views that the rest of the house hands on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import stages
from schemas.records import Asset, Clip, Level, Shot, Source, Struct, Verdict, span_fields
from schemas.spans import Reference, SpeechSpan, Word
from schemas.timing import Span

FIVE_S = Span(0, 125, 1, 25)
"""The exact span of everything that has to lie somewhere."""
KEPT = Verdict("keep")


def struct_of(stage: str, **known: Any) -> dict[str, Any]:
    """What `stage` of the catalogue adds to a row: `known`, all else null. Raises KeyError for what it does not declare."""
    declared = [field.name for field in stages.load(stage).adds]
    if unknown := known.keys() - set(declared):
        raise KeyError(f"stage {stage} declares no {sorted(unknown)}, but {declared}")
    return dict.fromkeys(declared) | known


def asset_row(
    path: Path | str = "asset.mp4", *, probe: Struct | None = None, metadata: str = "{}", **columns: Any
) -> dict[str, Any]:
    """An asset with sound as a stage sees it: `path` downloaded, `probe` measured; further columns as given."""
    source = {"source_id": "s0", "uri": str(path), "licence": None, "metadata": metadata}
    download = struct_of("download", asset_id="a0", path=str(path))
    probe = struct_of("probe", has_video=True, has_audio=True) if probe is None else probe
    return source | {"download": download, "probe": probe} | columns


def shot_row(path: Path | str = "asset.mp4", span: Span = FIVE_S, **columns: Any) -> dict[str, Any]:
    """A shot as a stage sees it, with the asset it lies in."""
    shot = struct_of("shot_split", shot_id="h0", parent_id="a0", index=0, is_transition=False, **span_fields(span))
    return asset_row(path, **columns) | {"shot": shot}


def clip_row(
    path: Path | str = "asset.mp4", span: Span = FIVE_S, spans: Iterable[SpeechSpan] = (), **columns: Any
) -> dict[str, Any]:
    """A clip in which `spans` are said as a stage sees it, with the asset it lies in."""
    return asset_row(path, **columns) | {"clip": clip_struct(span, spans)}


def clip_struct(span: Span = FIVE_S, spans: Iterable[SpeechSpan] = (), **known: Any) -> dict[str, Any]:
    """The columns of `CLIP`."""
    ids = {"clip_id": "c0", "parent_id": "h0", "asset_id": "a0", "index": 0}
    said = [one.row() for one in spans]
    return struct_of("clip", **ids | span_fields(span) | {"spans": said, "has_speech": bool(said)} | known)


def span_of_file(probe: Struct, start: Fraction | float = 0, end: Fraction | float | None = None) -> Span:
    """The exact span of a probed file between two instants, in seconds after its first picture; to its end by default."""
    first, base = probe["video_start_pts"], Fraction(probe["tb_num"], probe["tb_den"])
    last = probe["video_end_pts"] if end is None else first + int(Fraction(end) / base)
    return Span(first + int(Fraction(start) / base), last, probe["tb_num"], probe["tb_den"])


def source(uri: str = "asset.mp4", **known: Any) -> Source:
    """A source, its id made of its name."""
    return Source(**{"source_id": f"s-{uri}", "uri": uri} | known)


def asset(structs: Mapping[str, Struct | None] | None = None, *, name: str = "a0", **known: Any) -> Asset:
    """A kept asset of `FIVE_S` on which `structs` were measured."""
    whole = {"source": source(f"{name}.mp4"), "asset_id": name, "duration_us": FIVE_S.duration_us, "verdict": KEPT}
    return Asset(**whole | {"structs": structs or {}} | known)


def shot(span: Span = FIVE_S, **known: Any) -> Shot:
    """A kept shot."""
    structs = {Level.SHOT: shot_row(span=span)["shot"]}
    whole = {"shot_id": "h0", "source_id": "s0", "duration_us": span.duration_us, "verdict": KEPT}
    return Shot(**whole | {"structs": structs} | known)


def clip(
    span: Span = FIVE_S,
    spans: Iterable[SpeechSpan] = (),
    structs: Mapping[str, Struct | None] | None = None,
    **known: Any,
) -> Clip:
    """A kept clip in which `spans` are said and on which `structs` were measured, in an asset that knows nothing."""
    own = {Level.CLIP: clip_struct(span, spans)}
    whole = {"clip_id": "c0", "shot_id": "h0", "duration_us": span.duration_us, "verdict": KEPT}
    return Clip(**whole | {"asset": asset(), "structs": {**own, **(structs or {})}} | known)


def speech_span(
    text: str, start_s: float = 0.0, end_s: float = 1.0, speaker: str | None = "A", **known: Any
) -> SpeechSpan:
    """A span with a word time for each word of `text`, all of one length."""
    words = words_of(text, start_s, end_s)
    return SpeechSpan(**{"text": text, "start_s": start_s, "end_s": end_s, "speaker": speaker, "words": words} | known)


def words_of(text: str, start_s: float, end_s: float) -> tuple[Word, ...]:
    """The words of `text`, side by side in equal parts of a stretch."""
    texts = text.split()
    step_s = (end_s - start_s) / max(len(texts), 1)
    return tuple(Word(each, start_s + i * step_s, start_s + (i + 1) * step_s) for i, each in enumerate(texts))


def reference(span_index: int, embedding: Sequence[float] = (1.0,), **known: Any) -> Reference:
    """A voice reference of speaker A from another utterance of the asset."""
    where = {"asset_start_s": 0.0, "asset_end_s": 1.0, "speaker": "A", "origin": "same_asset"}
    how_good = {"similarity": 0.9, "cleanliness": 1.0, "embedding": list(embedding)}
    return Reference(**{"span_index": span_index} | where | how_good | known)
