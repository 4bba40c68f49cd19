"""The front end of DNSMOS P.808 against another library's."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.networks.p808 import BANDS, DYNAMICS_DB, FFT_SIZE, HOP, spectrogram
from schemas.spans import SPEECH_RATE_HZ


@pytest.mark.slow
def test_the_spectrogram_is_that_of_an_independent_library() -> None:
    """The original calls librosa's `melspectrogram`, which transformers' is written after, but for banks of an odd length."""
    from transformers import audio_utils

    fade = np.linspace(1, 0, SPEECH_RATE_HZ)
    samples = (np.random.default_rng(0).standard_normal(SPEECH_RATE_HZ) * fade**4).astype(np.float32)
    top = audio_utils.hertz_to_mel(SPEECH_RATE_HZ / 2, "slaney")
    corners = audio_utils.mel_to_hertz(np.linspace(0, top, BANDS + 2), "slaney")
    bins = np.fft.rfftfreq(FFT_SIZE, 1 / SPEECH_RATE_HZ)
    triangles = zip(corners, corners[1:], corners[2:], strict=False)
    bank = np.stack([np.interp(bins, three, [0, 2 / (three[2] - three[0]), 0]) for three in triangles], axis=1)
    window = audio_utils.window_function(FFT_SIZE, "hann")
    power = audio_utils.spectrogram(samples, window, FFT_SIZE, HOP, power=2, pad_mode="constant", mel_filters=bank)
    decibels = audio_utils.power_to_db(power, reference=power.max(), min_value=1e-10, db_range=DYNAMICS_DB)
    theirs = (decibels.T + 40) / 40
    assert (theirs == -1).any(), "some of it is below what counts"
    np.testing.assert_allclose(spectrogram(samples), theirs, atol=1e-4)
