"""Formulas of the metrics: known answers, and agreement with implementations by others."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import soundfile
import torch

from model.evaluate.alignment import overlap_of_peaks, peaks
from model.evaluate.distances import divergence, frechet, inception_score, pair_frechet
from model.evaluate.dnsmos import network_path, opinion, opinion_metric
from model.evaluate.intervals import paired, weighted_interval
from model.evaluate.metric import Metric
from model.evaluate.qualities import sound_rms_db
from model.evaluate.records import EvalCase, EvalItem
from model.evaluate.words import (
    CONVERTER,
    OWN_WORDS,
    SEEDTTS_WER,
    VERSEBENCH_WORDS,
    character_errors,
    own_text,
    seedtts_text,
    simplified,
    versebench_text,
    word_errors,
)
from schemas.measured import MeasuredFile

SENTENCE = "She wants to buy a new car next year"


def gaussian(num: int, mean: np.ndarray, root: np.ndarray, seed: int) -> np.ndarray:
    return mean + np.random.default_rng(seed).standard_normal((num, len(mean))) @ root.T


@pytest.mark.parametrize("normalise", [own_text, seedtts_text, versebench_text])
def test_words_dropped_added_and_changed_count_one_each(normalise: object) -> None:
    words = SENTENCE.split()
    assert word_errors(SENTENCE, SENTENCE.upper(), "en", normalise) == (0, 9)
    for at in range(len(words)):
        assert word_errors(SENTENCE, " ".join(words[:at] + words[at + 1 :]), "en", normalise) == (1, 9)
    assert word_errors(SENTENCE, SENTENCE + " again", "en", normalise) == (1, 9)
    assert word_errors(SENTENCE, "", "en", normalise) == (9, 9)
    assert word_errors("", SENTENCE, "en", normalise) == (0, 0), "nothing to say is no rate"


def test_what_counts_as_an_error_is_the_protocols() -> None:
    wanted, heard = "It's 18, isn't it? Don't - go!", "it's eighteen is not it don't go"
    assert word_errors(wanted, heard, "en", own_text) == (0, 9)
    assert seedtts_text(wanted, "en") == "it's 18 isn't it don't go", "two spaces made one, the apostrophe kept"
    assert word_errors("Well, go.", "well go", "en", seedtts_text) == (0, 2)
    assert word_errors("Well, go.", "well go", "en", versebench_text) == (2, 2)
    assert word_errors("你好，世界。", "你好世", "zh", seedtts_text) == (1, 4), "a character is a word"
    assert character_errors("abcd", "abc", "en", own_text) == (1, 4)


TRADITIONAL, SIMPLIFIED = "今天，天氣好，我們在臺灣吃麵。", "今天，天气好，我们在台湾吃面。"


def test_traditional_and_simplified_are_one_text_where_the_protocol_has_it_so() -> None:
    def rates(metric: Metric) -> list[float | None]:
        cases = [
            EvalCase(
                EvalItem(item_id="a", text=wanted, language="zh"),
                Path("a.wav"),
                MeasuredFile(uri="a", made_by="m", asset={"transcribe": {"engine": "any", "text": heard}}),
            )
            for wanted, heard in ((SIMPLIFIED, TRADITIONAL), (TRADITIONAL, SIMPLIFIED))
        ]
        return [metric.read(each).value for each in cases]

    wer, cer = OWN_WORDS
    assert rates(wer) == rates(cer) == [0, 0]
    assert rates(SEEDTTS_WER) == [0, 5 / 12], "what is to be said is taken as it is written"
    assert rates(VERSEBENCH_WORDS[0]) == [5 / 15, 5 / 15], "its owner changes no character"
    assert "not by zhconv" in SEEDTTS_WER.model
    assert CONVERTER in SEEDTTS_WER.model
    assert CONVERTER in cer.model
    assert CONVERTER.endswith(f"opencc-python-reimplemented {version('opencc-python-reimplemented')}")
    assert simplified("什么是著名的？", "zh") == "什么是著名的？", "what is simplified stays"
    assert simplified("天気がいい、經濟", "ja") == "天気がいい、經濟", "other languages stay as they are"


def test_error_rates_agree_with_another_implementation() -> None:
    from torchmetrics.functional.text import char_error_rate, word_error_rate

    random = np.random.default_rng(0)
    for _ in range(50):
        wanted, heard = (" ".join(random.choice(list("abcde"), random.integers(1, 12))) for _ in range(2))
        errors, num = word_errors(wanted, heard, "en", versebench_text)
        assert errors / num == pytest.approx(float(word_error_rate([heard], [wanted])))
        errors, num = character_errors(wanted, heard, "en", versebench_text)
        assert errors / num == pytest.approx(float(char_error_rate([heard], [wanted])))


@pytest.mark.parametrize("num", [2, 5, 40, 400])
def test_a_set_has_no_distance_from_itself(num: int) -> None:
    vectors = np.random.default_rng(num).standard_normal((num, 60)) * 5 + 3
    assert frechet(vectors, vectors) == pytest.approx(0, abs=1e-6)
    assert frechet(vectors, vectors + 1) == pytest.approx(60, rel=1e-9), "moved by 1 along 60 axes"


def test_the_distance_of_gaussians_is_that_of_their_closed_form() -> None:
    random = np.random.default_rng(1)
    roots = [random.standard_normal((6, 6)) for _ in range(2)]
    means = [random.standard_normal(6) for _ in range(2)]
    one, other = (gaussian(200_000, mean, root, at) for at, (mean, root) in enumerate(zip(means, roots, strict=True)))
    spreads = [root @ root.T for root in roots]
    shared = scipy.linalg.sqrtm(spreads[0] @ spreads[1]).real
    exact = np.sum((means[0] - means[1]) ** 2) + np.trace(spreads[0] + spreads[1] - 2 * shared)
    assert frechet(one, other) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("num", [30, 300])
def test_frechet_agrees_with_another_implementation(num: int) -> None:
    from torchmetrics.image.fid import _compute_fid

    one, other = (gaussian(num, np.full(20, at), np.eye(20) * (at + 1), at) for at in (0, 1))
    told = [(torch.tensor(each.mean(0)), torch.tensor(np.cov(each, rowvar=False))) for each in (one, other)]
    assert frechet(one, other) == pytest.approx(float(_compute_fid(*told[0], *told[1])), rel=1e-6)


def test_one_vector_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="1 vectors have no covariance"):
        frechet(np.zeros((1, 3)), np.zeros((5, 3)))
    assert pair_frechet(np.zeros(3), np.full(3, 2.0)) == 12


def test_divergence_and_inception_score() -> None:
    random = np.random.default_rng(2)
    made, real = random.dirichlet(np.ones(10), 2)
    assert divergence(made, real) == pytest.approx(scipy.stats.entropy(real, made))
    assert divergence(real, real) == pytest.approx(0, abs=1e-12)
    assert inception_score(np.eye(7)) == pytest.approx(7), "seven sure classes"
    assert inception_score(np.full((7, 5), 0.2)) == pytest.approx(1), "nothing is told apart"


def test_an_opinion_of_speech_is_that_of_the_package() -> None:
    """What `speechmos.dnsmos.run` of speechmos 0.0.1.1 says of the same samples, run once by hand."""
    path, time_s = network_path(), np.arange(5 * 16_000) / 16_000
    noise = 0.02 * np.random.default_rng(8).standard_normal(len(time_s))
    bursts = 0.3 * np.sin(2 * np.pi * 180 * time_s) * (np.sin(2 * np.pi * 3 * time_s) > 0)
    assert opinion((bursts + noise).astype(np.float32), path) == pytest.approx(2.4026, abs=1e-3)
    metric = opinion_metric(is_only_set3=True)
    assert [metric.applies(EvalItem(item_id="a", subset=name)) for name in ("set1", "set3", "")] == [False, True, True]


def test_level_is_that_of_a_sine(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "sine.wav", 0.5 * np.sin(np.arange(48_000) * 0.1), 48_000)
    soundfile.write(tmp_path / "none.wav", np.zeros(480), 48_000)
    sine, none = (EvalCase(EvalItem(item_id="a"), tmp_path / f"{name}.wav") for name in ("sine", "none"))
    assert sound_rms_db(sine).value == pytest.approx(10 * np.log10(0.5**2 / 2), abs=0.01)
    assert sound_rms_db(none).why == "it is silent"


def test_peaks_are_shared_less_than_a_frame_apart_and_once() -> None:
    seen = np.array([1.0, 2.0, 3.0])
    assert overlap_of_peaks(seen + 0.03, seen, 0.04) == 1
    assert overlap_of_peaks(seen + 0.05, seen, 0.04) == 0
    assert overlap_of_peaks(np.array([1.0, 1.01]), np.array([1.0]), 0.04) == 0.5, "one picture has one sound"
    assert overlap_of_peaks(np.array([]), np.array([]), 0.04) == 0
    assert peaks(np.array([0, 1, 0, 0.05, 0, 2, 2, 0]), 0.1).tolist() == [1]


def test_intervals_agree_with_another_implementation_and_cover() -> None:
    values = np.random.default_rng(3).exponential(size=60)
    low, high = weighted_interval(values, np.ones(60))
    other = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=1, n_resamples=2000).confidence_interval
    assert (low, high) == pytest.approx(tuple(other), abs=0.03)
    drawn = [weighted_interval(np.random.default_rng(at).standard_normal(40), np.ones(40)) for at in range(100)]
    assert sum(low <= 0 <= high for low, high in drawn) >= 86, "95 of 100, less three standard deviations"
    assert weighted_interval(values[:1], np.ones(1)) is None


def test_pairs_tell_what_two_intervals_do_not() -> None:
    random = np.random.default_rng(4)
    items = random.normal(0, 10, 50)
    one, other = items + random.normal(0, 0.5, 50), items + 1 + random.normal(0, 0.5, 50)
    apart = [weighted_interval(each, np.ones(50)) for each in (one, other)]
    assert apart[0][1] > apart[1][0], "the two intervals overlap"
    found = paired(one, other, np.ones(50))
    assert found.is_sure
    assert found.difference == pytest.approx(1, abs=0.3)
    assert not paired(one, one + random.normal(0, 1, 50), np.ones(50)).is_sure
