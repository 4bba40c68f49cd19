"""`cut`: a clip's media, written exactly, measured and left for the shards, of rows that nothing turned away.

It is the last look at a source, so it makes sure that the source is still what was measured. With `sync_repair` the sound is
moved by the offset found, and what hangs on it (spans, active faces, references, caption) is stated anew.

The clips of an asset come together: the decoder keeps the asset's sound, so that it is decoded once for all of them, and a
file on an object store is fetched once.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from schemas.cut_file import CROPPED, CUT, RESTATED, CutMedia, cut_file, payload_of
from schemas.errors import MediaError, RecipeError
from schemas.fields import f, struct, without_roles
from schemas.files import sha256_of, write_whole
from schemas.ids import fraction_of
from schemas.machine import is_trouble
from schemas.records import CLIP, Row, Struct, span_of
from schemas.shard import SOUND_RATE_HZ
from schemas.spans import SPEECH_RATE_HZ, Reference
from stages.base import Context, Measure, Resources, StageConfig
from stages.caption.stage import Caption
from stages.crop import CropRule, after_crop, crop_of
from stages.face_blur import check_hidden, faces_to_hide
from stages.faces import Faces, load_networks
from stages.framing import Framing
from stages.media.cutting import CutOptions, CutReport, cut_clip, cut_sound, verify_clip
from stages.objects import leave
from stages.ocr.stage import OCR
from stages.quality.stage import QUALITY
from stages.sync.config import SyncRepair
from stages.sync.repair import Remeasure, repaired_clip
from stages.sync.result import Figures
from stages.sync.stage import Sync
from stages.timbre import Timbre, references_of

SOUND_ALONE = "sound"
"""How a clip without a picture is cut."""
SPOKEN = ("has_speech", "num_speakers", "spans")
SIZED = ("shot_size", "face_height_ratio")
BARRED = ("bars", "crop_x_px", "crop_y_px", "crop_width_px", "crop_height_px", "crop_ratio")
AFTER = without_roles(
    struct(
        f("clip", pa.struct([CLIP.field(name) for name in SPOKEN]), doc="columns of `clip`"),
        f("sync", pa.struct([Sync.adds.field("active")]), doc="columns of `sync`"),
        f("timbre", Timbre.adds, doc="columns of `timbre`"),
        f("caption", Caption.adds, doc="columns of `caption`"),
        f("faces", Faces.adds, doc="columns of `faces`"),
        f("framing", pa.struct([Framing.adds.field(name) for name in SIZED]), doc="columns of `framing`"),
        f("ocr", OCR, doc="columns of `ocr`"),
        f("quality", pa.struct([QUALITY.field(name) for name in BARRED]), doc="columns of `quality`"),
    )
)


class CutConfig(StageConfig):
    """How clips are written, whether their sync is repaired, and what is cut away of the picture."""

    crf: int = Field(default=18, ge=0, le=51)
    """x264 quality for clips that have to be encoded anew; 18 is visually lossless by x264's own guide."""
    allow_copy: bool = True
    """Copy the video stream where that is exact; otherwise encode every clip."""
    whole_check: float = Field(default=0.25, ge=0, le=1)
    """Share of the written clips, told by their ids, of which every picture is decoded and compared; of all others the first
    eight are. Times of frames, length and sound are checked in full, and pictures too where the sound was moved."""
    sync_repair: SyncRepair = SyncRepair()
    crop: CropRule = CropRule()
    blur_faces: Literal["none", "gaussian", "fill"] = Field(default="none", exclude_if=lambda how: how == "none")
    """Make every face unrecognisable in the written picture: gaussian leaves five soft spots across a face, or a grey
    ellipse where these still look like one; fill a grey ellipse everywhere. Needs stage `faces`; lips are not to be seen any
    more, and voices stay what they are."""


class Cut(Measure[CutConfig]):
    """The clip's media as it goes into a shard: cut, verified, its sync repaired if wanted, and left in the run's `cuts`."""

    name = "cut"
    version = "2"
    level = "clip"
    reads = ("clip", "download", "probe.has_audio", "probe.has_video")
    adds = struct(
        *CUT,
        f(
            RESTATED,
            pa.list_(AFTER),
            doc="one item where the sound was moved or the picture cropped: what is said of the clip now",
            in_shard=False,
        ),
    )
    Config = CutConfig
    resources = Resources(cpus=1.0, memory_gb=0.3, timeout_s=900.0)
    skips_rejected = True

    @classmethod
    def reads_with(cls, config: CutConfig) -> tuple[str, ...]:
        """Repairing needs what is to be repaired, cropping what is to be cut away, and blurring who is seen."""
        repaired = ("sync",) if config.sync_repair.enabled else ()
        hidden = () if config.blur_faces == "none" else ("faces",)
        return (*cls.reads, *repaired, *config.crop.reads, *hidden)

    @classmethod
    def may_read(cls, config: CutConfig) -> tuple[str, ...]:
        """Whose sound goes along, and what a repair or a crop states anew."""
        told = ("transcribe", "diarize", "picture", "audio", "caption") if config.sync_repair.enabled else ()
        return ("timbre", *told, *config.crop.may_read)

    def setup(self, ctx: Context) -> None:
        """Raises RecipeError where nobody says where to leave cuts."""
        super().setup(ctx)
        if not ctx.cuts_dir:
            raise RecipeError("stage cut has no folder to leave clips in.", remedy="Give Context.cuts_dir.")
        if self.config.blur_faces != "none":
            load_networks(ctx)
        self.remeasure = Remeasure(ctx)
        self._known: dict[tuple[str, int, int], str] = {}

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip, whose media are in the run's `cuts` then. Raises MediaError, also for a changed source."""
        clip_id = row["clip"]["clip_id"]
        self._check_source(row["download"])
        path = self.ctx.asset_path(row)
        if not row["probe"]["has_video"]:
            return self._sound_alone(path, row)
        part = crop_of(row, self.config.crop)
        options = CutOptions(crf=self.config.crf, allow_copy=self.config.allow_copy, crop=part)
        repaired = repaired_clip(row, self.config.sync_repair, self.ctx.configs)
        if repaired is not None:
            taken = repaired.repair
            options = replace(options, shift_ms=taken.shift_ms, drift_ppm=taken.drift_ms_per_s * 1e3)
        blur = self.config.blur_faces
        faces, num_faces = ((), None) if blur == "none" else faces_to_hide(self.ctx, path, row)
        out = self.ctx.scratch_dir / f"{clip_id}.mp4"
        try:
            if blur == "none" or repaired is not None:  # sync is measured anew by lips
                report = self._write(path, row, out, options)
            resync = None if repaired is None else self.remeasure(out, repaired)
            if blur != "none":
                report = self._hide_faces(path, row, out, replace(options, faces=faces, blur=blur))
            references = repaired.references if repaired is not None else references_of(row)
            voices, places = self._reference_sound(path, references)
            members = {"mp4": out.read_bytes(), "flac": flac_of(_heard(report, row)), "refs.flac": voices}
        finally:
            out.unlink(missing_ok=True)
        self._check_source(row["download"])
        self._leave(cut_file(clip_id, self.ctx.hashes[self.name]), payload_of(members))
        restated = {} if repaired is None else dict(repaired.restated)
        if part is not None:
            restated |= after_crop(row, report.crop, report.whole)
        return {
            **_measured(report, resync),
            **CutMedia.over(members).row(),
            "crop": None if part is None else dict(zip(CROPPED.names, report.crop, strict=True)),
            "num_faces_blurred": num_faces,
            "references": places,
            RESTATED: [restated] if restated else [],
        }

    def _hide_faces(self, path: Path, row: Row, out: Path, options: CutOptions) -> CutReport:
        """Writes the clip without faces; under grey instead of soft spots where the detector takes these for a face.

        Raises MediaError("face_left") where it sees one even then: somebody else, or head and shoulders around the grey.
        """
        report = self._write(path, row, out, options)
        try:
            check_hidden(self.ctx, out)
        except MediaError as error:
            if error.reason != "face_left" or options.blur == "fill":
                raise
            report = self._write(path, row, out, replace(options, blur="fill"))
            check_hidden(self.ctx, out)
        return report

    def _write(self, path: Path, row: Row, out: Path, options: CutOptions) -> CutReport:
        """Writes the clip to `out` and compares it with the plan."""
        is_moved = bool(options.shift_ms or options.drift_ppm)
        is_whole = is_moved or fraction_of(f"whole {row['clip']['clip_id']}") < self.config.whole_check
        planned = cut_clip(path, span_of(row["clip"]), out, options=options, decoder=self.ctx.media)
        return verify_clip(out, planned, is_whole=is_whole, decoder=self.ctx.media)

    def _sound_alone(self, path: Path, row: Row) -> dict[str, Any]:
        """The struct of a clip without a picture: its mp4 is empty, its flac the asset's own sound, sample for sample."""
        clip_id = row["clip"]["clip_id"]
        sound = cut_sound(path, span_of(row["clip"]), decoder=self.ctx.media)
        voices, places = self._reference_sound(path, references_of(row))
        members = {"mp4": b"", "flac": flac_of(sound), "refs.flac": voices}
        self._check_source(row["download"])
        self._leave(cut_file(clip_id, self.ctx.hashes[self.name]), payload_of(members))
        exact = dict.fromkeys(("start_error_us", "sound_error_samples", "duration_error_us"), 0)
        nothing = dict.fromkeys(("width_px", "height_px", "num_frames"), 0)
        untouched = dict.fromkeys(("applied_shift_ms", "applied_drift_ms_per_s"), 0.0)
        return {
            **dict.fromkeys(field.name for field in CUT),
            **exact,
            **nothing,
            **untouched,
            "mode": SOUND_ALONE,
            **CutMedia.over(members).row(),
            "references": places,
            RESTATED: [],
        }

    def _reference_sound(self, path: Path, references: Sequence[Reference]) -> tuple[bytes, list[dict[str, int]]]:
        """(refs.flac, where each reference lies in it): the asset's own sound, whatever is moved in the clip."""
        if not references:
            return flac_of(np.zeros(0, np.float32), SPEECH_RATE_HZ), []
        sound = self.ctx.media.audio(path, rate_hz=SPEECH_RATE_HZ, mono=True)
        pieces, places, first = [], [], 0
        for each in references:
            piece = sound.cut(Fraction(each.asset_start_s), Fraction(each.asset_end_s))
            places.append({"span_index": each.span_index, "first_sample": first, "num_samples": len(piece)})
            pieces.append(piece)
            first += len(piece)
        return flac_of(np.concatenate(pieces), SPEECH_RATE_HZ), places

    def _check_source(self, told: Struct) -> None:
        """Raises MediaError if a referenced file is not the one that was measured. Hashes only what was written to since."""
        if told["mtime_ns"] is None:
            return
        path = Path(told["path"])
        try:
            stat = path.stat()
            now = (str(path), stat.st_size, stat.st_mtime_ns)
            if now[1:] == (told["bytes"], told["mtime_ns"]):
                return
            if now not in self._known:
                self._known = {now: sha256_of(path)[0]}
        except OSError as error:
            if is_trouble(error):
                raise
            raise MediaError(f"'{path}' cannot be read: {error.strerror}.", reason="file_missing") from error
        if self._known[now] != told["sha256"]:
            raise MediaError(
                f"'{path}' has changed since it was measured: sha256 {told['sha256'][:12]}... then, "
                f"{self._known[now][:12]}... now.",
                reason="source_changed",
                remedy="Put the file back and give --retry-errors, or curate the new one under another name.",
            )

    def _leave(self, name: str, payload: bytes) -> None:
        target = f"{self.ctx.cuts_dir.rstrip('/')}/{name}"
        if "://" in target:
            leave(payload, target)
        else:
            write_whole(Path(target), payload)


def _heard(report: CutReport, row: Row) -> NDArray[np.float32]:
    """The clip's planned sound, float32 [n, 2]; none if the asset has none."""
    if not row["probe"]["has_audio"]:
        return np.zeros((0, 2), np.float32)
    if report.sound is None:
        raise MediaError("The asset's sound cannot be decoded any more.", reason="no_sound_decoded")
    return report.sound


def flac_of(sound: NDArray[np.float32], rate_hz: int = SOUND_RATE_HZ) -> bytes:
    """16-bit FLAC of float32 [n(, channels)]."""
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, sound, rate_hz, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def _measured(report: CutReport, resync: Figures | None) -> Mapping[str, Any]:
    """Fields of `CUT` that come of the written file."""
    return {
        "mode": report.mode,
        "start_error_us": report.start_error_us,
        "sound_error_samples": report.sound_error_samples,
        "duration_error_us": report.duration_error_us,
        "applied_shift_ms": report.applied_shift_ms,
        "applied_drift_ms_per_s": report.applied_drift_ppm / 1e3,
        "repaired_offset_ms": resync and resync.offset_ms,
        "repaired_offset_std_ms": resync and resync.offset_std_ms,
        "repaired_drift_ms_per_s": resync and resync.drift_ms_per_s,
        "repaired_confidence": resync and resync.confidence,
        "width_px": report.width_px,
        "height_px": report.height_px,
        "num_frames": report.num_frames,
    }
