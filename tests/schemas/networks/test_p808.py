"""The front end of DNSMOS P.808 against another library's."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.networks.p808 import BANDS, DYNAMICS_DB, FFT_SIZE, HOP, spectrogram
from schemas.spans import SPEECH_RATE_HZ


@pytest.mark.slow
def test_the_spectrogram_is_that_of_an_independent_library() -> None:
    from librosa import power_to_db
    from librosa.feature import melspectrogram

    fade = np.linspace(1, 0, SPEECH_RATE_HZ)
    samples = (np.random.default_rng(0).standard_normal(SPEECH_RATE_HZ) * fade**4).astype(np.float32)
    power = melspectrogram(y=samples, sr=SPEECH_RATE_HZ, n_fft=FFT_SIZE, hop_length=HOP, n_mels=BANDS)
    theirs = (power_to_db(power, ref=np.max, top_db=DYNAMICS_DB).T + 40) / 40
    assert (theirs == -1).any(), "some of it is below what counts"
    np.testing.assert_allclose(spectrogram(samples), theirs, atol=1e-4)
