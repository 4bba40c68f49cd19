"""Speech in five languages and mixtures of them, with every word's time known, from the demo's synthesiser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ, Word
from schemas.stretches import Stretch

F32 = NDArray[np.float32]

SENTENCES = {
    "en": (
        "The old bridge was closed last winter because the river had risen.",
        "She keeps a small notebook with the names of all her students.",
        "Nobody expected the train to arrive on time this morning.",
        "He opened the window and listened to the rain on the roof.",
        "We walked along the coast until it was too dark to see.",
        "My brother works in a hospital and often comes home late.",
    ),
    "es": (
        "El puente antiguo estuvo cerrado todo el invierno.",
        "Mi hermana trabaja en un hospital y vuelve muy tarde a casa.",
        "Los estudiantes escriben una carta a sus padres cada semana.",
        "Nadie esperaba que el tren llegara a tiempo esta mañana.",
        "Abrió la ventana y escuchó la lluvia sobre el tejado.",
        "Vamos a comprar pan y fruta en el mercado de la plaza.",
    ),
    "de": (
        "Die alte Brücke war den ganzen Winter über geschlossen.",
        "Meine Schwester arbeitet in einem Krankenhaus und kommt oft spät nach Hause.",
        "Niemand hat erwartet, dass der Zug heute pünktlich ankommt.",
        "Er öffnete das Fenster und hörte den Regen auf dem Dach.",
        "Die Schüler schreiben jede Woche einen Brief an ihre Eltern.",
        "Wir gehen am Samstag zusammen auf den Markt.",
    ),
    "zh": (
        "今天早上火车没有准时到。",
        "我的姐姐在医院工作，晚上很晚才回家。",
        "学生们每个星期给父母写一封信。",
        "他打开窗户，听着外面的雨声。",
        "我们明天一起去超市买水果和面包。",
        "这个城市的历史非常有意思。",
    ),
    "hi": (
        "आज सुबह ट्रेन समय पर नहीं आई।",
        "मेरी बहन अस्पताल में काम करती है और देर से घर आती है।",
        "बच्चे हर हफ़्ते अपने माता पिता को चिट्ठी लिखते हैं।",
        "उसने खिड़की खोली और बारिश की आवाज़ सुनी।",
        "हम कल बाज़ार से फल और रोटी लाएँगे।",
        "इस शहर का इतिहास बहुत रोचक है।",
    ),
}
"""None of them was used to choose voices or settings."""
SPEAKERS = {"en": ("ann", "ben", "cat", "dan"), "es": ("ana",), "de": ("dieter",), "zh": ("mei",), "hi": ("uma",)}
MIXED = (("en", "es"), ("zh", "en"), ("de", "en"), ("es", "zh", "en"))
PAUSE_S = 0.5
"""Between sentences."""


@dataclass(frozen=True)
class Spoken:
    """A sound [n] at 16 kHz, and what is said in it where and in what language."""

    name: str
    samples: F32
    words: list[Word]
    passages: list[tuple[Stretch, str, str]]
    """(where, language, text) of each sentence, in order."""


def short_ones() -> Iterator[Spoken]:
    """One sentence each."""
    for language, sentences in SENTENCES.items():
        for index, text in enumerate(sentences):
            yield spoken(f"{language}-short-{index}", [(language, text)], index)


def long_ones() -> Iterator[Spoken]:
    """All sentences of one language each, by one voice."""
    for language, sentences in SENTENCES.items():
        for index in range(len(SPEAKERS[language])):
            yield spoken(f"{language}-long-{index}", [(language, text) for text in sentences], index)


def mixed_ones() -> Iterator[Spoken]:
    """Two sentences of one language, then two of another."""
    for index, languages in enumerate(MIXED):
        lines = [(language, text) for language in languages for text in SENTENCES[language][index : index + 2]]
        yield spoken(f"mixed-{'-'.join(languages)}", lines, index)


def spoken(name: str, lines: list[tuple[str, str]], seed: int) -> Spoken:
    """The `lines` (language, text) one after the other; `seed` chooses the voices. The same arguments give the same sound."""
    from scipy.signal import resample_poly

    from pipeline.demo.voice import SAMPLE_RATE_HZ, synthesise

    gap = np.zeros(round(PAUSE_S * SPEECH_RATE_HZ), np.float32)
    parts, words, passages, at_s = [gap], [], [], PAUSE_S
    for language, text in lines:
        voices = SPEAKERS[language]
        said = synthesise(text, voices[seed % len(voices)], seed=seed)
        sound = np.asarray(resample_poly(said.samples, 1, SAMPLE_RATE_HZ // SPEECH_RATE_HZ), np.float32)
        words += [Word(word.text, word.start_s + at_s, word.end_s + at_s) for word in said.words]
        passages.append((Stretch(at_s, at_s + said.duration_s), language, text))
        parts += [sound, gap]
        at_s += len(sound) / SPEECH_RATE_HZ + PAUSE_S
    return Spoken(name, np.concatenate(parts), words, passages)
