"""From a prompt to a file: conditions through the frozen encoders, the sampler, pictures and sound through the decoders.

Writes `NAME.mp4` when the codecs can decode what was generated, `NAME.safetensors` with the latents otherwise.
C channels, T frames, H and W pixels, S sound samples.
"""

from __future__ import annotations

import wave
from collections.abc import Callable
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from model.encoding.clip_media import read_sound
from model.encoding.codec import Codecs, EncodedText, TextEncoder, open_codecs
from model.network.config import NavaConfig, network_of
from model.network.context_parallel import Team
from model.network.float8 import hold_in_float8
from model.network.nava import Nava
from model.sampling.config import Mode, Prompt, SampleConfig
from model.sampling.offload import fetch_blocks
from model.sampling.rewrite import rewrite
from model.sampling.sampler import Latents, SampleRequest, sample
from model.weights.convert import load_weights
from schemas.budget import PX_PER_LATENT
from schemas.errors import ModelError
from schemas.files import whole_path
from schemas.spans import SPEECH_RATE_HZ

NEGATIVE_SOUND = "机械音、闷糊、回音、失真、电流声、爆音、杂音"
NEGATIVE_PICTURE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，"
    f"倒着走, 音频带有{NEGATIVE_SOUND}"
)
"""The release's negative prompts: Wan's list for clips with a picture, with the sound's appended; the sound's alone otherwise."""

PEAK = 0.95
"""Sound is scaled to this peak, as in the release."""


def load_model(weights: Path, config: NavaConfig, device: str, dtype: torch.dtype, *, is_float8: bool = False) -> Nava:
    """The network with the weights of a checkpoint, on `device`; needs its own size in memory and little more."""
    with torch.device("meta"):
        model = Nava(config)
    model.to(dtype).requires_grad_(False)
    if is_float8:
        hold_in_float8(model)
    model.to_empty(device=device)
    load_weights(model, weights, config)
    model.eval()
    return model


class Generator:
    """The network and the frozen codecs of a recipe, opened once for as many clips as wanted.

    Everything that can be refused is refused before the network is read, which the first clip does. Raises ModelError for
    prompts, codecs or weights that do not fit each other, MediaError for a voice without sound.
    """

    def __init__(self, weights: Path, config: SampleConfig, team: Team | None = None) -> None:
        self.config, self._team = config, team
        self.network, dtype = network_of(weights, config.network), getattr(torch, config.dtype)
        self._device = torch.device(config.device)
        self.codecs = Codecs()
        if config.codecs:
            self.codecs = open_codecs(config.codecs, self.network, self._device, dtype)
        if config.memory.has_tiles and self.codecs.video is not None:
            self.codecs.video.vae.enable_tiling()
        self.weights, self._dtype = weights, dtype

    @property
    def is_writing(self) -> bool:
        """Whether this rank writes what is generated."""
        return self._team is None or self._team.is_first

    @cached_property
    def model(self) -> Nava:
        """The network."""
        memory = self.config.memory
        device = "cpu" if memory.offloads_blocks else self.config.device
        model = load_model(self.weights, self.network, device, self._dtype, is_float8=memory.is_float8)
        if memory.offloads_blocks:
            fetch_blocks(model, self._device)
        return model

    def request(self, prompt: Prompt, seed: int) -> SampleRequest:
        """What the network is asked: sizes, and text, voices and first frame encoded."""
        if self.codecs.text is not None:
            self.codecs.text.model.to(self._device)
        with torch.no_grad():
            config = self.config.model_copy(update={"prompt": prompt, "seed": seed})
            return make_request(config, self.network, self.codecs)

    def rest_encoder(self) -> None:
        """No text is read for a while: leave the device to the network, where memory is short."""
        if self.codecs.text is not None and self.config.memory.offloads_text:
            self.codecs.text.model.to("cpu")

    def make(self, request: SampleRequest, target: Path, on_step: Callable[[int, int], None] | None = None) -> None:
        """Generate a clip and write it to `target`, which `target_of` named; of a team the first rank writes."""
        latents = sample(self.model, request, on_step, self._team)
        if not self.is_writing:
            return
        if target.suffix == ".safetensors":
            write_sampled(target, latents, request.seed)
        else:
            write_media(target, latents, self.codecs, self.network.video_fps)


def generate(weights: Path, config: SampleConfig, out: Path, on_step: Callable[[int, int], None] | None = None) -> Path:
    """The file written: `out` with .mp4, .wav or .safetensors."""
    generator = Generator(weights, config)
    target = target_of(out, config.prompt.mode, generator.codecs)
    prompt = config.prompt
    if config.rewrite is not None:
        prompt = prompt.model_copy(update={"caption": rewrite(prompt.caption, config.rewrite)})
    request = generator.request(prompt, config.seed)
    generator.rest_encoder()
    generator.make(request, target, on_step)
    return target


def make_request(config: SampleConfig, network: NavaConfig, codecs: Codecs) -> SampleRequest:
    """The request behind a prompt: sizes in latents, text and voices encoded, the first frame encoded."""
    prompt = config.prompt
    grid = None if prompt.mode == "audio" else video_grid(network, prompt.seconds, prompt.height_px, prompt.width_px)
    num_audio = 0 if prompt.mode == "video" else audio_latents(network, grid[0] if grid else None, prompt.seconds)
    if prompt.text_file is not None:
        text, negative_text, speakers = read_text_file(prompt.text_file, network)
    else:
        text, negative_text = _encode_text(prompt, codecs)
        speakers = _encode_voices(prompt, text, codecs)
    return SampleRequest(
        text=text.rows,
        negative_text=negative_text,
        placeholders=text.voice_rows,
        speakers=speakers,
        video_grid=grid,
        num_audio_latents=num_audio,
        first_frame=_encode_first_frame(prompt, codecs),
        num_steps=config.num_steps,
        shift=config.shift,
        solver=config.solver,
        seed=config.seed,
        guidance=config.guidance,
    )


def video_grid(config: NavaConfig, seconds: float, height_px: int, width_px: int) -> tuple[int, int, int]:
    """Latent (T, H, W) of a clip; T is the nearest number of latents, at least 1. Raises ModelError for odd sizes."""
    if height_px % PX_PER_LATENT or width_px % PX_PER_LATENT or min(height_px, width_px) <= 0:
        raise ModelError(f"{width_px}x{height_px} px: both sides must be multiples of {PX_PER_LATENT} px.")
    num_latents = max(1, round(seconds * float(config.video_latent_hz)))
    return num_latents, height_px // PX_PER_LATENT, width_px // PX_PER_LATENT


def audio_latents(config: NavaConfig, num_video_latents: int | None, seconds: float) -> int:
    """Sound latents beside `num_video_latents`, or of sound alone: enough to cover the whole duration.

    A video of T latents has (T - 1) 4 + 1 frames; 37 latents at 24 Hz go with 152 sound latents, as in the release.
    """
    duration = Fraction(seconds).limit_denominator(1000)
    if num_video_latents is not None:
        num_frames = (num_video_latents - 1) * config.video_stride_frames + 1
        duration = num_frames / (config.video_latent_hz * config.video_stride_frames)
    return max(1, ceil(duration * config.audio_latent_hz))


def read_text_file(path: Path, config: NavaConfig) -> tuple[EncodedText, Tensor, list[Tensor | None] | None]:
    """(text, negative text, voices) from a safetensors file, for machines without the text encoder.

    Tensors: text [n, text_dim]; optionally negative [n, text_dim], voice_rows int64 [k] and voices [k, speaker_dim]
    (a row of zeros is a line without reference).
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"No text file at {path}.")
    tensors = load_file(path)
    if "text" not in tensors or tensors["text"].shape[-1] != config.text_dim:
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise ModelError(f"{path}: expected a tensor text [n, {config.text_dim}], found {found}.")
    rows = tuple(tensors.get("voice_rows", torch.zeros(0, dtype=torch.int64)).tolist())
    voices = list(tensors["voices"].float()) if "voices" in tensors else None
    negative = tensors.get("negative", tensors["text"][:0]).float()
    return EncodedText(tensors["text"].float(), rows), negative, voices


def encode_negative(prompt: Prompt, encoder: TextEncoder) -> Tensor:
    """Rows of the prompt's negative, by default the release's for its mode: [n, text_dim]."""
    default = NEGATIVE_SOUND if prompt.mode == "audio" else NEGATIVE_PICTURE
    (encoded,) = encoder.encode([default if prompt.negative is None else prompt.negative])
    return encoded.rows


def _encode_text(prompt: Prompt, codecs: Codecs) -> tuple[EncodedText, Tensor]:
    if codecs.text is None:
        raise ModelError(
            "No text encoder to read the caption with.",
            remedy="Give --codecs with text_encoder/ and tokenizer/, or encoded text as --set prompt.text_file=FILE.",
        )
    (text,) = codecs.text.encode([prompt.caption])
    return text, encode_negative(prompt, codecs.text)


def _encode_voices(prompt: Prompt, text: EncodedText, codecs: Codecs) -> list[Tensor | None] | None:
    if not prompt.voices:
        return None
    if len(prompt.voices) != len(text.voice_rows):
        raise ModelError(
            f"{len(prompt.voices)} voices for {len(text.voice_rows)} spoken lines.",
            remedy="Give one --voice per <S>line<E> in order, 'none' where a line has no reference.",
        )
    if codecs.speaker is None:
        raise ModelError("No speaker network for --voice.", remedy="Add speaker.pt to --codecs (docs/checkpoints.md).")
    speaker = codecs.speaker
    return [None if path is None else speaker.embed(read_voice(path)) for path in prompt.voices]


def read_voice(path: Path) -> Tensor:
    """Mono sound_S of a media file at the speaker networks' rate, channels averaged. Raises MediaError."""
    return torch.from_numpy(read_sound(path, SPEECH_RATE_HZ, str(path))).mean(0)


def _encode_first_frame(prompt: Prompt, codecs: Codecs) -> Tensor | None:
    if prompt.first_frame is None:
        return None
    if prompt.mode == "audio":
        raise ModelError("A first frame needs a picture.", remedy="Set prompt.mode to joint or video.")
    if codecs.video is None:
        raise ModelError("No video VAE for --first-frame.", remedy="Add video_vae/ to --codecs (docs/checkpoints.md).")
    return codecs.video.encode(read_picture(prompt.first_frame, prompt.height_px, prompt.width_px))


def read_picture(path: Path, height_px: int, width_px: int) -> Tensor:
    """Pixels [3, 1, H, W] in [-1, 1]: scaled to cover the frame, then cropped around the centre. Raises ModelError."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ModelError(f"{path} is not a readable picture: {error}") from error
    fitted = ImageOps.fit(upright, (width_px, height_px), Image.Resampling.LANCZOS)
    pixels_HWC = torch.from_numpy(np.array(fitted)).float() / 127.5 - 1
    return pixels_HWC.permute(2, 0, 1)[:, None]


def target_of(out: Path, mode: Mode, codecs: Codecs) -> Path:
    """`out` with the suffix of what will be written; a suffix that is asked for and cannot be had is refused."""
    lacking = []
    if mode != "audio" and codecs.video is None:
        lacking.append("video_vae/")
    if mode != "video" and (codecs.audio is None or codecs.audio.vocoder is None):
        lacking.append("audio_vae/ and vocoder/")
    if out.suffix == ".wav" and mode != "audio":
        raise ModelError(f"{out} can hold sound alone.", remedy="Set prompt.mode to audio, or name it .mp4.")
    if out.suffix in (".mp4", ".wav") and lacking:
        raise ModelError(
            f"{out} needs {' and '.join(lacking)} in --codecs.", remedy="Add them, or name the output .safetensors."
        )
    if out.suffix in (".mp4", ".wav", ".safetensors"):
        return out
    return out.with_name(out.name + (".safetensors" if lacking else ".mp4"))


def write_sampled(path: Path, latents: Latents, seed: int) -> None:
    """Generated latents as one safetensors file: video [C, T, H, W] and audio [L, C], normalised as the codecs give them."""
    from safetensors.torch import save_file

    named = {"video": latents.video, "audio": latents.audio}
    tensors = {name: value.cpu().contiguous() for name, value in named.items() if value is not None}
    with whole_path(path) as partial:
        save_file(tensors, partial, {"seed": str(seed), "layout": "video [C, T, H, W], audio [L, C], normalised"})


def write_media(target: Path, latents: Latents, codecs: Codecs, video_fps: float) -> None:
    """Write what latents decode to as .mp4, or their sound alone as .wav; a part without a codec is left out.

    Raises ModelError where sound has no vocoder.
    """
    sound, rate_hz = None, 0
    if latents.audio is not None and codecs.audio is not None:
        sound, rate_hz = codecs.audio.decode(latents.audio)
        sound = sound.cpu()
    if target.suffix == ".wav":
        write_wav(target, sound, rate_hz)
        return
    pixels = None if latents.video is None or codecs.video is None else codecs.video.decode(latents.video).cpu()
    write_mp4(target, pixels, Fraction(video_fps).limit_denominator(1001), sound, rate_hz)


def write_wav(path: Path, wave_CS: Tensor | None, rate_hz: int) -> None:
    """Write 16-bit PCM of a wave, scaled to a peak of 0.95."""
    if wave_CS is None:
        raise ModelError(f"{path}: there is no sound to write.")
    levels = (wave_CS * (PEAK / wave_CS.abs().max().clamp(min=1e-12)) * 32767).round().to(torch.int16)
    with whole_path(path) as partial, wave.open(str(partial), "wb") as file:
        file.setnchannels(levels.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(levels.T.contiguous().numpy().tobytes())


def write_mp4(path: Path, pixels_CTHW: Tensor | None, fps: Fraction, wave_CS: Tensor | None, rate_hz: int) -> None:
    """Write H.264 (CRF 18) of pixels in [-1, 1] and AAC of a wave scaled to a peak of 0.95; either may be None.

    Sound is cut to the length of the picture. The file gets its name when it is whole.
    """
    import av

    with whole_path(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        picture = sound = None
        if pixels_CTHW is not None:
            _, T, H, W = pixels_CTHW.shape
            picture = container.add_stream("libx264", rate=fps, options={"crf": "18"})
            picture.width, picture.height, picture.pix_fmt = W, H, "yuv420p"
        if wave_CS is not None:
            sound = container.add_stream("aac", rate=rate_hz, layout="stereo" if wave_CS.shape[0] == 2 else "mono")
            if pixels_CTHW is not None:
                wave_CS = wave_CS[:, : round(T / fps * rate_hz)]
            wave_CS = wave_CS * (PEAK / wave_CS.abs().max().clamp(min=1e-12))
        if picture is not None and pixels_CTHW is not None:
            frames_THWC = ((pixels_CTHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0)
            for frame in frames_THWC.contiguous().numpy():
                container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(picture.encode())
        if sound is not None and wave_CS is not None:
            block = av.AudioFrame.from_ndarray(
                wave_CS.contiguous().numpy(), format="fltp", layout="stereo" if wave_CS.shape[0] == 2 else "mono"
            )
            block.sample_rate = rate_hz
            block.pts = 0
            container.mux(sound.encode(block))
            container.mux(sound.encode())
