"""Sound that was decoded for `probe` is not decoded again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import MediaError
from stages.media.decoder import Decoder, DecoderConfig
from stages.media.waveform import Waveform
from tests.stages.media.awkward_media import Film, Track, write

FORMS = (
    {"rate_hz": 16_000, "mono": True},
    {"rate_hz": None, "mono": False},
    {"rate_hz": 48_000, "channels": 2},
    {"rate_hz": 22_050, "mono": True},
)
RECORDINGS = {
    "one.mp4": [Track(440, 48_000)],
    "late.mkv": [Track(440, 44_100, starts=(0.5, 3.0))],
    "microphones.mov": [Track(tone, rate) for tone, rate in ((0, 48_000), (300, 44_100), (800, 48_000))],
}


def heard(media: Decoder, path: Path) -> list[Waveform]:
    return [media.audio(path, **form) for form in FORMS]


def spoil(path: Path) -> None:
    """Takes out all that could be decoded, and nobody sees it by the file's size and time."""
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_form_is_made_of_what_probe_has_heard(tmp_path: Path, name: str) -> None:
    path, scratch = write(tmp_path / name, [Film(num=50)], RECORDINGS[name]), tmp_path / "scratch"
    media = Decoder(scratch)
    plain = heard(media, path)
    media.close()
    probed = media.probe(path, keeps_sound=True)
    assert probed == Decoder(scratch).probe(path)
    spoil(path)
    kept = heard(media, path)
    for form, before, now in zip(FORMS, plain, kept, strict=True):
        assert (now.rate_hz, now.start, now.samples.shape) == (before.rate_hz, before.start, before.samples.shape), form
        np.testing.assert_allclose(now.samples, before.samples, rtol=0, atol=1e-6, err_msg=str(form))
    media.close()
    assert not list(scratch.iterdir())


def test_sound_that_has_no_room_is_decoded_when_it_is_wanted(tmp_path: Path) -> None:
    path, scratch = write(tmp_path / "long.mkv", [], [Track(440, 8000, codec="flac", seconds=60)]), tmp_path / "scratch"
    media = Decoder(scratch, DecoderConfig(scratch_gb=0.001))
    assert media.probe(path, keeps_sound=True)["duration_us"] == 60_000_000
    assert not list(scratch.iterdir())
    assert len(media.audio(path, rate_hz=4000).samples) == 240_000
    media.close()


def test_what_is_kept_counts_as_scratch_and_leaves_with_the_file(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{n}.mkv", [], [Track(440 * n, 8000, codec="flac", seconds=20)]) for n in (1, 2))
    scratch = tmp_path / "scratch"
    media = Decoder(scratch, DecoderConfig(scratch_gb=0.003))
    for _ in range(2):
        media.probe(first, keeps_sound=True)
    (kept,) = scratch.iterdir()
    assert kept.stat().st_size == 640_000
    assert media.audio(first, rate_hz=4000).samples.nbytes == 320_000
    with pytest.raises(MediaError, match="of scratch"):
        media.audio(first, rate_hz=32_000)
    tone = np.abs(np.fft.rfft(media.audio(second, rate_hz=2000).samples[:2000]))
    assert int(tone.argmax()) == 880
    assert not list(scratch.iterdir())
    media.close()
