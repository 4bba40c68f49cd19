"""The SyncNet engine: published two-stream network and recipe, weights from a path (Chung & Zisserman, "Out of time", 2016).

Recipe as published: 25 pictures a second, square face crops of 224 px reaching 40 % past the face and shifted towards
the chin, 5 frames against 20 MFCC rows, distances at -15 to +15 frames, confidence = median minus least distance. The
weights (`syncnet_v2.model`) cannot be shipped; the loading code and the network are tested on weights of the right
layout that the test makes, so its figures on real clips are the publication's, not ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecipeError
from schemas.spans import SPEECH_RATE_HZ
from stages.engines.face_tracks import FaceTrack
from stages.media.waveform import Waveform
from stages.sync.channels import GRID_HZ, Signal
from stages.sync.peaks import Peak

Array = NDArray[Any]

FPS = 25
CROP_PX = 224
FRAMES = 5
"""Frames seen at once, 0.2 s."""
ROWS_PER_FRAME = 4
"""MFCC rows of 10 ms per frame."""
REACH = 15
"""Largest offset in frames, 0.6 s."""
BATCH = 8


@dataclass(frozen=True)
class SyncNetEvidence:
    """Distances between each 5-frame window and the sound around it."""

    starts_s: Array
    """float64 [n]: start of each window on the asset clock."""
    distances: Array
    """float32 [n, 31]: at -15 to +15 frames; positive = sound late."""
    lags_s: Array
    """float64 [31]."""
    published: tuple[int, list[float]]
    """See `published_means`."""

    @property
    def seen_s(self) -> float:
        """Length of the face's windows."""
        return len(self.starts_s) / FPS

    def curve(self, start_s: float, end_s: float) -> Array:
        """float64 [31]: minus the mean distance over windows that begin in the stretch; zeros if there are none."""
        inside = (self.starts_s >= start_s) & (self.starts_s < end_s)
        return -self.distances[inside].mean(0).astype(np.float64) if inside.any() else np.zeros(2 * REACH + 1)

    def distances_told(self) -> tuple[int, list[float]]:
        """(windows, mean distance at each offset), of the face as if it were a file of its own."""
        return self.published


class SyncNetEngine:
    """SyncNet on one worker. About 0.35 s of one core per frame, so give it a GPU."""

    name = "syncnet"
    crop_px = CROP_PX

    def __init__(self, weights_path: str, device: str = "cpu") -> None:
        self.device = device
        self.network = load_network(Path(weights_path)).to(device)

    def evidence(self, track: FaceTrack, features: Signal, sound: Waveform) -> SyncNetEvidence | None:
        """Distances for one face over the stretch of `features`; None if it is seen for less than one window."""
        import torch

        grid = np.arange(features.times_s[0], features.times_s[-1] + 1 / GRID_HZ, 1 / FPS)
        times = track.crop_times_s
        if len(grid) < FRAMES or not len(times):
            return None
        nearest = np.abs(times[:, None] - grid).argmin(0)
        seen = np.abs(times[nearest] - grid) < 1.0 / FPS
        first = np.flatnonzero(np.convolve(seen, np.ones(FRAMES), "valid") == FRAMES)
        if not len(first):
            return None
        lips = track.crops[nearest][..., ::-1]
        rows = self._sound_rows(sound, float(grid[0]), len(grid))
        with torch.inference_mode():
            of_lips = [self._lips(lips, part) for part in np.array_split(first, -(-len(first) // BATCH))]
            places = np.arange(-REACH, len(grid) - FRAMES + 1 + REACH)
            of_sound = [self._heard(rows, part) for part in np.array_split(places, -(-len(places) // BATCH))]
            seen_lips, heard = torch.cat(of_lips).cpu().numpy(), torch.cat(of_sound).cpu().numpy()
        lags = np.arange(-REACH, REACH + 1) / FPS
        published = published_means(seen_lips, heard, first)
        return SyncNetEvidence(grid[first], distances_at(seen_lips, heard, first), lags, published)

    def _sound_rows(self, sound: Waveform, start_s: float, num_frames: int) -> Array:
        """MFCC rows [13, 4 x (num_frames + 30)] from 15 frames before the first picture."""
        from fractions import Fraction

        begin = Fraction(start_s).limit_denominator(1_000_000) - Fraction(REACH, FPS)
        count = ROWS_PER_FRAME * (num_frames + 2 * REACH)
        samples = sound.cut(begin, begin + Fraction(count, 100) + Fraction(15, 1000))
        return mfcc(samples * 32768.0, count).T

    def _lips(self, crops: Array, first: Array) -> Any:
        import torch

        windows = np.stack([crops[i : i + FRAMES] for i in first]).transpose(0, 4, 1, 2, 3)
        return self.network.lips(torch.from_numpy(windows.astype(np.float32)).to(self.device))

    def _heard(self, rows: Array, places: Array) -> Any:
        import torch

        starts = ROWS_PER_FRAME * (places + REACH)
        windows = np.stack([rows[:, i : i + ROWS_PER_FRAME * FRAMES] for i in starts])[:, None]
        return self.network.sound(torch.from_numpy(windows.astype(np.float32)).to(self.device))

    def peak(self, curve: Array, lags: Array, seen_s: float) -> Peak:
        """Offset and SyncNet's own confidence: median distance minus least distance."""
        top = int(np.argmax(curve))
        height = float(curve[top] - np.median(curve))
        near = np.abs(lags) <= 2.5 / FPS
        chance = np.exp(2.0 * (curve - curve[top]))
        std = float(np.sqrt((chance * (lags - lags[top]) ** 2).sum() / chance.sum()))
        at_zero = float(curve[near].max() - np.median(curve))
        return Peak(float(lags[top]), height, at_zero, max(std, 0.5 / FPS))


def distances_at(lips: Array, heard: Array, windows: Array) -> Array:
    """float32 [n, 31]: Euclidean distances of n windows to the sound 15 frames to either side.

    `lips` [n, d] are of the windows that begin at frames `windows` [n]; `heard` [m, d] of the sound from 15 frames before
    the first frame on. 1e-6 is added to each difference, as torch's pairwise distance does.
    """
    around = heard[windows[:, None] + np.arange(2 * REACH + 1)]
    return np.asarray(np.linalg.norm(lips[:, None] - around + np.float32(1e-6), axis=2))


def published_means(lips: Array, heard: Array, windows: Array) -> tuple[int, list[float]]:
    """(windows, mean distance at -15 to +15 frames) as the published code has them of a face cut out as a file of its own.

    It takes no sound from before and after the face, but vectors of zeros, and leaves out the last window. Arguments as
    of `distances_at`.
    """
    used = max(1, len(windows) - 1)
    places = np.arange(len(heard)) - REACH
    is_inside = (places >= windows[0]) & (places <= windows[used - 1])
    alone = np.where(is_inside[:, None], heard, np.float32(0))
    return used, distances_at(lips[:used], alone, windows[:used]).mean(0, dtype=np.float64).tolist()


def load_network(path: Path) -> Any:
    """The network in evaluation mode with the weights of an official-format file (a state_dict; no code is run).

    Raises RecipeError if the file is missing or is not SyncNet's layout.
    """
    import torch

    if not path.is_file():
        raise RecipeError(
            f"The SyncNet weights '{path}' do not exist.",
            remedy="Set stages.sync.weights_path to the published syncnet_v2.model, or use engine: mouth.",
        )
    stored = torch.load(path, map_location="cpu", weights_only=True)
    state = {name.removeprefix("module.").removeprefix("__S__."): value for name, value in stored.items()}
    network = build_network()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise RecipeError(
            f"'{path}' is not in SyncNet's format: {str(error).splitlines()[-1].strip()}",
            remedy="Expected netcnnaud, netfcaud, netcnnlip and netfclip as in syncnet_v2.model.",
        ) from error
    return network.eval()


def build_network() -> Any:
    """SyncNet with fresh weights, parameter names as published: netcnnaud, netfcaud, netcnnlip, netfclip."""
    from torch import Tensor, nn

    def conv(kind: Any, norm: Any, *shape: Any, **options: Any) -> list[Any]:
        return [kind(*shape, **options), norm(shape[1]), nn.ReLU(inplace=True)]

    def head() -> Any:
        return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))

    class SyncNet(nn.Module):  # type: ignore[misc]
        """Sound [b, 1, 13, 20] and lips [b, 3, 5, 224, 224] (BGR, 0 to 255) to vectors [b, 1024]."""

        def __init__(self) -> None:
            super().__init__()
            flat = (nn.Conv2d, nn.BatchNorm2d)
            self.netcnnaud = nn.Sequential(
                *conv(*flat, 1, 64, 3, padding=1),
                nn.MaxPool2d(1, 1),
                *conv(*flat, 64, 192, 3, padding=1),
                nn.MaxPool2d(3, (1, 2)),
                *conv(*flat, 192, 384, 3, padding=1),
                *conv(*flat, 384, 256, 3, padding=1),
                *conv(*flat, 256, 256, 3, padding=1),
                nn.MaxPool2d(3, 2),
                *conv(*flat, 256, 512, (5, 4)),
            )
            self.netfcaud = head()
            self.netfclip = head()
            deep = (nn.Conv3d, nn.BatchNorm3d)
            side = (0, 1, 1)
            self.netcnnlip = nn.Sequential(
                *conv(*deep, 3, 96, (5, 7, 7), stride=(1, 2, 2)),
                nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
                *conv(*deep, 96, 256, (1, 5, 5), stride=(1, 2, 2), padding=side),
                nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=side),
                *conv(*deep, 256, 256, (1, 3, 3), padding=side),
                *conv(*deep, 256, 256, (1, 3, 3), padding=side),
                *conv(*deep, 256, 256, (1, 3, 3), padding=side),
                nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
                *conv(*deep, 256, 512, (1, 6, 6)),
            )

        def sound(self, rows: Tensor) -> Tensor:
            return self.netfcaud(self.netcnnaud(rows).flatten(1))

        def lips(self, crops: Tensor) -> Tensor:
            return self.netfclip(self.netcnnlip(crops).flatten(1))

    return SyncNet()


def mfcc(samples: Array, num_rows: int) -> Array:
    """float64 [num_rows, 13] as `python_speech_features` makes them by default, on which SyncNet was trained.

    25 ms square windows every 10 ms of 16-bit scaled samples, pre-emphasis 0.97, 26 mel bands from 0 to 8 kHz, DCT-II,
    lifter 22, the first coefficient replaced by the log energy of the frame.
    """
    from scipy.fft import dct

    window, hop, size = 400, 160, 512
    samples = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1]).astype(np.float64)
    samples = np.pad(samples, (0, max(0, (num_rows - 1) * hop + window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop][:num_rows]
    power = np.abs(np.fft.rfft(frames, size)) ** 2 / size
    least = np.finfo(float).eps
    energy = np.maximum(power.sum(1), least)
    top_mel = 2595 * np.log10(1 + SPEECH_RATE_HZ / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top_mel, 28) / 2595) - 1)
    bins = np.floor((size + 1) * edges / SPEECH_RATE_HZ)
    at = np.arange(size // 2 + 1)
    rising = (at - bins[:-2, None]) / np.maximum(bins[1:-1] - bins[:-2], 1)[:, None]
    falling = (bins[2:, None] - at) / np.maximum(bins[2:] - bins[1:-1], 1)[:, None]
    bands = np.maximum(0, np.minimum(rising, falling))
    rows = dct(np.log(np.maximum(power @ bands.T, least)), type=2, axis=1, norm="ortho")[:, :13]
    rows *= 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    rows[:, 0] = np.log(energy)
    return np.asarray(rows)
