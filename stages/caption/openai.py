"""Captions from any server that speaks OpenAI's chat protocol: a few frames, the sound and the transcript go in."""

from __future__ import annotations

import base64
import io
import json
import time
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.errors import EngineError
from schemas.lines import LINE_END, LINE_START, lines_in, marked
from schemas.records import Row, span_of
from schemas.spans import SPEECH_RATE_HZ
from stages.base import Context, StageConfig
from stages.retry import RetryPolicy, retry_after_s

LONGEST_ASKED_S = 60.0
"""Longest pause a server is granted: with the default four tries a clip must stay within its time limit of 900 s."""
PROMPT = (
    "Describe this video clip in one dense paragraph of plain English for training a video-and-sound generator: people, "
    "clothes, place, light, camera, actions, and how it sounds (voices, music, noises). Mention every spoken line below "
    f"exactly once, in this order, copied letter by letter between {LINE_START} and {LINE_END}, and say who speaks it. "
    f"Use {LINE_START} and {LINE_END} "
    "for nothing else. Answer with the paragraph only."
)


class OpenaiConfig(StageConfig):
    """Where to ask and what to send."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Root of the API, without /chat/completions."""
    model: str = ""
    """Model name the server knows."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key; the key itself never stands in a recipe or a log."""
    num_frames: int = Field(default=8, ge=1, le=64)
    """Frames sent, spread evenly over the clip."""
    long_side_px: int = Field(default=512, ge=64)
    """Longer side of the frames sent."""
    send_audio: bool = True
    """Send the clip's sound as 16 kHz mono WAV; switch off for models that only see."""
    max_tokens: int = Field(default=600, ge=16)
    """Longest answer."""
    temperature: float = Field(default=0.2, ge=0, le=2)
    """Sampling temperature."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for one answer."""
    tries: int = Field(default=4, ge=1)
    """Attempts in all, for failures of the server and for answers that lost a line."""
    wait_s: float = Field(default=1.0, ge=0)
    """Pause before the second attempt; doubles from try to try, and Retry-After is respected."""


class _PassingError(EngineError):
    """Another attempt may do better; `wait_s` is the pause the server asked for."""

    wait_s: float | None = None


@dataclass
class OpenaiEngine:
    """As good as the model behind it. One request per clip; the lines are checked, the description cannot be."""

    config: OpenaiConfig
    api_key: str = field(repr=False)
    sleep: Callable[[float], None] = time.sleep

    def write(self, row: Row, lines: Sequence[str], draft: str, ctx: Context) -> str:
        """A caption that holds exactly `lines`, in order.

        Raises EngineError `caption_unreachable` when the server does not answer, `caption_refused` when it refuses the
        request, `caption_spans_lost` when every answer changed, dropped or added a line.
        """
        body = self._body(row, lines, draft, ctx)
        policy = RetryPolicy(self.config.tries, self.config.wait_s, longest_asked_s=LONGEST_ASKED_S)
        text, _ = policy.run(lambda: self._once(body, lines), (_PassingError,), self.sleep)
        return text

    def _once(self, body: bytes, lines: Sequence[str]) -> str:
        """A caption that holds exactly `lines`. Raises _PassingError where another attempt may do better."""
        text = " ".join(self._ask(body).split())
        found = lines_in(text)
        if found is None or [line.strip() for line in found] != list(lines):
            raise _PassingError(
                f"The answer holds {len(found or [])} spoken lines, not exactly the {len(lines)} given.",
                reason="caption_spans_lost",
                remedy="Use a stronger model, raise stages.caption.openai.tries, or use engine: template.",
            )
        return text

    def _ask(self, body: bytes) -> str:
        import httpx

        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        url = self.config.base_url.rstrip("/") + "/chat/completions"
        try:
            answer = httpx.post(url, content=body, headers=headers, timeout=self.config.timeout_s)
        except httpx.HTTPError as error:
            raise self._unreachable(f"No answer from {self.config.base_url}: {type(error).__name__}.") from None
        if answer.status_code == 429 or answer.status_code >= 500:
            asked_s = retry_after_s(answer.headers.get("Retry-After"))
            raise self._unreachable(f"{self.config.base_url} answered {answer.status_code}.", asked_s)
        if answer.status_code != 200:
            said = answer.text[:200]
            said = said.replace(self.api_key, "***") if self.api_key else said
            raise EngineError(
                f"{self.config.base_url} refused the request with {answer.status_code}: {said}",
                reason="caption_refused",
                remedy="Check stages.caption.openai.model, api_key_env, and whether the model takes sound (send_audio).",
            )
        try:
            text = answer.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            raise self._unreachable(f"{self.config.base_url} sent no chat completion.")
        return text

    def _unreachable(self, message: str, asked_s: float | None = None) -> _PassingError:
        error = _PassingError(message, reason="caption_unreachable")
        error.wait_s = asked_s
        return error

    def _body(self, row: Row, lines: Sequence[str], draft: str, ctx: Context) -> bytes:
        span = span_of(row["clip"])
        path = ctx.asset_path(row)
        spoken = "\n".join(f"{i + 1}. {marked(line)}" for i, line in enumerate(lines)) or "Nobody speaks."
        content: list[dict[str, Any]] = [
            {"type": "text", "text": f"{PROMPT}\n\nSpoken lines:\n{spoken}\n\nWhat was measured: {draft}"}
        ]
        wanted_fps = self.config.num_frames / float(span.duration)
        frames = ctx.media.frames(
            path, start=span.start, end=span.end, long_side_px=self.config.long_side_px, max_fps=wanted_fps
        )
        for image in frames.images[: self.config.num_frames]:
            content.append({"type": "image_url", "image_url": {"url": jpeg_data_url(image)}})
        if self.config.send_audio and row["probe"]["has_audio"]:
            sound = ctx.media.audio(path, rate_hz=SPEECH_RATE_HZ, mono=True).cut(span.start, span.end)
            data = base64.b64encode(wav_bytes(sound)).decode()
            content.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
        request = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
        }
        return json.dumps(request).encode()


def jpeg_data_url(image: NDArray[np.uint8], quality: int = 85) -> str:
    """RGB `image` [h, w, 3] as a data URL."""
    import cv2

    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def wav_bytes(samples: NDArray[np.float32]) -> bytes:
    """Mono `samples` at 16 kHz as a 16-bit WAV file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_RATE_HZ)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return out.getvalue()
