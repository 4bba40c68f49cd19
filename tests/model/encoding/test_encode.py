"""Encoding against clips whose content is known: the right frames, sound, words and voices, whole shards, once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.data.index import ShardIndex
from model.data.reader import SampleReader, open_shards
from model.encoding.clip_media import read_frames, read_sound
from model.encoding.codec import TextEncoder, open_codecs
from model.encoding.config import EncodeConfig
from model.encoding.encode import ClipEncoder, ClipWindow, EncodedWindow, windows_of
from model.encoding.encode_shards import encode_shards
from model.encoding.latents import read_latents
from model.encoding.online import open_decoder, open_index
from model.encoding.tiny_codec import write_tiny_codecs
from model.network.config import NavaConfig
from model.training.metrics import read_samples
from model.training.start import train
from schemas.arrow_file import read_table, table_bytes, with_facts
from schemas.budget import clip_budget
from schemas.errors import MediaError, ModelError, ShardError
from schemas.timing import Span
from tests.model.curated_shards import KnownClip, flac_of, level_of, mp4_of, pitch_hz, refs_of, write_run
from tests.model.latent_shards import recipe

pytestmark = pytest.mark.xdist_group("codecs")  # whoever has imported their libraries once
TINY = NavaConfig.preset("nava_tiny")
SPEECH = (("hello there my friend", 0.1, 1.3), ("good bye now", 1.5, 1.95))
CLIPS = [
    [
        KnownClip("aa", 2.0, spans=SPEECH, references=((0, 1.3, 2.0, False), (1, 1.5, 1.95, True))),
        KnownClip("bb", 1.5, fps=25, width_px=180, height_px=320),
        KnownClip("cc", 0.5),
    ],
    [KnownClip("dd", 3.1, has_video=False), KnownClip("ee", 1.4, has_audio=False)],
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny codecs and a curated run."""
    folder = tmp_path_factory.mktemp("home")
    write_tiny_codecs(folder / "codecs", TINY)
    write_run(folder / "run", CLIPS)
    return folder


@pytest.fixture(scope="module")
def latents(home: Path) -> Path:
    """The run, encoded; what was said meanwhile in `said.txt`."""
    said: list[str] = []
    encode_shards(str(home / "run"), home / "latents", settings(home), TINY, say=said.append)
    (home / "said.txt").write_text("\n".join(said))
    return home / "latents"


def settings(home: Path, **changes: Any) -> EncodeConfig:
    """Windows of 17 frames of the smallest size, so that encoding takes a second a clip."""
    short = {"resolution": 256, "max_frames": 17, "min_frames": 17}
    return EncodeConfig.model_validate({"codecs": home / "codecs", **short, **changes})


@pytest.mark.parametrize("fps", [12, 24, 25, 30])
def test_frames_are_those_on_screen_at_their_times(fps: int) -> None:
    clip = KnownClip("x", 2.0, fps=fps)
    times = [k / 24 for k in range(48)]
    frames = list(read_frames(memoryview(mp4_of(clip)), times, 192, 336))
    expected = [level_of(int(time * fps + 1e-6)) for time in times]
    assert frames[0].shape == (192, 336, 3)
    np.testing.assert_allclose([frame[:, :100].mean() for frame in frames], expected, atol=1.5)
    np.testing.assert_allclose([frame[:, -100:].mean() for frame in frames], np.array(expected) + 20, atol=1.5)
    with pytest.raises(MediaError, match=r"ends at 2\.000 s, a frame at 2\.042 s"):
        list(read_frames(memoryview(mp4_of(clip)), [k / 24 for k in range(50)], 192, 336))


@pytest.mark.parametrize("is_turned", [True, False])
def test_clips_as_the_cutter_writes_them_are_read_upright(tmp_path: Path, is_turned: bool) -> None:
    """The reader knows no display matrix: the cutter must have turned the picture, and may copy only one that is plain."""
    import av

    from pipeline.demo.write import turn_display
    from stages.media.cutting import cut_clip

    source, out = tmp_path / "source.mp4", tmp_path / "clip.mp4"
    source.write_bytes(mp4_of(KnownClip("x", 0.5)))
    if is_turned:
        turn_display(source, 1)
    with av.open(str(source)) as container:
        base, length = container.streams.video[0].time_base, container.streams.video[0].duration
    plan = cut_clip(source, Span(0, length, base.numerator, base.denominator), out)
    assert plan.mode == ("encode" if is_turned else "copy")
    size = (336, 192) if is_turned else (192, 336)
    (frame,) = read_frames(memoryview(out.read_bytes()), [0.0], *size)
    assert frame.shape == (*size, 3)
    one, other = (frame[:100], frame[-100:]) if is_turned else (frame[:, :100], frame[:, -100:])
    np.testing.assert_allclose(sorted([one.mean(), other.mean()]), [level_of(0), level_of(0) + 20], atol=2.5)


def test_sound_keeps_its_place_and_pitch() -> None:
    wave = read_sound(memoryview(flac_of(KnownClip("x", 3.0))), 16000, "x")
    assert wave.shape == (1, 48000)
    for second in range(3):
        spectrum = np.abs(np.fft.rfft(wave[0, second * 16000 :][:16000] * np.hanning(16000)))
        assert int(spectrum.argmax()) == pitch_hz(second)


def test_windows_lie_side_by_side_and_are_never_padded() -> None:
    config = EncodeConfig(codecs=Path("."), max_frames=49, max_windows=3, min_frames=17)
    assert windows_of(5.0, True, config) == [ClipWindow(0, 0, 49), ClipWindow(1, 49, 49), ClipWindow(2, 98, 21)]
    assert windows_of(2.2, True, config) == [ClipWindow(0, 0, 49)]
    assert windows_of(2.2, False, config.model_copy(update={"max_frames": 121})) == [ClipWindow(0, 0, 52)]
    assert windows_of(0.6, True, config) == []
    whole = EncodeConfig(codecs=Path("."))
    for duration in (1.4, 3.0, 5.04, 9.9):
        (window,) = windows_of(duration, True, whole)
        cost = clip_budget(duration_s=duration, height_px=704, width_px=1280, max_frames=121)
        assert window.num_frames == cost.num_frames


@pytest.mark.slow
def test_shards_become_latent_shards_once(home: Path, latents: Path, tmp_path: Path) -> None:
    assert "there already" not in (home / "said.txt").read_text()
    shutil.copytree(latents, tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    again: list[str] = []
    manifest = encode_shards(str(home / "run"), tmp_path, settings(home), TINY, say=again.append)
    assert sum("there already" in line for line in again) == 2, "nothing is encoded twice"
    assert (manifest.num_clips, manifest.num_samples) == (5, 4)
    assert list(manifest.left_out) == ["cc"]
    assert manifest.num_left_out_by_reason == {"too_short": 1}
    index = ShardIndex.open(tmp_path / "index", split="train")
    rows = {index.clip_id(row): index.values(row) for row in range(len(index))}
    samples = {
        name: read_latents(SampleReader(index, open_shards(tmp_path / "shards")).read(row))
        for row, name in enumerate(rows)
    }
    for name, sample in samples.items():
        video = 0 if sample.video is None else sample.video[0, :, ::2, ::2].numel()
        assert rows[name]["video_tokens"] == video
        assert rows[name]["audio_tokens"] == (0 if sample.audio is None else len(sample.audio))
        assert rows[name]["text_tokens"] == len(sample.text)
    assert samples["aa"].video.shape == (6, 5, 12, 21)
    assert samples["aa"].audio.shape == (18, 10), "ceil(17 / 24 x 25)"
    assert samples["bb"].video.shape == (6, 5, 21, 12)
    assert samples["dd"].video is None
    assert samples["dd"].audio.shape == (18, 10)
    assert samples["ee"].audio is None
    (tmp_path / "index" / "00000.arrow").unlink()
    again.clear()
    encode_shards(str(home / "run"), tmp_path, settings(home), TINY, say=again.append)
    assert sum("there already" in line for line in again) == 1, "only what is missing is made anew"
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


@pytest.mark.slow
def test_other_settings_are_encoded_anew_with_more_windows(home: Path, tmp_path: Path) -> None:
    config = settings(home, max_windows=4, min_frames=9, max_frames=17)
    manifest = encode_shards(str(home / "run"), tmp_path, config, TINY, say=lambda _: None)
    names = [row["clip_id"] for row in ShardIndex.open(tmp_path / "index").table.to_pylist()]
    windows = {"aa": 3, "bb": 2, "cc": 1, "dd": 4, "ee": 2}
    assert names == [f"{clip}-w{w:02d}" if w else clip for clip, num in windows.items() for w in range(num)]
    assert manifest.left_out == {}
    entry = ShardIndex.open(tmp_path / "index").values(1)
    assert (entry["source_clip_id"], entry["num_frames"]) == ("aa", 17)
    assert entry["window_start_s"] == pytest.approx(17 / 24)
    again: list[str] = []
    encode_shards(str(home / "run"), tmp_path, settings(home, max_frames=9, min_frames=9), TINY, say=again.append)
    assert not any("there already" in line for line in again)


def encoded(home: Path, clip: KnownClip, encoder: ClipEncoder, folder: Path) -> list[EncodedWindow]:
    shutil.rmtree(folder, ignore_errors=True)
    write_run(folder, [[clip]])
    index = ShardIndex.open(folder / "index")
    return list(encoder.encode(SampleReader(index, open_shards(folder / "shards")).read(0), index.values(0)))


@pytest.fixture
def captions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every caption that reaches the text encoder."""
    seen: list[str] = []
    original = TextEncoder.encode

    def watched(self: TextEncoder, given: list[str]) -> Any:
        seen.extend(given)
        return original(self, given)

    monkeypatch.setattr(TextEncoder, "encode", watched)
    return seen


@pytest.mark.slow
def test_words_voices_and_latents_belong_to_their_window(home: Path, tmp_path: Path, captions: list[str]) -> None:
    network = TINY.model_copy(update={"max_text_tokens": 128})
    encoder = ClipEncoder(settings(home, max_windows=2, max_frames=25, min_frames=5), network)
    clip = KnownClip("x", 2.0, spans=SPEECH, references=((0, 1.3, 2.0, False), (1, 1.5, 1.95, True)))
    first, second = encoded(home, clip, encoder, tmp_path / "run")
    assert captions == ["<S>hello there my<E>", "<S>friend<E> <S>good bye now<E>"]
    assert [len(w.sample.placeholders) for w in (first, second)] == [1, 2]
    assert second.sample.speakers[1] is None, "its only reference is the line itself"
    torch.testing.assert_close(first.sample.speakers[0], second.sample.speakers[0])
    codecs = open_codecs(home / "codecs", network, torch.device("cpu"), torch.float32)
    wave = torch.from_numpy(read_sound(memoryview(flac_of(clip)), 16000, "x"))
    voices = torch.from_numpy(read_sound(memoryview(refs_of(clip)), 16000, "x"))
    torch.testing.assert_close(first.sample.speakers[0], codecs.speaker.embed(voices[0, :11200]))
    torch.testing.assert_close(first.sample.audio, codecs.audio.encode(wave[:, : 27 * 640]))
    frames = read_frames(memoryview(mp4_of(clip)), [(25 + k) / 24 for k in range(21)], 192, 336)
    pixels = torch.from_numpy(np.stack(list(frames))).permute(3, 0, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(second.sample.video, codecs.video.encode(pixels))


@pytest.mark.slow
def test_without_a_speaker_network_curations_vectors_are_taken_if_they_fit(home: Path, tmp_path: Path) -> None:
    silent = tmp_path / "codecs"
    shutil.copytree(home / "codecs", silent)
    (silent / "speaker.pt").unlink()
    network = TINY.model_copy(update={"max_text_tokens": 128})
    references = ((1, 0.1, 1.3, False), (0, 0.1, 1.3, True))
    clip = KnownClip("x", 2.0, has_video=False, spans=SPEECH, references=references)
    config = settings(home, codecs=silent, max_frames=49, min_frames=5)
    (window,) = encoded(home, clip, ClipEncoder(config, network), tmp_path / "run")
    assert window.sample.speakers[0] is None
    assert torch.equal(window.sample.speakers[1], torch.full((192,), 2.0))
    narrow = ClipEncoder(config, network.model_copy(update={"speaker_dim": 128}))
    (window,) = encoded(home, clip, narrow, tmp_path / "run")
    assert window.sample.speakers == [None, None]


def test_a_reference_from_outside_the_clip_is_a_voice(home: Path, tmp_path: Path) -> None:
    """Its sound comes with the clip; one too short to tell a voice is none."""
    network = TINY.model_copy(update={"max_text_tokens": 128})
    references = ((0, 71.3, 71.6, False), (1, 93.0, 94.0, False))
    clip = KnownClip("x", 2.0, has_video=False, spans=SPEECH, references=references)
    (window,) = encoded(home, clip, ClipEncoder(settings(home, max_frames=45), network), tmp_path / "run")
    assert window.sample.speakers[0] is None
    codecs = open_codecs(home / "codecs", network, torch.device("cpu"), torch.float32)
    voices = torch.from_numpy(read_sound(memoryview(refs_of(clip)), 16000, "x"))
    torch.testing.assert_close(window.sample.speakers[1], codecs.speaker.embed(voices[0, 4800:]))


def test_shards_of_another_contract_are_refused_in_one_sentence(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    for path in (tmp_path / "run" / "index").glob("*.arrow"):
        table = read_table(path.read_bytes())
        path.write_bytes(table_bytes(table.cast(with_facts(table.schema, {"contract_version": "1"}))))
    with pytest.raises(ShardError, match=r"follows contract 1; this program reads contract 2\. Curate again"):
        encode_shards(str(tmp_path / "run"), tmp_path / "out", settings(home), TINY, say=lambda _: None)
    with pytest.raises(ShardError, match=r"follows contract 1; this program reads contract 2\. Encode again"):
        open_index(recipe(tmp_path / "run").data)


@pytest.mark.parametrize(
    ("lost", "clips"),
    [
        ("text_encoder", "the captions"),
        ("video_vae", "the clips with a picture"),
        ("audio_vae", "the clips with sound"),
    ],
)
def test_a_codec_that_the_clips_need_is_missed_at_the_start(home: Path, tmp_path: Path, lost: str, clips: str) -> None:
    """It is one sentence about the codecs, not a reason to leave clips out."""
    config = settings(home, codecs=without(lost, home, tmp_path))
    with pytest.raises(ModelError, match=rf"codecs has no {lost}/ for {clips}\. See docs/checkpoints\.md"):
        encode_shards(str(home / "run"), tmp_path / "out", config, TINY, say=lambda _: None)
    assert not list((tmp_path / "out" / "index").glob("*"))


def test_codecs_that_no_clip_needs_may_be_missing(home: Path, tmp_path: Path) -> None:
    config = settings(home, codecs=without("video_vae", home, tmp_path))
    write_run(tmp_path / "run", [[KnownClip("dd", 1.5, has_video=False)]])
    assert encode_shards(str(tmp_path / "run"), tmp_path / "out", config, TINY, say=lambda _: None).num_samples == 1


@pytest.mark.slow
def test_online_encoding_is_refused_at_the_start_where_codecs_are_missing(home: Path, tmp_path: Path) -> None:
    """Otherwise every clip would be replaced by another one, in vain."""
    config = settings(home, codecs=without("audio_vae", home, tmp_path))
    online = recipe(home / "run", data={"online": json.loads(config.model_dump_json())}).data
    with pytest.raises(ModelError, match=r"codecs has no audio_vae/ for the clips with sound\. See docs"):
        open_decoder(online, TINY, open_index(online))


def without(lost: str, home: Path, folder: Path) -> Path:
    """The codecs without one of them, in `folder`."""
    (folder / "codecs").mkdir()
    for path in (home / "codecs").iterdir():
        if path.name != lost:
            (folder / "codecs" / path.name).symlink_to(path)
    return folder / "codecs"


@pytest.mark.slow
def test_a_caption_that_does_not_pair_is_left_out_and_named(home: Path, tmp_path: Path) -> None:
    good = KnownClip("good", 1.5)
    bad = replace(good, clip_id="bad", spans=SPEECH[:1], caption="Someone says <S>one<E> and <S>two<E>.")
    write_run(tmp_path / "run", [[bad, good]])
    manifest = encode_shards(str(tmp_path / "run"), tmp_path / "out", settings(home), TINY, say=lambda _: None)
    assert manifest.num_samples == 1
    assert "2 spoken lines but 1 speech spans" in manifest.left_out["bad"]


@pytest.mark.slow
def test_online_encoding_trains_on_the_same_latents_as_stored_ones(home: Path, latents: Path, tmp_path: Path) -> None:
    config = settings(home)
    changes: dict[str, Any] = {"plan": {"num_packs": 1, "token_budget": 900, "batch_samples": 2}, "num_steps": 1}
    ahead = {"prefetch_packs": 1}
    stored = recipe(latents, **changes, data=ahead)
    online = recipe(home / "run", **changes, data={**ahead, "online": json.loads(config.model_dump_json())})
    planned, real = open_index(online.data), open_index(stored.data)
    assert planned.table["clip_id"].to_pylist() == real.table["clip_id"].to_pylist()
    for name in ("video_tokens", "audio_tokens"):
        assert planned.table[name].to_pylist() == real.table[name].to_pylist()
    errors = []
    for name, config_of in (("stored", stored), ("online", online)):
        train(config_of, tmp_path / name)
        rows = read_samples(tmp_path / name).to_pylist()
        errors.append(
            {row["clip_id"]: (row["timestep"], row["video_mse"] or 0.0, row["audio_mse"] or 0.0) for row in rows}
        )
    shared = errors[0].keys() & errors[1].keys()
    assert shared
    for clip_id in shared:
        assert errors[0][clip_id] == pytest.approx(errors[1][clip_id], rel=1e-5), "same noise, same latents"
