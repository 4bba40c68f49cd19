"""Opening one media file safely, and choosing its streams. Runs inside the decoder's child process.

Only a local file reaches the demuxer: the path is handed over as `file:PATH`, no other protocol may be opened, and
the demuxers that open further files by name (playlists, concat scripts, image sequences) are not on the list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from schemas.errors import MediaError
from schemas.machine import is_trouble

DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,mpegvideo,avi,asf,flv,live_flv,ogg,gif,apng,wav,w64,flac,mp3,"
    "aac,ac3,eac3,dts,amr,amrnb,amrwb,aiff,au,caf,nistsphere,mxf,gxf,rm,nut,ivf,h264,hevc,m4v,obu,av1,dv,wv,tta,ape,"
    "mpc,mpc8,voc,truehd,smjpeg,nsv,swf,wtv,dxa,vc1,vc1test,h263,h261,loas,latm,sox,tak,xwma,qcp,rso,aa,oma,act,avr"
)
"""Names of libavformat demuxers that read exactly one file. Playlist, device, network and pattern readers are absent."""

SNIFF_BYTES = 4096
SECONDARY_AUDIO = ("comment", "hearing_impaired", "visual_impaired", "dub", "karaoke", "clean_effects", "non_diegetic")
HDR_TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}
"""ITU-T H.273 transfer characteristics: 16 = PQ, 18 = HLG."""
TRANSFERS = {1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear", 13: "iec61966-2-1",
             14: "bt2020-10", 15: "bt2020-12", **HDR_TRANSFERS}  # fmt: skip


def open_media(path: str, *, is_first_edit_only: bool = False) -> Any:
    """An open libav container. Raises MediaError with a reason a person understands.

    `is_first_edit_only` reads an edit list as a plain offset of the clock, see `edit_list_shift`.
    """
    file = Path(path)
    if not file.is_file():
        raise MediaError(
            f"'{path}' is not there.", reason="file_missing", remedy="Check the path or download it again."
        )
    if file.stat().st_size == 0:
        raise MediaError(f"'{file.name}' is empty (0 bytes).", reason="empty_file", remedy="Download it again.")
    options = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}
    if is_first_edit_only:
        options["advanced_editlist"] = "0"
    try:
        container = av.open(f"file:{file.absolute()}", options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError, OSError) as error:
        if is_trouble(error):
            raise
        raise _explain(file, error) from None
    if not container.streams.video and not container.streams.audio:
        container.close()
        raise MediaError(f"'{file.name}' holds neither picture nor sound.", reason="no_streams")
    return container


def _explain(file: Path, error: BaseException) -> MediaError:
    """Why `file` could not be opened, read from its first bytes."""
    with file.open("rb") as stream:
        head = stream.read(SNIFF_BYTES)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    lower = text[:256].lower()
    if lower.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        reason, what = "web_page", "is a web page or XML, not media; the server probably answered with an error page"
    elif text.startswith(b"#EXTM3U") or lower.startswith((b"ffconcat", b"[playlist]", b"[reference]")):
        reason, what = "playlist", "is a playlist, which only names other files; give those files instead"
    elif _is_without_index(file, head):
        reason, what = "no_index", "has no index (moov atom): the recording or download stopped before it was written"
    elif head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"BM")) or head[8:12] == b"WEBP":
        reason, what = "still_picture", "is a still picture, not a video or a sound"
    elif b"\0" not in head and _is_text(head):
        reason, what = "text_file", "is a text file, not media"
    else:
        reason, what = "not_decodable", f"is not in any media format known here ({_first_line(error)})"
    return MediaError(f"'{file.name}' {what}.", reason=reason)


def _first_line(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0][:120]


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4
    return True


def _is_without_index(file: Path, head: bytes) -> bool:
    """Whether the top-level boxes of an ISO media file hold payload (mdat) but no moov."""
    known = (b"ftyp", b"mdat", b"moov", b"free", b"skip", b"wide", b"pnot", b"moof", b"styp", b"sidx", b"uuid")
    if head[4:8] not in known:
        return False
    seen: set[bytes] = set()
    size, position = file.stat().st_size, 0
    with file.open("rb") as stream:
        while position + 8 <= size and len(seen) < len(known):
            stream.seek(position)
            header = stream.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            seen.add(kind)
            if length < 8:
                break
            position += length
    return b"moov" not in seen


def has_decoder(stream: Any) -> bool:
    """Whether this build of libav can decode `stream`."""
    return stream.codec_context is not None and stream.codec_context.codec is not None


def choose_video(container: Any) -> Any | None:
    """The video stream to use: never a cover picture; the largest, then the one flagged default, then the first."""
    flags = av.stream.Disposition
    pictures = flags.attached_pic | flags.still_image | flags.timed_thumbnails
    streams = [s for s in container.streams.video if has_decoder(s) and not s.disposition & pictures]
    if not streams:
        return None
    return max(streams, key=lambda s: (s.width * s.height, bool(s.disposition & flags.default), -s.index))


def choose_audio(container: Any) -> Any | None:
    """The sound stream to use: no commentary or dub if there is another; flagged default, highest rate, first."""
    flags = av.stream.Disposition
    aside = flags(0)
    for name in SECONDARY_AUDIO:
        aside |= getattr(flags, name)
    streams = [s for s in container.streams.audio if has_decoder(s)]
    if not streams:
        return None

    def rank(s: Any) -> tuple[bool, bool, int, int, int]:
        return (not s.disposition & aside, bool(s.disposition & flags.default), s.rate or 0, s.channels or 0, -s.index)

    return max(streams, key=rank)


def pick(container: Any, kind: str, index: int | None) -> Any:
    """The stream with `index`, or the default one of `kind` ("video" or "audio"). Raises MediaError if there is none."""
    if index is None:
        stream = choose_video(container) if kind == "video" else choose_audio(container)
    else:
        found = [s for s in container.streams if s.index == index and s.type == kind and has_decoder(s)]
        stream = found[0] if found else None
    if stream is None:
        word = "picture" if kind == "video" else "sound"
        which = "" if index is None else f" in stream {index}"
        raise MediaError(f"There is no {word} that can be decoded{which}.", reason=f"no_{kind}")
    stream.codec_context.thread_count = 1
    return stream


SHIFT_SEARCH_PACKETS = 2000


@lru_cache(maxsize=32)
def edit_list_shift(path: str, index: int, version: int) -> int:
    """What has to be added to libav's pts of the video stream `index` of an ISO media file to be on the container's clock.

    Where an edit begins inside a frame, libav drops that frame and moves the whole stream forward so that the next
    one starts at the edit: the picture runs early by up to a frame. The same packet read with the edit list taken as
    an offset tells by how much. `version` (mtime) only keeps the cache honest.
    """
    with open_media(path) as exact:
        first = next((p for p in _head(exact, index) if not p.is_discard and p.pts is not None), None)
        if first is None:
            return 0
        position, pts = first.pos, first.pts
    with open_media(path, is_first_edit_only=True) as plain:
        true = next((p.pts for p in _head(plain, index) if p.pos == position and p.pts is not None), pts)
    return max(0, int(true - pts))


def _head(container: Any, index: int) -> Iterator[Any]:
    return islice(container.demux(container.streams[index]), SHIFT_SEARCH_PACKETS)


def clock_shift(container: Any, stream: Any) -> int:
    """`edit_list_shift` of an open container's stream, 0 for other kinds of files."""
    if not container.format.name.startswith("mov") or stream.type != "video":
        return 0
    path = container.name.removeprefix("file:")
    try:
        return edit_list_shift(path, stream.index, Path(path).stat().st_mtime_ns)
    except (av.error.FFmpegError, OSError):
        return 0


@dataclass(frozen=True)
class Geometry:
    """How stored pictures become upright pictures with square pixels."""

    coded_width: int
    coded_height: int
    sar: Fraction
    quarter_turns: int
    """Counter-clockwise quarter turns to apply after mirroring, 0 to 3."""
    is_mirrored: bool
    """Mirror left-right before turning."""

    @property
    def square_size(self) -> tuple[int, int]:
        """(width, height) with square pixels before turning; the height is kept, the width follows the aspect."""
        return max(1, round(self.coded_width * self.sar)), self.coded_height

    @property
    def display_size(self) -> tuple[int, int]:
        """(width, height) as a viewer sees it."""
        width, height = self.square_size
        return (height, width) if self.quarter_turns % 2 else (width, height)

    @property
    def is_plain(self) -> bool:
        """Nothing to do: upright, not mirrored, square pixels."""
        return self.sar == 1 and not self.quarter_turns and not self.is_mirrored


SAR_LIMIT = 16
"""An aspect ratio of a pixel beyond this (or its inverse) is a damaged header and is ignored."""


def geometry(frame: Any, stream: Any) -> Geometry:
    """The geometry of the stream, from its first decoded frame."""
    sar = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    sar = Fraction(sar) if sar > 0 else Fraction(1)
    if not Fraction(1, SAR_LIMIT) <= sar <= SAR_LIMIT:
        sar = Fraction(1)
    turns, mirrored = _orientation(frame)
    return Geometry(frame.width, frame.height, sar, turns, mirrored)


def _orientation(frame: Any) -> tuple[int, bool]:
    """(counter-clockwise quarter turns, mirrored first) closest to the frame's display matrix."""
    matrix = None
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            matrix = np.frombuffer(bytes(data), dtype="<i4").astype(float)
    if matrix is None or not matrix[:5].any():
        return 0, False
    # The matrix maps x' = a x + c y, y' = b x + d y with y downwards (ISO 14496-12, 6.2.2), 9 numbers row by row.
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    mirrored = bool(a * d - b * c < 0)
    if mirrored:
        a, b = -a, -b
    turns = round(np.degrees(np.arctan2(-b, a)) / 90) % 4
    return turns, mirrored


def is_hdr(stream: Any) -> bool:
    """Whether the stream is tagged with an HDR transfer curve (PQ or HLG)."""
    return int(stream.codec_context.color_trc or 0) in HDR_TRANSFERS


def transfer_name(stream: Any) -> str | None:
    """Name of the transfer curve the stream is tagged with; None if untagged."""
    return TRANSFERS.get(int(stream.codec_context.color_trc or 0))
