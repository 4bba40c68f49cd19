"""Metrics by published networks that lie in local folders, as transformers saves them: config.json and model.safetensors.

    clap                           sound against a text, and Frechet distance of sounds (laion/clap-htsat-fused)
    wavlm (WavLMForXVector)        voice against the given voice (microsoft/wavlm-base-plus-sv)
    dinov2, dinov3_vit             every frame against the first frame that was given
    audio-spectrogram-transformer  divergence of what is heard from what is heard in the real recording

Nothing is downloaded, and only safetensors are read. None of them counts as published: protocols have checkpoints and front ends
of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from model.evaluate.distances import divergence, frechet, inception_score, pair_frechet
from model.evaluate.media import mono_sound, read_pictures
from model.evaluate.metric import Metric, SeenFile, SetMetric, Vector, has_reference, has_voice
from model.evaluate.records import EvalCase, EvalItem, Reading
from schemas.errors import MediaError
from schemas.networks.clap import Clap
from schemas.networks.folders import LocalNetwork, cosine, spectrograms_by_numpy

VOICE_HZ = 16_000
HEARD = "mono, as long as the network hears"
CLAP_CROP = "mono 48 kHz, first 10 s, peak -1 dB"
EVERY = 5
"""Frames from one that is looked at to the next."""
SIDE_PX = 256
DECODER = "PyAV"


class ClapMetrics(Clap):
    """Sounds of files against texts and against each other."""

    @lru_cache(maxsize=4096)  # noqa: B019 - as long as the metric, which is as long as the command
    def of_file(self, path: Path) -> Vector:
        """The vector of the beginning of a file's sound, as `of_sound` has it. Raises MediaError."""
        return self.of_sound(mono_sound(path, self.rate_hz)[0])

    def metrics(self) -> tuple[tuple[Metric, ...], tuple[SetMetric, ...]]:
        """Agreement with the text, and distance of sets."""
        about = f"CLAP in {self.folder.name}"
        return (
            Metric(
                name="clap", doc="cosine of the sound and what is to be heard", unit="cosine", better="higher",
                read=guarded(lambda case, path: cosine(self.of_file(path), self.of_text(case.item.sounds[0]))),
                applies=_has_sounds, crop=CLAP_CROP, model=about, sha256=self.sha256, decoder=DECODER,
            ),
        ), (
            SetMetric(
                name="fd_clap", doc="Frechet distance of all sounds and all real ones", better="lower",
                describe=vector_or_none(self.of_file), distance=frechet, crop=CLAP_CROP, model=about, sha256=self.sha256,
                decoder=DECODER,
            ),
        )  # fmt: skip

    def pair_distance(self) -> Metric:
        """Verse-Bench's FD: of every sample and its real sound for itself, so without a covariance, and the mean of these."""

        def apart(case: EvalCase, path: Path) -> float:
            assert case.item.reference is not None
            return pair_frechet(self.of_file(path), self.of_file(case.item.reference))

        return Metric(
            name="fd_pair_clap", doc="squared distance of the sound's vector and the real one's", better="lower",
            read=guarded(apart), applies=has_reference, crop=CLAP_CROP, model=f"CLAP in {self.folder.name}",
            sha256=self.sha256, decoder=DECODER,
        )  # fmt: skip


class WavlmVoice(LocalNetwork):
    """Whose voice it is."""

    @cached_property
    def _network(self) -> Any:
        return self.load("WavLMForXVector")

    @lru_cache(maxsize=4096)  # noqa: B019
    def of_voice(self, path: Path) -> Vector:
        """The vector of the voice in a file, whole, at 16 kHz. Raises MediaError."""
        import torch

        sound, _ = mono_sound(path, VOICE_HZ)
        sound = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
        with torch.inference_mode():
            return np.asarray(self._network(torch.from_numpy(sound)[None]).embeddings[0].double().numpy())

    def metrics(self) -> tuple[tuple[Metric, ...], tuple[SetMetric, ...]]:
        """Similarity of voices."""

        def similarity(case: EvalCase, path: Path) -> float:
            assert case.item.voice is not None
            return cosine(self.of_voice(path), self.of_voice(case.item.voice))

        return (
            Metric(
                name="sim_wavlm", doc="cosine of the voice heard and the voice given", unit="cosine", better="higher",
                read=guarded(similarity), applies=has_voice, model=f"WavLM speaker network in {self.folder.name}",
                sha256=self.sha256, decoder=DECODER, crop="the whole sound, mono 16 kHz",
            ),
        ), ()  # fmt: skip


class Dino(LocalNetwork):
    """What a picture shows."""

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        return self.load("AutoModel"), self.picture_front_end()

    def of_pictures(self, path: Path) -> Vector:
        """The class tokens [n, d] of every 5th frame. Raises MediaError."""
        import torch

        network, processor = self._parts
        frames, _ = read_pictures(path, SIDE_PX, "rgb24", every=EVERY)
        with torch.inference_mode():
            given = processor(frames, return_tensors="pt")
            return np.asarray(network(**given).last_hidden_state[:, 0].double().numpy())

    def metrics(self) -> tuple[tuple[Metric, ...], tuple[SetMetric, ...]]:
        """Whether the picture stays what it was told to be."""

        def likeness(case: EvalCase, path: Path) -> float:
            assert case.item.first_frame is not None
            first = self.of_pictures(case.item.first_frame)[0]
            return float(np.mean([cosine(each, first) for each in self.of_pictures(path)]))

        return (
            Metric(
                name="dino_identity", doc="cosine of the frames and the first frame given, mean", unit="cosine", better="higher",
                read=guarded(likeness), applies=_has_first_frame, model=f"{self.kind} in {self.folder.name}",
                sha256=self.sha256, decoder=DECODER, crop=f"class token of every {EVERY}th frame, shorter side {SIDE_PX} px",
            ),
        ), ()  # fmt: skip


class SoundTagger(LocalNetwork):
    """What is heard, as chances of classes."""

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        spectrograms_by_numpy()
        return self.load("ASTForAudioClassification"), self.front_end("ASTFeatureExtractor")

    @lru_cache(maxsize=4096)  # noqa: B019
    def of_sound(self, path: Path) -> Vector:
        """The distribution over classes of what is heard in a file at 16 kHz. Raises MediaError."""
        import torch

        network, extractor = self._parts
        sound, _ = mono_sound(path, extractor.sampling_rate)
        with torch.inference_mode():
            given = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            return np.asarray(network(**given).logits[0].double().softmax(0).numpy())

    def metrics(self) -> tuple[tuple[Metric, ...], tuple[SetMetric, ...]]:
        """Divergence from the real recording."""

        def apart(case: EvalCase, path: Path) -> float:
            assert case.item.reference is not None
            return divergence(self.of_sound(path), self.of_sound(case.item.reference))

        return (
            Metric(
                name="kl_ast", doc="divergence of what is heard from what is really heard", unit="nats", better="lower",
                read=guarded(apart), applies=has_reference, model=f"sound tagger in {self.folder.name}", sha256=self.sha256,
                decoder=DECODER, crop=HEARD,
            ),
        ), (
            SetMetric(
                name="is_ast", doc="inception score: how sure and how various is what is heard", better="higher",
                describe=vector_or_none(self.of_sound), distance=lambda made, _: inception_score(made),
                reads_recording=False, model=f"sound tagger in {self.folder.name}", sha256=self.sha256, decoder=DECODER,
                crop=HEARD,
            ),
        )  # fmt: skip


def guarded(value_of: Callable[[EvalCase, Path], float]) -> Callable[[EvalCase], Reading]:
    """Reads what `value_of` says of a case and its sample; a file that cannot be decoded is unmeasured, and why."""

    def read(case: EvalCase) -> Reading:
        assert case.sample is not None
        try:
            return Reading(value_of(case, case.sample))
        except MediaError as error:
            return Reading(None, why=str(error))

    return read


def vector_or_none(describe: Callable[[Path], Vector]) -> Callable[[SeenFile], Vector | None]:
    """Describes a file by a vector, or by none where it cannot be decoded."""

    def vector(seen: SeenFile) -> Vector | None:
        try:
            return describe(seen.path)
        except MediaError:
            return None

    return vector


def _has_sounds(item: EvalItem) -> bool:
    return bool(item.sounds)


def _has_first_frame(item: EvalItem) -> bool:
    return item.first_frame is not None
