"""Opening one media file safely. Runs inside the decoder's child process.

Only a local file reaches the demuxer: the path is handed over as `file:PATH`, no other protocol may be opened, and
the demuxers that open further files by name (playlists, concat scripts, image sequences) are not on the list.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import av

from schemas.errors import MediaError
from schemas.machine import is_trouble
from stages.media.boxes import kinds_at_top, protected_tracks
from stages.media.marks import marks_of

DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,mpegvideo,avi,asf,flv,live_flv,ogg,gif,apng,wav,w64,flac,mp3,"
    "aac,ac3,eac3,dts,amr,amrnb,amrwb,aiff,au,caf,nistsphere,mxf,gxf,rm,nut,ivf,h264,hevc,m4v,obu,av1,dv,wv,tta,ape,"
    "mpc,mpc8,voc,truehd,smjpeg,nsv,swf,wtv,dxa,vc1,vc1test,h263,h261,loas,latm,sox,tak,xwma,qcp,rso,aa,oma,act,avr"
)
"""Names of libavformat demuxers that read exactly one file. Playlist, device, network and pattern readers are absent."""

SNIFF_BYTES = 4096
HDR_TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}
"""ITU-T H.273 transfer characteristics: 16 = PQ, 18 = HLG."""
TRANSFERS = {1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear", 13: "iec61966-2-1",
             14: "bt2020-10", 15: "bt2020-12", **HDR_TRANSFERS}  # fmt: skip


def open_media(path: str, *, is_first_edit_only: bool = False, max_pixels: int | None = None) -> Any:
    """An open libav container. Raises MediaError with a reason a person understands.

    `is_first_edit_only` reads an edit list as a plain offset of the clock, see `edit_list_shift`. libav decodes a picture to
    learn what a stream is, one of more than `max_pixels` not even for that.
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
    if max_pixels is not None:
        options["max_pixels"] = str(max_pixels)
        _check_header(file, max_pixels)
    try:
        container = av.open(f"file:{file.absolute()}", options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError, OSError) as error:
        if is_trouble(error):
            raise
        raise _explain(file, error) from None
    try:
        _look_over(container, file)
    except (MediaError, OSError):
        container.close()
        raise
    return container


def _check_header(file: Path, max_pixels: int) -> None:
    """Refuses pictures that say they are too large, in formats of which libav says no size unless it has decoded one."""
    with file.open("rb") as stream:
        head = stream.read(24)
    if head.startswith(b"\x89PNG") and head[12:16] == b"IHDR":
        check_pixels(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"), max_pixels)
    if head.startswith((b"GIF87a", b"GIF89a")):
        check_pixels(int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little"), max_pixels)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises MediaError for pictures that are too large to be decoded."""
    if width * height > max_pixels:
        raise MediaError(
            f"A frame of {width}x{height} pixels is larger than the limit of {max_pixels} pixels.",
            reason="too_many_pixels",
            remedy="Raise decoder.max_pixels in the recipe if this is meant.",
        )


def _look_over(container: Any, file: Path) -> None:
    """Raises MediaError for what is not worth decoding."""
    if not container.streams.video and not container.streams.audio:
        raise MediaError(f"'{file.name}' holds neither picture nor sound.", reason="no_streams")
    marks = marks_of(container)
    encrypted = marks.encrypted
    for word, streams in (("picture", container.streams.video), ("sound", container.streams.audio)):
        if streams and all(s.index in encrypted for s in streams):
            raise _locked(file, word)
    if marks.num_joined > 1:
        raise MediaError(
            f"'{file.name}' is {marks.num_joined} files one behind the other, of which not all can be read.",
            reason="joined_files",
            remedy="Take them apart again, or join recordings with ffmpeg's concat demuxer instead of cat.",
        )


def _locked(file: Path, what: str) -> MediaError:
    return MediaError(
        f"The {what} of '{file.name}' is encrypted and cannot be read without its key.",
        reason="encrypted",
        remedy="Give a decrypted file, if you may have one.",
    )


PACKED = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "rar", b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip
"""How archives and compressed files begin."""
STILL = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
WEBP_IS_ANIMATED = 0x02
"""Flag in the VP8X chunk (WebP container specification, extended file format)."""
MATROSKA_CLUSTER = b"\x1f\x43\xb6\x75"


def _explain(file: Path, error: BaseException) -> MediaError:
    """Why `file` could not be opened, read from its first bytes."""
    with file.open("rb") as stream:
        head = stream.read(SNIFF_BYTES)
    boxes = kinds_at_top(file)
    if boxes[b"moov"] and protected_tracks(file):
        return _locked(file, "content")
    reason, what = _kind_of(head, set(boxes)) or (
        "not_decodable",
        f"is not in any media format known here ({_first_line(error)})",
    )
    return MediaError(f"'{file.name}' {what}.", reason=reason)


def _kind_of(head: bytes, boxes: set[bytes]) -> tuple[str, str] | None:
    """(reason, what it is) of a file that is no media, from its first bytes and its boxes, if it has any."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    lower = text[:256].lower()
    packed = next((kind for magic, kind in PACKED.items() if head.startswith(magic)), None)
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    if lower.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "web_page", "is a web page or XML, not media; the server probably answered with an error page"
    if text.startswith(b"#EXTM3U") or lower.startswith((b"ffconcat", b"[playlist]", b"[reference]")):
        return "playlist", "is a playlist, which only names other files; give those files instead"
    if packed is not None:
        return "packed_file", f"is packed ({packed}); unpack it first"
    if boxes and b"moov" not in boxes and (b"moof" in boxes or b"styp" in boxes):
        return "no_init_segment", (
            "is a segment of a fragmented recording (DASH, HLS) without its initialisation segment; join them, the "
            "initialisation segment first (cat init.mp4 1.m4s 2.m4s > whole.mp4)"
        )
    if head.startswith(MATROSKA_CLUSTER):
        return (
            "no_init_segment",
            "is a piece of a WebM or Matroska stream without its beginning; join all pieces in order",
        )
    if boxes and b"moov" not in boxes:
        return "no_index", "has no index (moov atom): the recording or download stopped before it was written"
    if is_webp and head[12:16] == b"VP8X" and head[20] & WEBP_IS_ANIMATED:
        return "animated_picture", "is an animated WebP, which cannot be decoded here; convert it to a video first"
    if is_webp or head.startswith(STILL):
        return "still_picture", "is a still picture, not a video or a sound"
    if b"\0" not in head and _is_text(head):
        return "text_file", "is a text file, not media"
    return None


def _first_line(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0][:120]


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4
    return True


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


def is_hdr(stream: Any) -> bool:
    """Whether the stream is tagged with an HDR transfer curve (PQ or HLG)."""
    return int(stream.codec_context.color_trc or 0) in HDR_TRANSFERS


def transfer_name(stream: Any) -> str | None:
    """Name of the transfer curve the stream is tagged with; None if untagged."""
    return TRANSFERS.get(int(stream.codec_context.color_trc or 0))
