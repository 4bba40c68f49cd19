"""The decoder: right frames at right times, sound on its timestamps, and nothing a broken file can do to the rest."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.demo.clips import flash_and_click, frame_number, variable_rate
from pipeline.demo.write import Encoding
from schemas.errors import MachineError, MediaError, RecipeError
from stages.base import Context
from stages.media.decoder import Decoder, DecoderConfig, Frames
from stages.media.geometry import Geometry
from stages.media.sound import ChannelStatistics, Decoded, Placement, default_mono_weights, placed, stereo_weights
from stages.media.waveform import Waveform

needs_decord = pytest.mark.skipif(
    find_spec("decord") is None, reason="decord is not installed; imported here, its zlib would break OpenCV's"
)
SMALL = Encoding(width_px=192, height_px=96)
RATE_HZ = 48_000


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    media = Decoder(tmp_path_factory.mktemp("scratch"), DecoderConfig(timeout_s=120.0))
    yield media
    media.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Numbered flash-and-click files of several kinds, made once."""
    folder = tmp_path_factory.mktemp("known")
    kinds = {
        "plain.mp4": SMALL,
        "ntsc.mp4": replace(SMALL, fps=Fraction(30000, 1001)),
        "vfr.mkv": variable_rate(3.0, 2, SMALL),
        "late.mp4": replace(SMALL, sound_start_s=0.5),
        "vp8.webm": replace(SMALL, video_codec="libvpx", audio_codec="libopus"),
    }
    out = {}
    for name, encoding in kinds.items():
        path = folder / name
        flash_and_click(path, 3.0, encoding, seed=3)
        out[name] = (path, encoding)
    return out


def _kept(run: Frames) -> Frames:
    return replace(run, images=run.images.copy())


# --- frames


@pytest.mark.parametrize("name", ["plain.mp4", "ntsc.mp4", "vfr.mkv", "vp8.webm"])
def test_every_frame_comes_once_and_in_order(made: Any, decoder: Decoder, name: str) -> None:
    path, encoding = made[name]
    frames = decoder.frames(path)
    assert [frame_number(image) for image in frames.images] == list(range(len(frames.pts)))
    # Matroska rounds to milliseconds; everything else is exact.
    expected = np.array([encoding.frame_time_s(i) for i in range(len(frames.pts))])
    tolerance = 1.1e-3 if name.endswith(("mkv", "webm")) else 1e-9
    offset = frames.times_s[0] - expected[0]
    assert abs(offset) < 0.04
    np.testing.assert_allclose(frames.times_s - offset, expected, atol=tolerance)
    assert frames.end_pts > frames.pts[-1]


@pytest.mark.parametrize("name", ["plain.mp4", "ntsc.mp4", "vfr.mkv", "vp8.webm"])
def test_a_stretch_is_half_open_on_frame_times(made: Any, decoder: Decoder, name: str) -> None:
    path, _ = made[name]
    whole = decoder.frames(path, size=(96, 48))
    base = Fraction(whole.num, whole.den)
    for first, last in [(0, 5), (7, 31), (44, 50), (51, 52)]:
        part = decoder.frames(
            path, start=int(whole.pts[first]) * base, end=int(whole.pts[last]) * base, size=(96, 48), format="gray"
        )
        assert part.pts.tolist() == whole.pts[first:last].tolist()
        assert part.end_pts == whole.pts[last]
        assert part.images.shape == (last - first, 48, 96)
    between = (int(whole.pts[3]) * base + int(whole.pts[4]) * base) / 2
    assert decoder.frames(path, start=between, end=int(whole.pts[6]) * base).pts.tolist() == whole.pts[4:6].tolist()


def test_chunks_join_without_gap_and_a_caller_may_stop_early(made: Any, decoder: Decoder) -> None:
    path, _ = made["plain.mp4"]
    whole = decoder.frames(path, size=(64, 32))
    runs = list(map(_kept, decoder.iter_frames(path, size=(64, 32), chunk=20)))
    assert [len(run.pts) for run in runs[:-1]] == [20] * (len(runs) - 1)
    assert [run.end_pts for run in runs[:-1]] == [int(run.pts[0]) for run in runs[1:]]
    np.testing.assert_array_equal(np.concatenate([run.images for run in runs]), whole.images)
    stream = decoder.iter_frames(path, chunk=5)
    next(stream)
    stream.close()
    assert len(decoder.frames(path, max_fps=5).pts) == 15


def test_sizes(made: Any, decoder: Decoder) -> None:
    path, _ = made["plain.mp4"]
    end = Fraction(1, 25)
    assert decoder.frames(path, end=end, long_side_px=96).images.shape == (1, 48, 96, 3)
    assert decoder.frames(path, end=end, long_side_px=4000).images.shape == (1, 96, 192, 3)
    with pytest.raises(MediaError) as caught:
        decoder.frames(path, start=Fraction(1000))
    assert caught.value.reason == "no_frames"


@needs_decord
def test_decord_gives_the_same_frames_at_the_same_times(made: Any, decoder: Decoder, tmp_path: Path) -> None:
    other = Decoder(tmp_path / "other", DecoderConfig(engine="decord"))
    for name in ("plain.mp4", "ntsc.mp4", "vfr.mkv"):
        path, _ = made[name]
        a = decoder.frames(path, start=Fraction(1, 2), end=Fraction(2), max_fps=10)
        b = other.frames(path, start=Fraction(1, 2), end=Fraction(2), max_fps=10)
        assert a.pts.tolist() == b.pts.tolist()
        assert a.end_pts == b.end_pts
        assert np.abs(a.images.astype(int) - b.images).mean() < 2
    other.close()


@needs_decord
def test_a_recipe_chooses_who_decodes_and_the_limits(made: Any, tmp_path: Path) -> None:
    from pipeline.config import load_recipe

    path, _ = made["plain.mp4"]
    for engine in ("pyav", "decord"):
        recipe = load_recipe("quickstart", [f"decoder.engine={engine}"])
        media = Context(tmp_path / engine, decoder=recipe.decoder).media
        assert len(media.frames(path).pts) == 75
        loaded = Path(f"/proc/{media._idle[0].pid}/maps").read_text()
        assert ("libdecord" in loaded) == (engine == "decord")
        media.close()
    small = Context(tmp_path, decoder=load_recipe("quickstart", ["decoder.max_pixels=1000"]).decoder).media
    with pytest.raises(MediaError, match=r"decoder\.max_pixels") as caught:
        small.frames(path)
    assert caught.value.reason == "too_many_pixels"
    small.close()
    with pytest.raises(RecipeError, match=r"decoder\.engine"):
        load_recipe("quickstart", ["decoder.engine=opencv"])


@needs_decord
def test_damage_under_decord_is_an_error_that_names_the_way_out(made: Any, tmp_path: Path) -> None:
    path, _ = made["plain.mp4"]
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    noise = np.random.default_rng(1)
    for at in noise.integers(start + 3000, start + len(content) // 2, 4000):
        content[at] = int(noise.integers(0, 256))
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content)
    media = Decoder(tmp_path / "scratch", DecoderConfig(engine="decord"))
    with pytest.raises(MediaError, match=r"decoder\.engine: pyav") as caught:
        media.frames(damaged)
    assert caught.value.reason == "decord_failed"
    media.close()


def test_display_matrix_and_aspect() -> None:
    sideways = Geometry(640, 360, Fraction(1), 3, False)
    assert sideways.display_size == (360, 640)
    assert Geometry(720, 576, Fraction(16, 15), 0, False).display_size == (768, 576)
    assert not sideways.is_plain


# --- sound


def test_clicks_are_heard_with_their_flashes(made: Any, decoder: Decoder) -> None:
    for path, _ in made.values():
        frames = decoder.frames(path, size=(48, 24), format="gray")
        flashes = frames.times_s[frames.images[:, 12:].mean(axis=(1, 2)) > 160]
        sound = decoder.audio(path, rate_hz=RATE_HZ)
        loud = np.flatnonzero(np.abs(sound.samples) > 0.3)
        onsets = loud[np.insert(np.diff(loud) > 1000, 0, True)] / RATE_HZ + float(sound.start)
        flashes = flashes[flashes > float(sound.start) + 0.01]
        assert len(flashes) >= 3
        assert len(onsets) == len(flashes)
        # A lossy codec smears a 2 ms click by some samples; Matroska rounds its clock to 1 ms.
        assert np.abs(onsets - flashes).max() < 2e-3, path.name


def test_cut_pads_with_silence_and_counts_samples_on_the_asset_clock() -> None:
    sound = Waveform(np.arange(1, 101, dtype=np.float32), 100, Fraction(1, 2))
    assert sound.cut(Fraction(1, 2), Fraction(3, 2)).tolist() == list(range(1, 101))
    early = sound.cut(Fraction(0), Fraction(1))
    assert early.tolist() == [0.0] * 50 + list(range(1, 51))
    late = sound.cut(Fraction(14, 10), Fraction(2))
    assert late.tolist() == list(range(91, 101)) + [0.0] * 50
    assert len(sound.cut(Fraction(1, 3), Fraction(2, 3))) == 67 - 33
    assert sound.cut(Fraction(9), Fraction(10)).tolist() == [0.0] * 100


class _Frames(list[Decoded]):
    rate_hz = 1000


def _place(times: list[float | None], length: int = 20) -> tuple[np.ndarray, Placement]:
    frames = _Frames(
        Decoded(np.full((length, 1), i + 1, np.float32), None if t is None else Fraction(t).limit_denominator(1000))
        for i, t in enumerate(times)
    )
    report = Placement()
    return np.concatenate(list(placed(frames, report)))[:, 0], report  # type: ignore[arg-type]


def test_holes_become_silence_and_jitter_does_not() -> None:
    steady = [i * 0.02 for i in range(30)]
    out, report = _place(steady)
    assert (len(out), report.gap_s) == (600, 0)
    hole = steady[:10] + [t + 0.7 for t in steady[10:]]
    out, report = _place(hole)
    assert float(report.gap_s) == pytest.approx(0.7)
    assert len(out) == 1300
    assert (out[200:900] == 0).all()
    assert out[199] == 10
    assert out[900] == 11
    lost = steady[:10] + steady[11:]
    assert float(_place(lost)[1].gap_s) == pytest.approx(0.02)
    jitter = [t + (0.015 if i == 12 else 0.0) for i, t in enumerate(steady)]
    out, report = _place(jitter)
    assert (len(out), report.gap_s) == (600, 0)
    out, report = _place([None if i % 3 else t for i, t in enumerate(steady)])
    assert len(out) == 600


def test_overlap_is_dropped_and_a_broken_clock_is_an_error() -> None:
    steady = [i * 0.02 for i in range(30)]
    out, report = _place(steady[:15] + [t - 0.1 for t in steady[15:]])
    assert float(report.overlap_s) == pytest.approx(0.1)
    assert len(out) == 500
    with pytest.raises(MediaError) as caught:
        _place(steady[:15] + [t + 5000 for t in steady[15:]])
    assert caught.value.reason == "broken_timestamps"


def test_mono_keeps_what_is_to_be_heard() -> None:
    rng = np.random.default_rng(0)
    voice, other = rng.standard_normal((2, 4000)).astype(np.float32)
    silence = np.zeros_like(voice)

    def weights(channels: list[np.ndarray], names: list[str]) -> list[float]:
        statistics = ChannelStatistics()
        statistics.add(np.stack(channels, axis=1))
        return [round(float(w), 3) for w in statistics.mono_weights(names)]

    assert weights([voice, voice], ["FL", "FR"]) == [0.5, 0.5]
    assert weights([voice, other], ["FL", "FR"]) == [0.5, 0.5]
    assert weights([voice, silence], ["FL", "FR"]) == [1, 0]
    assert weights([voice, -voice], ["FL", "FR"]) in ([1, 0], [0, 1])
    assert weights([voice, 0.05 * other], ["FL", "FR"]) == [0.5, 0.5]  # a quiet second speaker is not silence
    surround = ["FL", "FR", "FC", "LFE", "BL", "BR"]
    assert weights([silence, silence, voice, silence, silence, silence], surround) == [0, 0, 1, 0, 0, 0]
    assert default_mono_weights(surround).argmax() == 2
    assert default_mono_weights(surround)[3] == 0
    assert stereo_weights(["FC"]).tolist() == [[1, 1]]
    assert stereo_weights(surround).sum(0) == pytest.approx([1, 1])


# --- containment


def test_a_hanging_decode_is_killed(made: Any, tmp_path: Path) -> None:
    hanging = tmp_path / "pipe.mp4"
    os.mkfifo(hanging)
    media = Decoder(tmp_path / "scratch", DecoderConfig(timeout_s=0.5))
    path, _ = made["plain.mp4"]
    media.timeout_s = 60
    media.probe(path)
    media.timeout_s = 0.5
    child = media._idle[0]
    os.kill(child.pid, signal.SIGSTOP)  # a decoder that spins without answering
    with pytest.raises(MediaError) as caught:
        media.probe(path)
    assert caught.value.reason == "decode_timeout"
    assert "0.5 s" in str(caught.value)
    assert child.exit_status == -signal.SIGKILL
    media.timeout_s = 60
    assert media.probe(path)["num_frames"] == 75  # the next file gets a fresh child
    with pytest.raises(MediaError) as caught:
        media.probe(hanging)
    assert caught.value.reason == "file_missing"
    media.close()


def test_a_crash_and_a_memory_limit_cost_one_request(made: Any, tmp_path: Path) -> None:
    path, _ = made["plain.mp4"]
    media = Decoder(tmp_path / "scratch", DecoderConfig(memory_gb=1.0, timeout_s=60))
    with pytest.raises(MediaError, match="signal 11") as caught:
        at_work_ended_by(signal.SIGSEGV, media, path)
    assert caught.value.reason == "decoder_crashed"
    with pytest.raises(MediaError) as caught:
        media.frames(path, size=(20000, 20000))
    assert caught.value.reason == "decode_memory"
    assert len(media.frames(path, size=(8, 8)).pts) == 75
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY  # only the child is limited
    media.max_pixels = 1000
    with pytest.raises(MediaError) as caught:
        media.frames(path)
    assert caught.value.reason == "too_many_pixels"
    media.close()


def at_work_ended_by(number: int, media: Decoder, path: Path) -> None:
    """Sends a signal to the child while it decodes `path`, between two frames."""
    media.probe(path)
    pid = media._idle[0].pid
    runs = media.iter_frames(path, chunk=1)
    next(runs)
    os.kill(pid, number)
    list(runs)


def test_a_child_that_is_gone_before_the_request_costs_nothing(made: Any, tmp_path: Path) -> None:
    path, _ = made["plain.mp4"]
    media = Decoder(tmp_path / "scratch")
    media.probe(path)
    process = media._idle[0]._process
    process.kill()
    process.wait()
    assert media.probe(path)["num_frames"] == 75
    media.close()


def kill_all_children(_: Frames) -> None:
    """Kills every decoder's child of this process."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            is_ours = f"PPid:\t{os.getpid()}\n" in status.read_text()
            command = status.with_name("cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if is_ours and b"stages.media.child" in command:
            os.kill(int(status.parent.name), signal.SIGKILL)


def test_a_child_that_is_killed_at_work_is_no_fault_of_the_file(made: Any, tmp_path: Path) -> None:
    """Another takes over where it was; one that is killed as well ends the run. Both take along only what they wrote."""
    path, _ = made["plain.mp4"]
    scratch = tmp_path / "scratch"
    (scratch / "partial").mkdir(parents=True)
    (scratch / "remote.mp4").write_bytes(b"of somebody else")
    media = Decoder(scratch)
    whole = media.frames(path, size=(32, 16))
    pid = media._idle[0].pid
    runs = media.iter_frames(path, chunk=10, size=(32, 16))
    found = [_kept(next(runs))]
    os.kill(pid, signal.SIGKILL)
    found += map(_kept, runs)
    assert np.concatenate([run.pts for run in found]).tolist() == whole.pts.tolist()
    assert np.array_equal(np.concatenate([run.images for run in found]), whole.images)
    with pytest.raises(MachineError, match="signal 9"):
        list(map(kill_all_children, media.iter_frames(path, chunk=1)))
    assert sorted(left.name for left in scratch.iterdir()) == ["partial", "remote.mp4"]
    assert media.probe(path)["num_frames"] == 75
    media.close()


def test_a_full_disk_is_no_fault_of_the_file(made: Any, tmp_path: Path) -> None:
    path, _ = made["plain.mp4"]
    media = Decoder(tmp_path)
    (tmp_path / f"sound-{os.getpid()}-1").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        media.audio(path)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == [], "room is made at once"
    assert len(media.frames(path, size=(8, 8)).pts) == 75
    media.close()


def test_a_machine_that_opens_no_more_files_is_no_fault_of_the_file(made: Any, tmp_path: Path) -> None:
    """The child reaches its own limit when libav opens the file."""
    path, _ = made["plain.mp4"]
    media = Decoder(tmp_path)
    media.probe(path)
    pid = media._idle[0].pid
    num_open = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (num_open, num_open))
    with pytest.raises(OSError, match="Too many open files") as caught:
        media.probe(path)
    assert caught.value.errno == errno.EMFILE
    media.close()


def test_children_end_with_their_decoder(made: Any, tmp_path: Path) -> None:
    path, _ = made["plain.mp4"]
    media = Decoder(tmp_path / "scratch", DecoderConfig(timeout_s=60))
    media.probe(path)
    pid = media._idle[0].pid
    del media
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("name", "content", "reason", "words"),
    [
        ("empty.mp4", b"", "empty_file", "0 bytes"),
        ("page.mp4", b"<!DOCTYPE html><html><body>404</body></html>", "web_page", "web page"),
        (
            "noise.mkv",
            bytes(np.random.default_rng(1).integers(0, 256, 20000, dtype=np.uint8)),
            "not_decodable",
            "format",
        ),
        ("cut.mp4", b"\0\0\0\x18ftypisom" + b"\0" * 12 + b"\0\0\1\0mdat" + b"x" * 248, "no_index", "moov"),
        ("notes.mp4", b"just some words\nand more\n", "text_file", "text"),
        ("picture.mp4", b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "still_picture", "picture"),
    ],
)
def test_what_is_not_media_is_named(
    tmp_path: Path, decoder: Decoder, name: str, content: bytes, reason: str, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for ask in (decoder.probe, decoder.audio, decoder.frames):
        with pytest.raises(MediaError) as caught:
            ask(path)
        assert caught.value.reason == reason
        assert words in str(caught.value)


def test_a_playlist_opens_nothing_else(made: Any, tmp_path: Path, decoder: Decoder) -> None:
    target, _ = made["plain.mp4"]
    local = tmp_path / "a.m3u8"
    local.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{target}\n#EXT-X-ENDLIST\n")
    concat = tmp_path / "b.mp4"
    concat.write_text(f"ffconcat version 1.0\nfile {target}\n")
    listing = tmp_path / "concat:a|b.mp4"
    listing.write_bytes(b"")
    for path, reason in ((local, "playlist"), (concat, "playlist"), (listing, "empty_file")):
        with pytest.raises(MediaError) as caught:
            decoder.probe(path)
        assert caught.value.reason == reason
    for uri in ("http://127.0.0.1:9/x.mp4", f"concat:{target}", "data:video/mp4;base64,AAAA", "/dev/null"):
        with pytest.raises(MediaError) as caught:
            decoder.probe(uri)
        assert caught.value.reason == "file_missing"


def test_remote_assets_are_fetched_once_and_forgotten_later(made: Any, decoder: Decoder) -> None:
    import fsspec

    path, _ = made["plain.mp4"]
    memory = fsspec.filesystem("memory")
    for name in "abc":
        memory.pipe_file(f"/assets/{name}.mp4", path.read_bytes())
    first = decoder.localise("memory://assets/a.mp4")
    assert decoder.localise("memory://assets/a.mp4") == first
    assert decoder.probe(first)["num_frames"] == 75
    decoder.localise("memory://assets/b.mp4")
    decoder.localise("memory://assets/c.mp4")
    assert not first.exists()
    assert decoder.localise(f"file://{path}") == path
    with pytest.raises(MediaError) as caught:
        decoder.localise("memory://assets/none.mp4")
    assert caught.value.reason == "asset_unreachable"
    assert not [path for path in decoder.scratch_dir.iterdir() if path.stat().st_size == 0]


# --- real media


def _items(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "manifest.json").read_text())["items"])


@pytest.mark.slow
def test_every_awkward_file_is_read_or_refused_with_a_reason(media_dir: Path, decoder: Decoder) -> None:
    for item in _items(media_dir):
        path = media_dir / item["path"]
        if "awkward" not in item["path"] or item["bytes"] > 600_000:
            continue
        kinds = {stream["type"] for stream in item["probe"].get("streams", [])}
        for kind, ask in (
            ("audio", decoder.audio),
            ("video", lambda p: decoder.frames(p, size=(16, 16), format="gray")),
        ):
            reason = _reason(ask, path)
            assert (reason is None) == (kind in kinds), (item["path"], kind, reason)


def _reason(ask: Callable[[Path], Any], path: Path) -> str | None:
    """Why `path` was refused; None if it was read."""
    try:
        ask(path)
    except MediaError as error:
        return f"{error.reason}: {error}"
    return None


def test_phase_inverted_and_one_sided_sound_is_heard(media_dir: Path, decoder: Decoder) -> None:
    folder = media_dir / "awkward"
    plain = decoder.audio(media_dir / "talking" / "talking_woman_red_jacket_glasses.mp4").samples
    for name in ("stereo_phase_inverted.mov", "speech_only_in_centre_of_5.1.mp4", "stereo_right_channel_silent.mp4"):
        if not (folder / name).exists():
            pytest.skip("awkward files are not here")
        sound = decoder.audio(folder / name).samples
        size = min(len(sound), len(plain))
        likeness = np.corrcoef(sound[:size], plain[:size])[0, 1]
        assert abs(likeness) > 0.95, name


@pytest.mark.parametrize(
    ("name", "lag_ms"),
    [
        ("edit_list_preroll_trim_copy.mov", 0),
        ("audio_track_starts_0.48s_late.mp4", 480),
        ("audio_starts_late_and_has_hole.mkv", 0),
        ("mpegts_timestamp_wrap.ts", 0),
        ("mpegts_starts_mid_gop.ts", 0),
        ("vfr_dropped_frames_and_stall.mp4", 0),
        ("fragmented_empty_moov.mp4", 0),
        ("bframes_open_gop.mkv", 0),
        ("wmv2_wma.wmv", 0),
        ("three_audio_tracks_second_is_default.mkv", 0),
    ],
)
@pytest.mark.slow
def test_sound_and_picture_of_derived_files_keep_their_distance(
    media_dir: Path, decoder: Decoder, references: dict[str, Any], name: str, lag_ms: float
) -> None:
    """Sound and picture are each located in the file they were made from; what remains is the lag of the reading."""
    items = {Path(item["path"]).name: item for item in _items(media_dir)}
    if name not in items:
        pytest.skip("awkward files are not here")
    origin = items[name]["origin"][0]["path"]
    (source,) = [
        item["path"]
        for item in items.values()
        if item["path"].startswith("talking/") and item["derived"] == "unmodified copy" and item["origin"][0]["path"] == origin
    ]  # fmt: skip
    sound, frames = _heard_and_seen(decoder, media_dir / "awkward" / name)
    if source not in references:
        references[source] = _heard_and_seen(decoder, media_dir / source)
    whole, reference = references[source]
    assert _sound_position(sound, whole) - _picture_position(frames, reference) == pytest.approx(-lag_ms, abs=4)


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    """Sound and pictures of unmodified files, decoded once."""
    return {}


def _heard_and_seen(decoder: Decoder, path: Path) -> tuple[Waveform, Frames]:
    return decoder.audio(path), decoder.frames(path, size=(32, 32), format="gray", end=Fraction(8))


def _sound_position(part: Waveform, whole: Waveform) -> float:
    """Milliseconds by which the time of `part` is ahead of the same sound's time in `whole`."""
    from scipy.signal import fftconvolve

    curve = fftconvolve(whole.samples, part.samples[::-1])
    lag = int(np.abs(curve).argmax()) - (len(part.samples) - 1)
    return 1000 * (lag / 16000 + float(whole.start) - float(part.start))


def _picture_position(part: Frames, whole: Frames) -> float:
    a = part.images.reshape(len(part.images), -1).astype(float)
    b = whole.images.reshape(len(whole.images), -1).astype(float)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    best = [int(np.square(b - image).sum(1).argmin()) for image in a]
    return float(np.median([1000 * (whole.times_s[j] - part.times_s[i]) for i, j in enumerate(best)]))


def test_a_child_that_has_grown_is_replaced_and_its_answer_kept(tmp_path: Path) -> None:
    """With a limit so small that every request leaves the child spent, the file is still decoded right."""
    from pipeline.demo import flash_and_click

    path = flash_and_click(tmp_path / "v.mp4", duration_s=2.0).path
    decoder = Decoder(tmp_path / "scratch", DecoderConfig(memory_gb=4.0))
    roomy = decoder.frames(path, long_side_px=64).images.copy()
    assert len(decoder._idle) == 1
    decoder.close()
    tight = Decoder(tmp_path / "scratch2", retire_gb=0.001)
    assert np.array_equal(tight.frames(path, long_side_px=64).images, roomy)
    assert not tight._idle
    tight.close()


@pytest.mark.slow
def test_a_large_caller_does_not_make_its_children_look_grown(tmp_path: Path) -> None:
    """A Ray worker that holds models forks from gigabytes; its decoder must still keep the child."""
    from pipeline.demo import flash_and_click

    path = flash_and_click(tmp_path / "v.mp4", duration_s=2.0).path
    held = np.ones(40_000_000)
    decoder = Decoder(tmp_path / "scratch", retire_gb=held.nbytes / 2e9 + 0.2)
    decoder.frames(path, long_side_px=64)
    assert len(decoder._idle) == 1
    decoder.close()
