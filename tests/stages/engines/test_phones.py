"""Phones are heard where they are said, in sound of any length."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.spans import SPEECH_RATE_HZ
from stages.engines.phones import LEAST_LOG, PHONES, PHONES_HZ, PIECE_S, PhoneRecogniser


@pytest.fixture(scope="module")
def phones() -> PhoneRecogniser:
    return PhoneRecogniser()


def test_the_words_of_a_sentence_can_be_told_by_their_phones(
    phones: PhoneRecogniser, media_dir: Path, context: Any
) -> None:
    """`set blue with e five now`, spoken from 0.43 to 1.97 s."""
    path = media_dir / "talking/grid_set_blue_with_e_five_now__young_man_grey_shirt.mpg"
    sound = context.media.audio(path)
    found = phones.log_posteriors(sound.samples)
    context.media.close()
    sure = np.flatnonzero(found.max(axis=1) > np.log(0.5))
    said = [PHONES[k] for k, _ in groupby(found[sure].argmax(axis=1).tolist())]
    rest = iter(said)
    assert all(phone in rest for phone in ("s", "b", "l", "u", "f", "v", "n")), said
    times_s = float(sound.start) + sure / PHONES_HZ
    assert 0.43 < times_s[0] < 0.73
    assert 1.67 < times_s[-1] < 1.97


@pytest.mark.slow
def test_long_sound_is_heard_in_pieces_that_meet(phones: PhoneRecogniser, media_dir: Path, context: Any) -> None:
    samples = (
        context.media.audio(media_dir / "speech/narration_chemicals_67s.opus").samples[: 44 * SPEECH_RATE_HZ].copy()
    )
    context.media.close()
    whole = phones.log_posteriors(samples)
    assert whole.shape == (44 * PHONES_HZ, len(PHONES))
    low, high = PIECE_S - 3, PIECE_S + 3
    around = phones.log_posteriors(samples[low * SPEECH_RATE_HZ : high * SPEECH_RATE_HZ])
    seam = slice((PIECE_S - 1) * PHONES_HZ, (PIECE_S + 1) * PHONES_HZ)
    assert np.corrcoef(whole[seam].ravel(), around[2 * PHONES_HZ : 4 * PHONES_HZ].ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("num_samples", "num_rows"), [(0, 0), (1, 1), (50, 1), (321, 2), (16_000, 50)])
def test_every_length_has_its_rows(phones: PhoneRecogniser, num_samples: int, num_rows: int) -> None:
    found = phones.log_posteriors(np.zeros(num_samples, np.float32))
    assert found.shape == (num_rows, len(PHONES))
    assert ((found >= LEAST_LOG) & (found <= 0)).all()
