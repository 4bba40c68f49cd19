"""Curated clips -> latents: windows, frames at 24 fps, sound, caption cut to the window, voices. Frozen networks only.

window    up to `max_frames` frames at 24 fps from the clip's beginning, 4n+1 of them, never a repeated or padded one
picture   the frame on screen at k/24 s, scaled to cover the official bucket, cropped around its centre
sound     16 kHz, the window's 25 latents per second; at most the last 40 ms are padded, where a latent overlaps the end
text      the caption with only the words heard in the window (`conditioning.cut_spans`)
voices    one reference per spoken line, from another utterance; none where curation found only the line itself
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.data.reader import RawSample
from model.encoding.clip_media import read_frames, read_sound
from model.encoding.codec import open_codecs
from model.encoding.config import EncodeConfig
from model.network.conditioning import cut_spans
from model.network.config import NavaConfig
from model.network.tokens import Sample, check_sample
from schemas.budget import FRAME_RATE_HZ, native_resolution, paired_audio_tokens, pixel_bucket, snap_frames
from schemas.errors import ItemError, MediaError, ModelError
from schemas.lines import caption_or_lines
from schemas.spans import SPEECH_RATE_HZ, SpeechSpan

SHORTEST_VOICE_S = 0.5
"""Speaker networks are trained on seconds of speech; less says little about a voice."""


@dataclass(frozen=True, slots=True)
class ClipWindow:
    """A stretch of a clip on the 24 fps grid. `num_frames` is 4n+1 beside a picture, any number for sound alone."""

    number: int
    start_frame: int
    num_frames: int

    @property
    def start_s(self) -> float:
        """Start on the clip clock."""
        return self.start_frame / FRAME_RATE_HZ

    @property
    def end_s(self) -> float:
        """End on the clip clock: that of its last frame."""
        return (self.start_frame + self.num_frames) / FRAME_RATE_HZ


@dataclass(frozen=True, slots=True)
class EncodedWindow:
    """One training sample and where it comes from."""

    sample: Sample
    clip_id: str
    window: ClipWindow
    height_px: int
    width_px: int


def windows_of(duration_s: float, has_video: bool, config: EncodeConfig) -> list[ClipWindow]:
    """Windows of a clip, side by side; empty when even the first is shorter than `min_frames`."""
    available = int(round(duration_s * FRAME_RATE_HZ, 6))
    found = []
    for number in range(config.max_windows):
        num_frames = min(config.max_frames, available - number * config.max_frames)
        num_frames = snap_frames(num_frames) if has_video and num_frames > 0 else num_frames
        if num_frames < config.min_frames:
            break
        found.append(ClipWindow(number, number * config.max_frames, num_frames))
    return found


def window_key(clip_id: str, window: ClipWindow) -> str:
    """Sample key: the clip's own for its first window, with a number behind it for the others."""
    return clip_id if window.number == 0 else f"{clip_id}-w{window.number:02d}"


def bucket_of(facts: Mapping[str, Any], config: EncodeConfig) -> tuple[int, int]:
    """(height_px, width_px) that the clip is brought to; zeros without a picture."""
    if not facts["has_video"]:
        return 0, 0
    height, width = facts["height_px"], facts["width_px"]
    return pixel_bucket(height, width, config.resolution or native_resolution(height, width))


class ClipEncoder:
    """The frozen networks, opened once. Raises ModelError where one is missing that the clips need.

    `has_video`, `has_audio`: whether any of the clips has a picture, or sound.
    """

    def __init__(
        self, config: EncodeConfig, network: NavaConfig, *, has_video: bool = True, has_audio: bool = True
    ) -> None:
        self._config, self._network = config, network
        needed = {"text_encoder": "the captions"}
        needed |= {"video_vae": "the clips with a picture"} if has_video else {}
        needed |= {"audio_vae": "the clips with sound"} if has_audio else {}
        lacking = [f"{name}/ for {clips}" for name, clips in needed.items() if not (config.codecs / name).is_dir()]
        if lacking and config.codecs.is_dir():  # told before any of the others is loaded
            raise ModelError(f"{config.codecs} has no {' and no '.join(lacking)}.", remedy="See docs/checkpoints.md.")
        self._codecs = open_codecs(config.codecs, network, torch.device(config.device), getattr(torch, config.dtype))

    def encode(self, raw: RawSample, facts: Mapping[str, Any]) -> Iterator[EncodedWindow]:
        """Every window of a clip. `facts` is its row of the index.

        Raises ItemError or ModelError for a clip that cannot be trained on: too short, undecodable, unpaired caption.
        """
        windows = windows_of(facts["duration_s"], facts["has_video"], self._config)
        if not windows:
            raise ItemError(
                f"{facts['duration_s']:.2f} s are fewer than {self._config.min_frames} frames.", reason="too_short"
            )
        height_px, width_px = bucket_of(facts, self._config)
        annotation = json.loads(bytes(raw.members["json"]))
        wave_CS = self._sound(raw, facts)
        voices = self._voices(annotation, raw)
        pictures = self._pictures(raw, windows, height_px, width_px) if facts["has_video"] else None
        for window in windows:
            pixels_THWC = next(pictures) if pictures is not None else None
            sample = self._sample(window_key(raw.clip_id, window), annotation, window, pixels_THWC, wave_CS, voices)
            check_sample(sample, self._network)
            yield EncodedWindow(sample, raw.clip_id, window, height_px, width_px)

    @torch.inference_mode()
    def _sample(
        self,
        key: str,
        annotation: Mapping[str, Any],
        window: ClipWindow,
        pixels_THWC: Tensor | None,
        wave_CS: Tensor | None,
        voices: Mapping[int, Tensor],
    ) -> Sample:
        text, placeholders, speakers = self._text(annotation, voices, window)
        return Sample(
            key,
            text=text,
            video=None if pixels_THWC is None else self._video(pixels_THWC),
            audio=None if wave_CS is None else self._audio(wave_CS, window, pixels_THWC is not None),
            speakers=speakers,
            placeholders=placeholders,
        )

    def _pictures(
        self, raw: RawSample, windows: Sequence[ClipWindow], height_px: int, width_px: int
    ) -> Iterator[Tensor]:
        """uint8 [T, H, W, 3] of each window; the clip is decoded once."""
        times = [(w.start_frame + k) / FRAME_RATE_HZ for w in windows for k in range(w.num_frames)]
        frames = read_frames(raw.members["mp4"], times, height_px, width_px)
        for window in windows:
            yield torch.from_numpy(np.stack([next(frames) for _ in range(window.num_frames)]))

    def _video(self, pixels_THWC: Tensor) -> Tensor:
        assert self._codecs.video is not None, "checked when opened"
        pixels_CTHW = pixels_THWC.permute(3, 0, 1, 2).to(self._config.device).float() / 127.5 - 1
        return self._codecs.video.encode(pixels_CTHW).cpu()

    def _sound(self, raw: RawSample, facts: Mapping[str, Any]) -> Tensor | None:
        if not facts["has_audio"]:
            return None
        return torch.from_numpy(read_sound(raw.members["flac"], self._network.audio_sample_rate_hz, "the flac member"))

    def _audio(self, wave_CS: Tensor, window: ClipWindow, has_video: bool) -> Tensor:
        assert self._codecs.audio is not None, "checked when opened"
        rate_hz, per_latent = self._network.audio_sample_rate_hz, self._codecs.audio.samples_per_latent
        start = round(window.start_s * rate_hz)
        end = round(window.end_s * rate_hz)
        if has_video:
            end = start + paired_audio_tokens(window.num_frames) * per_latent
        cut = wave_CS[:, start:end]
        missing = end - start - cut.shape[1]
        if missing > 2 * per_latent:
            raise MediaError(
                f"the sound ends {missing / rate_hz:.3f} s before the window at {window.end_s:.3f} s.",
                reason="too_short",
            )
        return self._codecs.audio.encode(torch.nn.functional.pad(cut, (0, missing))).cpu()

    def _text(
        self, annotation: Mapping[str, Any], voices: Mapping[int, Tensor], window: ClipWindow
    ) -> tuple[Tensor, tuple[int, ...], list[Tensor | None]]:
        """(text rows, placeholder rows, one voice or None per line) of what is said in the window."""
        assert self._codecs.text is not None, "checked when opened"
        spans = SpeechSpan.all_of(annotation["clip"].get("spans"))
        written = (annotation.get("caption") or {}).get("text")
        caption = caption_or_lines(written, (span.text for span in spans))
        caption, _, kept = cut_spans(caption, spans, window.start_s, window.end_s)
        (encoded,) = self._codecs.text.encode([caption])
        return encoded.rows.cpu(), encoded.voice_rows, [voices.get(i) for i in kept]

    def _voices(self, annotation: Mapping[str, Any], raw: RawSample) -> dict[int, Tensor]:
        """Speaker vector by span index. A reference that holds the very line it would voice is not used.

        With a speaker network among the codecs, it is applied to the references' own sound, wherever in the source they
        were taken. Without one, curation's vectors are taken, if they are as wide as the network reads.
        """
        references = (annotation.get("timbre") or {}).get("references") or []
        usable = {reference["span_index"] for reference in references if not reference["is_same_span"]}
        if self._codecs.speaker is None:
            matrix = np.load(io.BytesIO(raw.members["npy"]), allow_pickle=False)
            is_fitting = matrix.ndim == 2 and matrix.shape[1] == self._network.speaker_dim
            return {index: torch.from_numpy(matrix[index]) for index in usable if is_fitting}
        places = [place for place in annotation["cut"]["references"] if place["span_index"] in usable]
        places = [place for place in places if place["num_samples"] >= SHORTEST_VOICE_S * SPEECH_RATE_HZ]
        if not places:
            return {}
        mono_S = torch.from_numpy(read_sound(raw.members["refs.flac"], SPEECH_RATE_HZ, "the refs.flac member")).mean(0)
        vectors = {}
        for place in places:
            first, count = place["first_sample"], place["num_samples"]
            if first + count > len(mono_S):
                raise MediaError(
                    f"{raw.clip_id}: the sound of its voice references ends before {first + count} samples."
                )
            vectors[place["span_index"]] = self._codecs.speaker.embed(mono_S[first : first + count]).cpu()
        return vectors
