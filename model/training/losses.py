"""Losses out of the errors of samples: means by modality and by tenth of the noise level, as sums that ranks can add up."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.network.flow import NUM_STEPS, LossTerms

NUM_NOISE_LEVELS = 10
"""Losses are shown for tenths of sigma: 0-0.1 is nearly clean, 0.9-1 nearly noise."""


class Losses(TypedDict):
    """Losses of some samples; None where nothing was seen."""

    loss: float | None
    loss_video: float | None
    loss_audio: float | None
    loss_video_by_noise: list[float | None]
    """By tenths of sigma."""
    loss_audio_by_noise: list[float | None]


def no_sums() -> NDArray[np.float64]:
    """Zeros [modality, noise level, (weighted error, share)]: what `add_losses` adds to."""
    return np.zeros((2, NUM_NOISE_LEVELS, 2))


def add_losses(sums: NDArray[np.float64], timesteps: Tensor, terms: LossTerms) -> None:
    """Adds one pack to [modality, noise level, (weight x share x error, share)]. Waits for the device."""
    sigma = timesteps.double().cpu().numpy() / NUM_STEPS
    level = np.minimum((sigma * NUM_NOISE_LEVELS).astype(int), NUM_NOISE_LEVELS - 1)
    pairs = ((terms.video_mse, terms.video_shares), (terms.audio_mse, terms.audio_shares))
    for modality, (mse, share) in enumerate(pairs):
        shares = share.double().cpu().numpy()
        np.add.at(sums[modality, :, 0], level, (terms.weights * mse).double().cpu().numpy() * shares)
        np.add.at(sums[modality, :, 1], level, shares)


def losses(sums: NDArray[np.float64], video_weight: float, audio_weight: float) -> Losses:
    """Losses out of sums [modality, noise level, (weighted error, share)]; None where nothing was seen."""
    errors, shares = sums[..., 0], sums[..., 1]

    def mean(error: float, share: float) -> float | None:
        return float(error / share) if share > 0 else None

    video, audio = (mean(errors[i].sum(), shares[i].sum()) for i in (0, 1))
    levels = [[mean(e, s) for e, s in zip(errors[i], shares[i], strict=True)] for i in (0, 1)]
    return {
        "loss": None
        if video is None and audio is None
        else video_weight * (video or 0.0) + audio_weight * (audio or 0.0),
        "loss_video": video,
        "loss_audio": audio,
        "loss_video_by_noise": levels[0],
        "loss_audio_by_noise": levels[1],
    }
