"""The media of `make demo`: a small folder with what a raw collection has: good clips, bad clips, broken files, a duplicate.

Every file states in `ground_truth.expect` what should become of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline.demo import sound as sounds
from pipeline.demo.clips import Staging, ball_clip, conversation, dialog_clip, talking_clip, variable_rate
from pipeline.demo.film import DemoFilm, edited, write_film
from pipeline.demo.scenes import DrawnPicture, DrawnShot, Pan, Still, Talking, Then
from pipeline.demo.truth import CONVENTIONS, LICENCE, Made, describe
from pipeline.demo.write import Encoding, encode, turn_display

NTSC = Fraction(30_000, 1001)


def write_demo(out_dir: Path | str, num_videos: int | None = None, seed: int = 0) -> Path:
    """Path of the manifest.json over `num_videos` files written to `out_dir` (default: each of MAKERS once, 16 files, 90 s).

    More files than makers: another round with other seeds. The first four already hold clips to keep, to reject and to fail.
    Beside it lies sources.jsonl (uri relative to it, licence, metadata), the input of `nava-curate run`. Same seed, same bytes.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    count = len(MAKERS) if num_videos is None else num_videos
    items = []
    for index in range(count):
        (name, make), turn = MAKERS[index % len(MAKERS)], index // len(MAKERS)
        path = folder / (name if turn == 0 else f"{Path(name).stem}_{turn + 1}{Path(name).suffix}")
        items.append(make(path, seed + 100 * turn).item)
    manifest = folder / "manifest.json"
    head = {"set": "demo", "format_version": 1, "conventions": CONVENTIONS, "seed": seed}
    manifest.write_text(json.dumps(head | {"items": items}, indent=1) + "\n")
    (folder / "sources.jsonl").write_text("".join(json.dumps(_source(item)) + "\n" for item in items))
    return manifest


def _source(item: dict[str, object]) -> dict[str, object]:
    return {"uri": item["path"], "licence": LICENCE, "title": item["seen_and_heard"], "category": item["category"]}


def _interview(path: Path, seed: int) -> Made:
    stagings: tuple[Staging, ...] = ("alone", "alone", "both", "alone", "alone")
    return _expecting(dialog_clip(path, 5, stagings, Encoding(640, 360), seed), "kept")


def _narrated(path: Path, seed: int) -> Made:
    encoding = Encoding(480, 270, Fraction(24))
    size = (480, 270)
    lines = conversation(["cat", "dan"], 4, seed=seed + 1, pause_s=(1.0, 1.3))
    lines[3] = replace(lines[3], on_screen=False)
    pictures = [Talking(["cat"], *size, seed), Talking(["dan"], *size, seed), Talking(["cat"], *size, seed)]
    then: list[tuple[Then, int]] = [("dissolve", 12), ("fade", 8), ("cut", 0)]
    shots = list(edited(lines, [*pictures, Pan("coffee.png", *size, 0.1)], encoding, then))
    film = DemoFilm(shots, lines, bed=sounds.room_noise(lines[-1].end_s + 1, 26, seed))
    about = "A dissolve, a fade through black and a hard cut; the last shot is a coffee cup with an off-screen voice."
    return write_film(path, film, encoding, "multishot", about, {"expect": "kept, the last shot as off-screen voice"})


def _monologue(path: Path, seed: int) -> Made:
    made = talking_clip(path, who="cat", duration_s=7.0, encoding=Encoding(1280, 720, NTSC), seed=seed)
    return _expecting(made, "kept")


def _late_600(path: Path, seed: int) -> Made:
    made = talking_clip(path, 600.0, who="ben", duration_s=7.0, seed=seed + 2)
    return _expecting(made, "rejected: sound 600 ms late")


def _late_120(path: Path, seed: int) -> Made:
    made = talking_clip(path, 120.0, who="ann", duration_s=6.0, seed=seed + 3)
    return _expecting(made, "offset measured as 120 ms late; kept or repaired as the gates say")


def _drifting(path: Path, seed: int) -> Made:
    made = talking_clip(path, drift_ms_per_s=25.0, who="dan", duration_s=8.0, seed=seed + 4)
    return _expecting(made, "drift measured: 0 ms late at the start, 200 ms at the end")


def _ball(path: Path, seed: int) -> Made:
    encoding = Encoding(video_codec="libvpx", audio_codec="libopus")
    return _expecting(
        ball_clip(path, duration_s=6.0, encoding=encoding, seed=seed), "kept: sounds fit the picture, no speech"
    )


def _still_photo(path: Path, seed: int) -> Made:
    lines = sounds.lines_in("dan", 0.4, 4.6, seed + 5, on_screen=False)
    film = DemoFilm(
        [DrawnShot(Still("chelsea.png", 320, 240), 125, "cat_photo")], lines, bed=sounds.room_noise(5.0, 30, seed)
    )
    about = "A photograph of a cat, nothing moves; narration."
    return write_film(path, film, Encoding(), "awkward", about, {"expect": "rejected: nothing moves"})


def _dark_silent(path: Path, seed: int) -> Made:
    film = DemoFilm([DrawnShot(Still("rocket.jpg", 320, 240, 0.04), 100, "night")])
    truth = {"expect": "rejected: dark, static and digitally silent", "sync": "none"}
    return write_film(path, film, Encoding(), "awkward", "Almost black picture, digital silence.", truth)


def _too_short(path: Path, seed: int) -> Made:
    film = DemoFilm([DrawnShot(Pan("rocket.jpg", 320, 240, 0.3), 20, "rocket")], bed=sounds.music(1.0, seed=seed))
    truth = {"expect": "cut away: 0.8 s is shorter than any clip", "sync": "none (music)"}
    return write_film(path, film, Encoding(), "awkward", "0.8 s of a gliding photograph with music.", truth)


def _no_audio(path: Path, seed: int) -> Made:
    film = DemoFilm([DrawnShot(Pan("hubble_deep_field.jpg", 320, 240, 0.15), 90, "stars")], has_sound=False)
    return write_film(
        path, film, Encoding(fps=NTSC), "awkward", "Stars, no audio track.", {"expect": "rejected: no audio"}
    )


def _two_at_once(path: Path, seed: int) -> Made:
    encoding = Encoding(640, 360)
    lines = conversation(["ann", "dan"], 3, overlap=1.0, seed=seed + 6)
    duration_s = lines[-1].end_s + 0.5
    picture = Talking(["ann", "dan"], 640, 360, seed)
    film = DemoFilm(
        [DrawnShot(picture, encoding.frames_in(duration_s), "both")], lines, bed=sounds.room_noise(duration_s, 5, seed)
    )
    truth = {"expect": "speech overlaps; noise 5 dB below speech", "cuts": [], "snr_db": 5}
    return write_film(
        path, film, encoding, "talking", "Split screen, two people talking into each other, noise.", truth
    )


def _phone(path: Path, seed: int) -> Made:
    """Stored lying on its side with irregular frame times, to be shown upright; the sound track begins 0.25 s late."""
    upright = variable_rate(6.0, seed, Encoding(240, 320))
    lines = sounds.lines_in("ann", 0.6, 5.6, seed + 7)
    picture = Talking(["ann"], 240, 320, seed)
    stored = replace(upright, width_px=320, height_px=240, sound_start_s=0.25)
    num_frames = upright.frames_in(6.0)
    film = DemoFilm([DrawnShot(_Turned(picture), num_frames, "ann")], lines, bed=sounds.room_noise(6.1, 30, seed))
    truth = {"expect": "kept: upright 240x320, in sync by timestamps", "cuts": [], "rotation_degrees_clockwise": 90}
    made = write_film(
        path, film, stored, "awkward", "Phone clip: variable frame rate, rotated, sound starts late.", truth
    )
    turn_display(path, 1)
    return describe(path, "awkward", made.item["seen_and_heard"], made.item["ground_truth"])


class _Turned(DrawnPicture):
    """A picture lying on its left side. Its face boxes are those of the upright picture, as it is meant to be shown."""

    def __init__(self, upright: DrawnPicture) -> None:
        self.upright = upright

    def at(self, time_s: float, mouths: Callable[[str, float], tuple[float, float]]) -> np.ndarray:
        return np.rot90(self.upright.at(time_s, mouths))

    def boxes_px(self) -> dict[str, list[int]]:
        return self.upright.boxes_px()


def _truncated(path: Path, seed: int) -> Made:
    """An .mp4 whose recording was interrupted: the index, which comes last, is missing."""
    picture = Still("coffee.png", 320, 240)
    frames = (picture.at(0.0, lambda who, time_s: (0.0, 0.0)) for _ in range(50))
    encode(path, frames, sounds.music(2.0, seed=seed))
    content = path.read_bytes()
    index = content.find(b"moov")
    data = content.find(b"mdat")
    path.write_bytes(content[: index - 4] + content[data - 4 : data + (len(content) - data) // 2])
    return describe(
        path, "awkward", "Recording cut off before its index was written.", {"expect": "error: not decodable"}
    )


def _not_a_video(path: Path, seed: int) -> Made:
    path.write_text("<!DOCTYPE html><html><body><h1>404 Not Found</h1><p>The video is gone.</p></body></html>\n")
    return describe(path, "awkward", "An HTML error page saved as .mp4.", {"expect": "error: not a video"})


def _copy(path: Path, seed: int) -> Made:
    """Byte for byte the file that `_late_600` makes, under another name."""
    made = _late_600(path, seed)
    made.item["derived"] = "identical to sound_late_600ms.mp4"
    return _expecting(made, "settled like sound_late_600ms.mp4: same bytes, same asset")


def _expecting(made: Made, expect: str) -> Made:
    made.item["ground_truth"]["expect"] = expect
    return made


MAKERS: tuple[tuple[str, Callable[[Path, int], Made]], ...] = (
    ("interview_hard_cuts.mp4", _interview),
    ("sound_late_600ms.mp4", _late_600),
    ("not_a_video.mp4", _not_a_video),
    ("dark_and_silent.mp4", _dark_silent),
    ("monologue_720p.mp4", _monologue),
    ("dissolve_fade_narration.mkv", _narrated),
    ("bouncing_ball.webm", _ball),
    ("sound_late_120ms.mp4", _late_120),
    ("still_photo_narrated.mp4", _still_photo),
    ("too_short.mp4", _too_short),
    ("recording_cut_off.mp4", _truncated),
    ("no_audio_track.mp4", _no_audio),
    ("two_talking_at_once.mp4", _two_at_once),
    ("phone_rotated_vfr.mp4", _phone),
    ("sound_drifts.mp4", _drifting),
    ("copy_of_sound_late.mp4", _copy),
)
"""(file name, function that writes it from a path and a seed)."""
