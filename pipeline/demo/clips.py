"""Single files of chosen truth, for tests and benchmarks. Each function writes one file and returns it with its truth."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.demo import sound as sounds
from pipeline.demo.film import DemoFilm, edited, write_film
from pipeline.demo.scenes import BouncingBall, DrawnPicture, DrawnShot, Pan, Talking, Then
from pipeline.demo.sound import SENTENCES, Line, Shift
from pipeline.demo.truth import Made, describe, spoken_truth
from pipeline.demo.voice import SAMPLE_RATE_HZ, VOICES, synthesise
from pipeline.demo.write import Encoding, encode

Image = NDArray[np.uint8]

EDGE_S = 0.4
"""Quiet before the first and after the last word."""


def talking_clip(
    path: Path | str,
    offset_ms: float = 0.0,
    drift_ms_per_s: float = 0.0,
    duration_s: float = 6.0,
    who: str = "ann",
    snr_db: float = 30.0,
    encoding: Encoding = Encoding(),
    seed: int = 0,
) -> Made:
    """One person speaking in one shot; the sound lies `offset_ms` late (negative: early) and drifts as given.

    The room's noise covers the whole length, so no silence gives the shift away. Costs about 0.2 s per second of 320x240.
    """
    shift = Shift(offset_ms, drift_ms_per_s)
    late_s, early_s = max(0.0, shift.heard_s(duration_s) - duration_s), max(0.0, -shift.heard_s(0.0))
    lines = sounds.lines_in(who, EDGE_S + early_s, duration_s - EDGE_S - late_s, seed)
    picture = Talking([who], encoding.width_px, encoding.height_px, seed)
    bed = sounds.room_noise(duration_s, snr_db, seed)
    film = DemoFilm([DrawnShot(picture, encoding.frames_in(duration_s), who)], lines, shift, bed)
    about = f"{who} speaks facing the camera; sound {offset_ms:+g} ms, drift {drift_ms_per_s:+g} ms/s"
    return write_film(Path(path), film, encoding, "talking", about, {"cuts": [], "snr_db": snr_db})


def swapped_clip(
    path: Path | str, duration_s: float = 6.0, who: str = "ann", encoding: Encoding = Encoding(), seed: int = 0
) -> Made:
    """A face that says one thing under the same voice saying another: in sync at no offset."""
    heard = sounds.lines_in(who, EDGE_S, duration_s - EDGE_S, seed)
    said = sounds.lines_in(who, EDGE_S + 0.25, duration_s - EDGE_S, seed + 1000)
    lips = [Line(line.start_s, who, replace(line.speech, samples=0 * line.speech.samples)) for line in said]
    voice = [replace(line, on_screen=False) for line in heard]
    picture = Talking([who], encoding.width_px, encoding.height_px, seed)
    film = DemoFilm(
        [DrawnShot(picture, encoding.frames_in(duration_s), who)],
        [*lips, *voice],
        bed=sounds.room_noise(duration_s, 30, seed),
    )
    truth = spoken_truth(voice) | {"cuts": [], "sync": "none: the lips say something else", "audio_lag_ms": None}
    return write_film(Path(path), film, encoding, "talking", f"{who}'s lips say another text than is heard", truth)


def cuts_clip(
    path: Path | str,
    num_shots: int = 6,
    kinds: Sequence[Then] = ("cut",),
    shot_frames: tuple[int, int] = (25, 60),
    encoding: Encoding = Encoding(),
    seed: int = 0,
) -> Made:
    """Shots of visibly different pictures with transitions drawn from `kinds`, over music. No sound belongs to a picture."""
    random = np.random.default_rng([seed, 21])
    pictures = _pictures(encoding.width_px, encoding.height_px, seed)
    order = _no_repeats(random, len(pictures), num_shots)
    shots = []
    for index in order:
        kind = kinds[int(random.integers(len(kinds)))]
        blend = 0 if kind == "cut" else int(random.integers(8, 25))
        name, picture = pictures[index]
        shots.append(DrawnShot(picture, int(random.integers(*shot_frames, endpoint=True)), name, kind, blend))
    film = DemoFilm(shots)
    film = replace(film, bed=sounds.music(encoding.end_s(film.num_frames()), seed=seed))
    return write_film(
        Path(path), film, encoding, "multishot", f"{num_shots} shots over music", {"sync": "none (music)"}
    )


def _pictures(width_px: int, height_px: int, seed: int) -> list[tuple[str, DrawnPicture]]:
    """Named pictures, neighbours in this list as different as any."""
    size = (width_px, height_px)
    return [
        ("ann", Talking(["ann"], *size, seed)),
        ("cat_photo", Pan("chelsea.png", *size, 0.10)),
        ("stars", Pan("hubble_deep_field.jpg", *size, 0.08)),
        ("ben", Talking(["ben"], *size, seed)),
        ("coffee", Pan("coffee.png", *size, 0.12)),
        ("rocket", Pan("rocket.jpg", *size, 0.10)),
        ("blue_wall", Pan("brick.png", *size, 0.06, (0.35, 0.6, 1.3))),
        ("ball", BouncingBall(np.arange(0.5, 600, 0.9), *size)),
        ("gold_gravel", Pan("gravel.png", *size, 0.08, (1.3, 1.0, 0.4))),
    ]


def _no_repeats(random: np.random.Generator, num_choices: int, length: int) -> list[int]:
    """`length` indices below `num_choices`, none twice in a row."""
    order = [int(random.integers(num_choices))]
    while len(order) < length:
        order.append((order[-1] + int(random.integers(1, num_choices))) % num_choices)
    return order


def ball_clip(
    path: Path | str, offset_ms: float = 0.0, duration_s: float = 6.0, encoding: Encoding = Encoding(), seed: int = 0
) -> Made:
    """A bouncing ball whose knocks are heard `offset_ms` after it touches the ground: sound events without speech."""
    random = np.random.default_rng([seed, 31])
    impacts_s = np.cumsum(random.uniform(0.55, 0.95, 1000))
    picture = BouncingBall(impacts_s, encoding.width_px, encoding.height_px)
    bed = sounds.room_noise(duration_s, 36, seed)
    events = []
    for index, impact_s in enumerate(impacts_s[impacts_s < duration_s]):
        heard_s = float(impact_s + offset_ms / 1000)
        sounds.add(bed, sounds.impact(seed + index), heard_s)
        if 0 <= heard_s < duration_s:
            events.append({"label": "impact", "seen_s": round(float(impact_s), 6), "sound_onset_s": round(heard_s, 6)})
    film = DemoFilm([DrawnShot(picture, encoding.frames_in(duration_s), "ball")], bed=bed)
    truth = {"cuts": [], "events": events, "sync": "exact by construction", "audio_lag_ms": offset_ms}
    return write_film(Path(path), film, encoding, "nonspeech", f"ball bouncing; knocks {offset_ms:+g} ms", truth)


def turns_audio(
    path: Path | str,
    num_speakers: int = 2,
    num_turns: int = 8,
    overlap: float = 0.0,
    snr_db: float = 30.0,
    seed: int = 0,
    rate_hz: int = 16_000,
) -> Made:
    """A conversation as a 16-bit mono .wav; the share `overlap` of the turns begins 0.4 to 1.0 s before the last one ended."""
    from scipy.signal import resample_poly

    if not 1 <= num_speakers <= len(VOICES):
        raise ValueError(f"num_speakers is {num_speakers}: 1 to {len(VOICES)} voices exist ({', '.join(VOICES)})")
    lines = conversation(list(VOICES)[:num_speakers], num_turns, overlap, seed)
    duration_s = max(line.end_s for line in lines) + EDGE_S
    track = sounds.mix(lines, duration_s) + sounds.room_noise(duration_s, snr_db, seed)
    samples = np.clip(resample_poly(track, rate_hz, SAMPLE_RATE_HZ), -1, 1) * 32767
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.round(samples).astype("<i2").tobytes())
    truth = spoken_truth(lines) | {"uem": [0, round(duration_s, 6)], "overlaps": _overlaps(lines), "snr_db": snr_db}
    truth["sync"] = None
    return describe(Path(path), "multispeaker", f"{num_speakers} voices take {num_turns} turns", truth)


Staging = Literal["alone", "both", "off_screen"]


def dialog_clip(
    path: Path | str,
    num_turns: int = 4,
    stagings: Sequence[Staging] = ("alone", "both", "off_screen"),
    encoding: Encoding = Encoding(480, 270),
    seed: int = 0,
) -> Made:
    """Two people taking turns, a hard cut in every pause; turn n is staged as `stagings` say, over and over.

    "alone" shows the speaker, "both" the two side by side with one speaking, "off_screen" a coffee cup under the voice.
    """
    size = (encoding.width_px, encoding.height_px)
    lines = conversation(["ann", "ben"], num_turns, seed=seed)
    heads = {who: Talking([who], *size, seed) for who in ("ann", "ben")}
    both, cup = Talking(["ann", "ben"], *size, seed), Pan("coffee.png", *size, 0.1)
    pictures: list[DrawnPicture] = []
    for index, line in enumerate(lines):
        staging = stagings[index % len(stagings)]
        pictures.append({"alone": heads[line.who], "both": both, "off_screen": cup}[staging])
        lines[index] = replace(line, on_screen=staging != "off_screen")
    film = DemoFilm(
        list(edited(lines, pictures, encoding)), lines, bed=sounds.room_noise(lines[-1].end_s + 1, 30, seed)
    )
    about = f"Dialog of two in {num_turns} shots with hard cuts, staged {', '.join(stagings)}; in sync."
    return write_film(Path(path), film, encoding, "multishot", about)


def conversation(
    who: Sequence[str],
    num_turns: int,
    overlap: float = 0.0,
    seed: int = 0,
    pause_s: tuple[float, float] = (0.25, 0.8),
) -> list[Line]:
    """Turns of the speakers in order, one sentence each, `pause_s` apart or, for the share `overlap`, overlapping."""
    random = np.random.default_rng([seed, 41])
    sentences = random.permutation(len(SENTENCES))
    lines: list[Line] = []
    at_s = EDGE_S
    for turn in range(num_turns):
        speech = synthesise(SENTENCES[sentences[turn % len(sentences)]], who[turn % len(who)], seed=seed)
        if lines and len(who) > 1 and random.uniform() < overlap:
            at_s = lines[-1].end_s - random.uniform(0.4, 1.0)
        lines.append(Line(at_s, who[turn % len(who)], speech))
        at_s = lines[-1].end_s + random.uniform(*pause_s)
    return lines


def _overlaps(lines: Sequence[Line]) -> list[list[float]]:
    """[start, end] in seconds wherever two neighbouring turns are heard at once."""
    return [
        [round(after.start_s, 6), round(before.end_s, 6)]
        for before, after in pairwise(lines)
        if after.start_s < before.end_s
    ]


CLICK_S = 0.002


def flash_and_click(path: Path | str, duration_s: float = 6.0, encoding: Encoding = Encoding(), seed: int = 0) -> Made:
    """White frames, each with a 2 ms click that begins at the very sample nearest to the frame's time.

    Every picture carries its own number (read it with `frame_number`), and quiet white noise lies under the clicks, so that
    any sample can be located by correlation. Truth: `events` with frame, pts, time_s and sample of every flash.
    """
    random = np.random.default_rng([seed, 51])
    num_frames = encoding.frames_in(duration_s)
    encoding = encoding.stored_in(Path(path), num_frames)
    end_s = encoding.end_s(num_frames)
    flashes, at = [], int(random.integers(4, 10))
    while at < num_frames - 3:
        flashes.append(at)
        at += int(random.integers(8, 22))
    track = 0.01 * random.standard_normal(round(end_s * SAMPLE_RATE_HZ)).astype(np.float32)
    click = np.full(round(CLICK_S * SAMPLE_RATE_HZ), 0.8, np.float32)
    events = []
    for frame in flashes:
        sample = round(encoding.frame_pts(frame) * encoding.clock * SAMPLE_RATE_HZ)
        track[sample : sample + len(click)] += click
        time_s = encoding.frame_time_s(frame)
        events.append({"label": "flash", "frame": frame, "time_s": time_s, "sample": sample, "sound_onset_s": time_s})
    skip = round(encoding.sound_start_s * SAMPLE_RATE_HZ)
    encode(Path(path), _numbered(num_frames, set(flashes), encoding), track[skip:], encoding)
    truth: dict[str, Any] = {"fps": float(encoding.fps), "num_frames": num_frames, "cuts": [], "events": events}
    truth |= {"frame_times_s": [encoding.frame_time_s(index) for index in range(num_frames)]}
    truth |= {"sync": "exact by construction", "audio_lag_ms": 0.0}
    return describe(Path(path), "nonspeech", "numbered frames with white flashes and clicks", truth)


_NUMBER_BITS = 12


def _numbered(num_frames: int, flashes: set[int], encoding: Encoding) -> Iterator[Image]:
    """Grey or white pictures with their number as 12 black or white blocks, most significant first, in the top eighth."""
    block, high = encoding.width_px // _NUMBER_BITS, encoding.height_px // 8
    for index in range(num_frames):
        picture = np.full((encoding.height_px, encoding.width_px, 3), 250 if index in flashes else 60, np.uint8)
        for bit in range(_NUMBER_BITS):
            picture[:high, bit * block : (bit + 1) * block] = 235 * (index >> (_NUMBER_BITS - 1 - bit) & 1)
        yield picture


def frame_number(picture: Image) -> int:
    """The number that `flash_and_click` wrote into an RGB picture (any size, also after lossy coding)."""
    block, high = picture.shape[1] / _NUMBER_BITS, picture.shape[0] / 8
    row = picture[round(high * 0.3) : round(high * 0.7)].mean(axis=(0, 2))
    bits = [row[round((bit + 0.3) * block) : round((bit + 0.7) * block)].mean() > 110 for bit in range(_NUMBER_BITS)]
    return int("".join("1" if bit else "0" for bit in bits), 2)


def variable_rate(duration_s: float = 6.0, seed: int = 0, encoding: Encoding = Encoding()) -> Encoding:
    """The encoding with irregular frame times of 20 to 70 ms on a 1/90000 s clock, as screen and phone recordings have."""
    random = np.random.default_rng([seed, 61])
    steps = random.integers(1_800, 6_300, round(duration_s / 0.02))
    pts = np.concatenate([[0], np.cumsum(steps)])
    kept = tuple(int(at) for at in pts[pts < duration_s * 90_000])
    return replace(encoding, pts=kept, time_base=Fraction(1, 90_000))


SMALL = Encoding(width_px=192, height_px=96)
CUT_ENCODINGS: dict[str, Encoding] = {
    "plain.mp4": SMALL,
    "ntsc.mov": replace(SMALL, fps=Fraction(30000, 1001)),
    "open_gop.mp4": replace(
        SMALL, gop_frames=25, extra={"x264-params": "open-gop=1:b-adapt=0:bframes=3:threads=1:lookahead-threads=1"}
    ),
    "vfr.mp4": variable_rate(4.0, 1, SMALL),
    "vfr.mkv": variable_rate(4.0, 2, SMALL),
    "late.mp4": replace(SMALL, sound_start_s=0.5),
    "vp8.webm": replace(SMALL, video_codec="libvpx", audio_codec="libopus"),
    "intra.mp4": replace(SMALL, gop_frames=1),
}
"""Ways to write `flash_and_click` that cutters get wrong, by file name."""

KINDS: dict[str, tuple[Callable[..., Made], str]] = {
    "talking": (talking_clip, ".mp4"),
    "swapped": (swapped_clip, ".mp4"),
    "cuts": (cuts_clip, ".mp4"),
    "ball": (ball_clip, ".mp4"),
    "dialog": (dialog_clip, ".mp4"),
    "turns": (turns_audio, ".wav"),
    "flash_and_click": (flash_and_click, ".mp4"),
}


def write_known_truth(out_dir: Path | str, kind: str, seed: int = 0, suffix: str | None = None, **chosen: Any) -> Made:
    """One file of `kind` (a key of KINDS) named kind_seed; `chosen` goes to that kind's function. KeyError names the kinds."""
    if kind not in KINDS:
        raise KeyError(f"no known-truth media of kind {kind!r}: choose one of {', '.join(KINDS)}")
    make, usual_suffix = KINDS[kind]
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    return make(Path(out_dir) / f"{kind}_{seed}{suffix or usual_suffix}", seed=seed, **chosen)
