"""What a file holds, measured by reading it. Runs inside the decoder's child process."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from schemas.errors import MediaError
from schemas.timing import microseconds
from stages.media.choose import choose, described, language_of, pick, title_of
from stages.media.clock import note_steady, restarts_known
from stages.media.geometry import Geometry
from stages.media.listen import HeardSound, heard_streams, picked, store_sound
from stages.media.open import clock_shift, is_hdr, open_media, transfer_name
from stages.media.picture import (
    Damage,
    FrameRun,
    ShownPicture,
    View,
    drawn_runs,
    last_duration,
    packets,
    pictures,
)
from stages.media.shared import PictureRoom
from stages.media.sound import FREE_GAPS_S, GAPS_TO_SOUND, broken_clock, check_gaps

VIDEO_FIELDS = (
    "video_stream", "video_codec", "width_px", "height_px", "coded_width_px", "coded_height_px", "sar", "rotation_deg",
    "fps", "is_vfr", "num_frames", "video_start_pts", "video_end_pts", "tb_num", "tb_den", "video_start_s",
    "is_interlaced", "is_hdr", "color_transfer", "reshaped_pts",
)  # fmt: skip
AUDIO_FIELDS = (
    "audio_stream", "audio_codec", "audio_rate_hz", "audio_channels", "audio_layout", "audio_start_s", "audio_end_s",
    "audio_gap_s", "audio_streams", "audio_language", "audio_title",
)  # fmt: skip
CHUNK = 256
VFR_SHARE = Fraction(1, 5)
"""Frame lengths that differ from the median by more than this share (and by more than clock rounding) vary."""
VFR_ROUNDING_TICKS = 1
LONG_S, EMPTY_BYTES_PER_S = 3600, 40
"""Hours of sound in fewer bytes a second are nothing but digital silence: speech takes ten times that in any codec, an
unplugged microphone in AAC seven times."""
STILL_S = 10
"""How long one picture may stand, as on a slide, before the rest of the time counts as a hole."""


@dataclass
class Timeline:
    """The frames of a video stream in display order."""

    pts: list[int] = field(default_factory=list)
    end_pts: int = 0
    shape: Geometry | None = None
    is_interlaced: bool = False
    reshaped: list[int] = field(default_factory=list)
    """pts of the pictures that have another shape than the one before."""
    restarts: int = 0
    damage: Damage = field(default_factory=Damage)


def probe(
    path: str,
    decode: bool,
    max_pixels: int,
    languages: list[str],
    picture: dict[str, Any] | None = None,
    out: str | None = None,
    most_bytes: int = 0,
) -> dict[str, Any]:
    """`asset`: the probe struct of `path`, see `stages.probe`; `sound`: all of its sound, if that was decoded and fits in `out`.

    With `decode` every packet is decoded: frame count, damage and times are facts. Without, packets are read but only
    the first picture is decoded; then damage is what the container admits and undecodable frames are counted.
    `picture` is what `watched` said, where the picture was decoded already.
    """
    with open_media(path, max_pixels=max_pixels) as container:
        chosen = choose(container, languages)
        if chosen.video is None and not chosen.audio:
            raise MediaError("None of its streams can be decoded here.", reason="no_decoder")
        if picture is None and decode:
            picture = _end_of(watched(path, (), CHUNK, max_pixels, None))
        if picture is None:
            picture = _told(chosen.video, chosen.video and _watch_packets(path, chosen.video.index, max_pixels))
        streams = heard_streams(path, languages, chosen) if chosen.audio else ()
        sound = _listen(path, streams, decode, out, most_bytes) if streams else None
        if not picture["fields"]["has_video"] and (sound is None or not sound["num_samples"]):
            raise MediaError("Not a single frame or sample could be decoded.", reason="not_decodable")
        about = {
            "container": container.format.name.split(",")[0],
            "num_video_streams": len(container.streams.video),
            "num_audio_streams": len(container.streams.audio),
            **picture["fields"],
            **_audio_fields(container, streams, sound),
            "audio_ignored": [described(s) for s in container.streams.audio if s.index not in streams],
            "damaged_packets": picture["damaged_packets"] + (sound["damaged"] if sound else 0),
            "clock_restarts": max(picture["restarts"], restarts_known(container)),
        }
        about["duration_us"] = _duration_us(about)
        check_lengths(about, picture["holes_s"], sound, Path(path).stat().st_size)
        return {"asset": about, "sound": sound and sound["stored"]}


def check_lengths(about: dict[str, Any], holes_s: float, sound: dict[str, Any] | None, num_bytes: int) -> None:
    """Raises MediaError for times of picture and sound that cannot be true of a file of so many bytes."""
    sound_s = 0.0 if sound is None else float((sound["end_s"] or 0) - (sound["start_s"] or 0)) - sound["gap_s"]
    if sound_s > LONG_S and num_bytes < EMPTY_BYTES_PER_S * sound_s:
        raise MediaError(
            f"{num_bytes} bytes say they are {sound_s / 3600:.1f} h of sound, which can only be silence.",
            reason="empty_sound",
        )
    if not about["has_video"]:
        return
    picture_s = about["duration_us"] / 1e6
    if holes_s > max(FREE_GAPS_S, GAPS_TO_SOUND * max(picture_s - holes_s, sound_s)):
        raise broken_clock(f"{holes_s:.0f} s without any picture lie between {picture_s - holes_s:.1f} s of it.")
    if sound_s - picture_s > max(FREE_GAPS_S, GAPS_TO_SOUND * picture_s):
        raise MediaError(
            f"The sound lasts {sound_s:.0f} s, its picture {picture_s:.2f} s.",
            reason="sound_outlasts_picture",
            remedy="If the sound is wanted alone, take the picture out (ffmpeg -vn).",
        )


def watched(
    path: str, views: Sequence[View], size: int, max_pixels: int, room: PictureRoom | None
) -> Generator[FrameRun, None, dict[str, Any]]:
    """Decodes every picture of `path` once: runs of up to `size` frames drawn in `views`, and in the end

    fields             `VIDEO_FIELDS` and has_video
    damaged_packets    of the picture
    restarts           how often the clock begins anew
    holes_s            how much of the time no picture is new for long
    """
    with open_media(path, max_pixels=max_pixels) as container:
        video = choose(container).video
        if video is None:
            return _told(None, None)
        stream, timeline = pick(container, "video", video.index), Timeline()
        shown = _noted(pictures(container, stream, timeline.damage, max_pixels), timeline, stream)
        yield from drawn_runs(stream, shown, None, views, size, room)
        if timeline.pts:
            for _ in range(_packets_before(path, video.index, timeline.pts[0])):
                timeline.damage.note("a packet before the first frame that could be decoded")
        timeline.restarts = restarts_known(container)
        return _told(stream, timeline)


def _noted(shown: Iterable[ShownPicture], timeline: Timeline, stream: Any) -> Iterator[ShownPicture]:
    """`shown`, each picture written into `timeline` on the way."""
    last, num_interlaced = None, 0
    for picture in shown:
        if timeline.shape is None:
            timeline.shape = picture.shape
        elif last is not None and picture.shape != last.shape:
            timeline.reshaped.append(picture.pts)
        timeline.pts.append(picture.pts)
        num_interlaced += bool(picture.frame.interlaced_frame)
        last = picture
        yield picture
    if last is not None:
        timeline.end_pts = last.pts + last_duration(last, _second_last(timeline.pts), stream)
    timeline.is_interlaced = 2 * num_interlaced > len(timeline.pts)


def _end_of(watching: Generator[Any, None, dict[str, Any]]) -> dict[str, Any]:
    while True:
        try:
            next(watching)
        except StopIteration as end:
            told: dict[str, Any] = end.value
            return told


def _told(stream: Any, timeline: Timeline | None) -> dict[str, Any]:
    """What `watched` answers."""
    timeline = timeline or Timeline()
    return {
        "fields": _video_fields(stream, timeline),
        "damaged_packets": timeline.damage.packets,
        "restarts": timeline.restarts,
        "holes_s": 0.0 if stream is None else _holes_s(timeline, Fraction(stream.time_base)),
    }


def _holes_s(timeline: Timeline, base: Fraction) -> float:
    """How much of the timeline lies more than `STILL_S` behind a picture."""
    still = int(STILL_S / base)
    ends = [*timeline.pts[1:], timeline.end_pts]
    return float(sum(max(0, b - a - still) for a, b in zip(timeline.pts, ends, strict=False)) * base)


def _watch_packets(path: str, index: int, max_pixels: int) -> Timeline:
    """The timeline by the packets' times; only the first frame is decoded."""
    timeline = _watch_first(path, index, max_pixels)
    with open_media(path) as container:
        stream = pick(container, "video", index)
        shift = clock_shift(container, stream)
        found = [
            ((p.pts if p.pts is not None else p.dts) + shift, p.duration or 0)
            for p in packets(container, stream, timeline.damage)
            if not p.is_discard and (p.pts is not None or p.dts is not None)
        ]
        found = [(pts, length) for pts, length in sorted(found) if timeline.pts and pts >= timeline.pts[0]]
        if found:
            timeline.pts = sorted({pts for pts, _ in found})
            assert timeline.shape is not None
            last = ShownPicture(None, found[-1][0], found[-1][1], timeline.shape)
            timeline.end_pts = last.pts + last_duration(last, _second_last(timeline.pts), stream)
        timeline.restarts = restarts_known(container)
        note_steady(container)
    return timeline


def _watch_first(path: str, index: int, max_pixels: int) -> Timeline:
    """The timeline of only the first frame that can be decoded."""
    timeline = Timeline()
    with open_media(path) as container:
        stream = pick(container, "video", index)
        for picture in pictures(container, stream, Damage(), max_pixels):
            timeline.pts, timeline.shape = [picture.pts], picture.shape
            timeline.is_interlaced = bool(picture.frame.interlaced_frame)
            break
    return timeline


def _packets_before(path: str, index: int, first_pts: int) -> int:
    """Packets stamped before the first decoded frame: a recording joined in the middle of a group of pictures."""
    with open_media(path) as container:
        stream = pick(container, "video", index)
        first_pts -= clock_shift(container, stream)
        count = 0
        for packet in packets(container, stream, Damage()):
            if packet.dts is not None and packet.dts > first_pts:
                break
            if packet.size and packet.pts is not None and packet.pts < first_pts and not packet.is_discard:
                count += 1
        return count


def _second_last(pts: list[int]) -> int | None:
    return pts[-2] if len(pts) > 1 else None


def _listen(path: str, streams: Sequence[int], decode: bool, out: str | None, most_bytes: int) -> dict[str, Any]:
    """Where sound begins and ends, by its samples (or by its packets), what was wrong with it, and where it was stored."""
    damage = Damage()
    if not decode:
        return _listen_to_packets(path, streams[0], damage)
    with HeardSound(partial(open_media, path), streams, damage) as heard:
        stored = store_sound(heard, out, most_bytes)
        placement, rate_hz = heard.placement, heard.rate_hz
    start_s, num = placement.start_s, placement.num_samples
    end_s = start_s + Fraction(num, rate_hz) if start_s is not None and rate_hz else None
    return {**_sound_told(start_s, end_s, num, float(placement.gap_s), damage), "stored": stored}


def _listen_to_packets(path: str, index: int, damage: Damage) -> dict[str, Any]:
    start_s, end_s, num, gap_s = None, None, 0, Fraction(0)
    with open_media(path) as container:
        stream = picked(container, index)
        for packet in packets(container, stream, damage):
            if packet.pts is None or packet.is_discard:
                continue
            at = packet.pts * packet.time_base
            start_s = at if start_s is None else start_s
            if end_s is not None:
                gap_s += max(Fraction(0), at - end_s)
            end_s = at + (packet.duration or 0) * packet.time_base
            num += 1
    if start_s is not None and end_s is not None:
        check_gaps(float(gap_s), float(end_s - start_s - gap_s))
    return _sound_told(start_s, end_s, num, 0.0, damage)


def _sound_told(
    start_s: Fraction | None, end_s: Fraction | None, num: int, gap_s: float, damage: Damage
) -> dict[str, Any]:
    damaged = damage.packets
    return {"start_s": start_s, "end_s": end_s, "num_samples": num, "gap_s": gap_s, "damaged": damaged, "stored": None}


def _video_fields(stream: Any, timeline: Timeline | None) -> dict[str, Any]:
    if stream is None or timeline is None or not timeline.pts or timeline.shape is None:
        return {"has_video": False, **dict.fromkeys(VIDEO_FIELDS), "num_frames": 0}
    shape, base = timeline.shape, Fraction(stream.time_base)
    width, height = shape.display_size
    return {
        "has_video": True,
        "video_stream": stream.index,
        "video_codec": stream.codec_context.codec.canonical_name,
        "width_px": width,
        "height_px": height,
        "coded_width_px": shape.coded_width,
        "coded_height_px": shape.coded_height,
        "sar": float(shape.sar),
        "rotation_deg": -90 * shape.quarter_turns % 360,
        "fps": len(timeline.pts) / float((timeline.end_pts - timeline.pts[0]) * base),
        "is_vfr": is_variable(timeline.pts),
        "num_frames": len(timeline.pts),
        "video_start_pts": timeline.pts[0],
        "video_end_pts": timeline.end_pts,
        "tb_num": base.numerator,
        "tb_den": base.denominator,
        "video_start_s": float(timeline.pts[0] * base),
        "is_interlaced": timeline.is_interlaced,
        "is_hdr": is_hdr(stream),
        "color_transfer": transfer_name(stream),
        "reshaped_pts": timeline.reshaped,
    }


def is_variable(pts: list[int]) -> bool:
    """Whether the frame lengths vary by more than the rounding of the clock."""
    lengths = sorted(b - a for a, b in pairwise(pts))
    if not lengths:
        return False
    middle = lengths[len(lengths) // 2]
    allowed = max(Fraction(VFR_ROUNDING_TICKS), VFR_SHARE * middle)
    return lengths[-1] - middle > allowed or middle - lengths[0] > allowed


def _audio_fields(container: Any, streams: Sequence[int], sound: dict[str, Any] | None) -> dict[str, Any]:
    if sound is None or not sound["num_samples"]:
        return {"has_audio": False, **dict.fromkeys(AUDIO_FIELDS)}
    stream = next(s for s in container.streams if s.index == streams[0])
    layout = stream.layout.name if stream.layout else None
    return {
        "has_audio": True,
        "audio_stream": stream.index,
        "audio_streams": list(streams),
        "audio_language": language_of(stream),
        "audio_title": title_of(stream),
        "audio_codec": stream.codec_context.codec.canonical_name,
        "audio_rate_hz": stream.rate,
        "audio_channels": stream.channels if len(streams) == 1 else len(streams),
        "audio_layout": layout if len(streams) == 1 else f"{len(streams)} x mono",
        "audio_start_s": None if sound["start_s"] is None else float(sound["start_s"]),
        "audio_end_s": None if sound["end_s"] is None else float(sound["end_s"]),
        "audio_gap_s": sound["gap_s"],
    }


def _duration_us(about: dict[str, Any]) -> int:
    """Length of the picture if there is any, else of the sound."""
    if about["has_video"]:
        base = Fraction(about["tb_num"], about["tb_den"])
        return microseconds(about["video_end_pts"] * base) - microseconds(about["video_start_pts"] * base)
    seconds: float = about["audio_end_s"] - about["audio_start_s"]
    return round(seconds * 1_000_000)
