"""Captions from a model behind an OpenAI-compatible endpoint: pictures, sound and transcript go in, a structured caption comes
out, of one model that sees and hears or of two whose answers are joined, and a third may hold it against the clip.
"""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import BoundedSemaphore
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.errors import ItemError, RecipeError
from schemas.lines import LINE_END, LINE_START, marked, plain_line
from schemas.records import Row, span_of
from schemas.spans import SPEECH_RATE_HZ, SpeechSpan
from stages.base import Context
from stages.caption.forms import (
    AnswerForm,
    CaptionCheck,
    SightCaption,
    SoundCaption,
    StructuredCaption,
    check_language,
    check_lines,
    read_answer,
)
from stages.caption.server import ChatServer, ServerConfig, TokenBill

A = TypeVar("A", bound=AnswerForm)
Part = dict[str, Any]
DESCRIBE = (
    "Describe this clip for training a video-and-sound generator: densely, concretely, only what is seen and heard, without "
    "opinions and without saying that it is a clip."
)
FUSE = "One model saw this clip and another heard it. Make one caption of what both wrote, and add nothing."
CHECK = (
    "Somebody wrote the caption below of this clip. Take it apart into claims that can be seen or heard, and say of each "
    "whether pictures and sound show it. Leave out what stands between "
    f"{LINE_START} and {LINE_END}."
)
RULES = (
    f"Mention every spoken line exactly once, in `speech`, in this order, copied letter by letter between {LINE_START} and "
    f"{LINE_END}, and say who speaks it. Use {LINE_START} and {LINE_END} for nothing else."
)


class OpenaiConfig(ServerConfig):
    """Who is asked and what is sent. The keys of a server are those of the model that sees, and unless `hearing` names another,
    hears."""

    language: str = "en"
    """Code of the language that captions are written in, as in `clip.spans[].language`, or its name for a rarer one. Spoken lines
    stay as they are."""
    instructions: str = DESCRIBE
    """What is asked; which fields there are, and the rules for spoken lines, are added."""
    num_frames: int = Field(default=8, ge=1, le=64)
    """Frames sent, spread evenly over the clip."""
    long_side_px: int = Field(default=512, ge=64)
    """Longer side of the frames sent."""
    in_flight: int = Field(default=4, ge=1, le=64)
    """Clips of one source that a worker asks about at once; fewer while a server says that it is busy."""
    hearing: ServerConfig | None = None
    """A server of its own, with the keys of one, for what is heard: pictures go to one model, sound to the other."""
    fusing: ServerConfig | None = None
    """A server that makes one caption of what was seen and heard apart; without it the fields of both are joined as they are."""
    checking: ServerConfig | None = None
    """A server whose model, another than the one that wrote, holds each caption against its clip."""


@dataclass(frozen=True)
class CaptionJob:
    """One clip, ready to be asked about."""

    frames: Sequence[Part]
    sound: Sequence[Part]
    lines: Sequence[str]
    facts: str
    """Spoken lines and what was measured, in words."""


@dataclass
class WrittenCaption:
    """What models wrote of one clip."""

    caption: StructuredCaption
    bill: TokenBill = field(default_factory=TokenBill)
    check: CaptionCheck | None = None


class OpenaiEngine:
    """As good as the models behind it. Lines, form and script are checked here, the description by another model at best."""

    def __init__(self, config: OpenaiConfig, ctx: Context) -> None:
        """Raises RecipeError for a key that is not there, and for a checker that would judge its own words."""
        self.config, self.ctx = config, ctx
        others = (config.hearing, config.fusing)
        writers = {(each.base_url, each.model) for each in (config, *others) if each is not None}
        if config.checking is not None and (config.checking.base_url, config.checking.model) in writers:
            raise RecipeError(
                f"caption.openai.checking names {config.checking.model!r}, which writes the captions too.",
                remedy="Name another model, or leave checking out.",
            )
        self._seeing = ChatServer(config, config.in_flight)
        self._hearing, self._fusing, self._checking = (
            None if each is None else ChatServer(each, config.in_flight) for each in (*others, config.checking)
        )

    def write_all(self, jobs: Iterator[CaptionJob | ItemError]) -> list[WrittenCaption | ItemError]:
        """One caption per job, in their order; a job is taken only when there is room for another request.

        ItemErrors of single clips are among the answers, see `ChatServer.ask` and `stages.caption.forms` for their reasons.
        """
        room = BoundedSemaphore(self.config.in_flight)
        answers: list[Future[WrittenCaption] | ItemError] = []
        with ThreadPoolExecutor(self.config.in_flight) as threads:
            for job in _with(room, jobs):
                if isinstance(job, ItemError):
                    room.release()
                    answers.append(job)
                else:
                    answers.append(asked := threads.submit(self.write, job))
                    asked.add_done_callback(lambda _: room.release())
        return [_outcome(answer) for answer in answers]

    def write(self, job: CaptionJob) -> WrittenCaption:
        """The caption of one clip. Raises EngineError."""
        bill = TokenBill()
        if self._hearing is None:
            sound = job.sound if self.config.send_audio else ()
            told = self._text(self.config.instructions, job.facts, StructuredCaption)
            caption = self._asked(self._seeing, (told, *job.frames, *sound), StructuredCaption, job, bill)
        else:
            caption = self._of_two(self._hearing, job, bill)
        check = None if self._checking is None else self._checked(self._checking, caption, job, bill)
        return WrittenCaption(caption, bill, check)

    def _of_two(self, hearing: ChatServer, job: CaptionJob, bill: TokenBill) -> StructuredCaption:
        words = self.config.instructions
        seen = self._asked(
            self._seeing, (self._text(words, job.facts, SightCaption), *job.frames), SightCaption, job, bill
        )
        heard = self._asked(hearing, (self._text(words, job.facts, SoundCaption), *job.sound), SoundCaption, job, bill)
        both = seen.model_dump() | heard.model_dump()
        if self._fusing is None:
            return StructuredCaption(**both)
        facts = f"{job.facts}\n\nWhat they wrote: {json.dumps(both, ensure_ascii=False)}"
        parts = (self._text(FUSE, facts, StructuredCaption),)
        return self._asked(self._fusing, parts, StructuredCaption, job, bill)

    def _asked(self, server: ChatServer, parts: Sequence[Part], form: type[A], job: CaptionJob, bill: TokenBill) -> A:
        def read(text: str) -> A:
            caption = read_answer(text, form)
            check_lines(caption, job.lines)
            check_language(caption, self.config.language)
            return caption

        return server.ask(parts, form, read, bill)

    @staticmethod
    def _checked(server: ChatServer, caption: StructuredCaption, job: CaptionJob, bill: TokenBill) -> CaptionCheck:
        words = f"{CHECK}\n\nThe caption: {caption.text}\n\n{_fields_of(CaptionCheck)}"
        sound = job.sound if server.config.send_audio else ()
        parts = ({"type": "text", "text": words}, *job.frames, *sound)
        return server.ask(parts, CaptionCheck, lambda text: read_answer(text, CaptionCheck), bill)

    def _text(self, words: str, facts: str, form: type[AnswerForm]) -> Part:
        language = f"Write in {language_name(self.config.language)}."
        rules = [RULES] if "speech" in form.model_fields else []
        return {"type": "text", "text": "\n\n".join((words, language, _fields_of(form), *rules, facts))}

    def job_of(self, row: Row, spans: Sequence[SpeechSpan], draft: str) -> CaptionJob:
        """The parts of a message about the clip of `row`, in which `spans` are said."""
        span, path = span_of(row["clip"]), self.ctx.asset_path(row)
        wanted_fps = self.config.num_frames / float(span.duration)
        frames = self.ctx.media.frames(
            path, start=span.start, end=span.end, long_side_px=self.config.long_side_px, max_fps=wanted_fps
        )
        images = frames.images[: self.config.num_frames]
        times = ", ".join(f"{at_s - float(span.start):.1f}" for at_s in frames.times_s[: len(images)])
        sound: list[Part] = []
        if row["probe"]["has_audio"]:
            samples = self.ctx.media.audio(path, rate_hz=SPEECH_RATE_HZ, mono=True).cut(span.start, span.end)
            data = base64.b64encode(wav_bytes(samples)).decode()
            sound.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
        lines = [plain_line(each.text) for each in spans]
        spoken = "\n".join(f"{i + 1}. {marked(line)}" for i, line in enumerate(lines)) or "Nobody speaks."
        facts = f"Spoken lines:\n{spoken}\n\nWhat was measured: {draft}{'' if sound else ' There is no sound.'}"
        pictures = [{"type": "image_url", "image_url": {"url": jpeg_data_url(image)}} for image in images]
        return CaptionJob([{"type": "text", "text": f"Pictures of {times} s:"}, *pictures], sound, lines, facts)


J = TypeVar("J")


def _with(room: BoundedSemaphore, jobs: Iterator[J]) -> Iterator[J]:
    """`jobs`, each asked for once there is room."""
    while True:
        room.acquire()
        try:
            yield next(jobs)
        except StopIteration:
            room.release()
            return


def _outcome(answer: Future[WrittenCaption] | ItemError) -> WrittenCaption | ItemError:
    if isinstance(answer, ItemError):
        return answer
    try:
        return answer.result()
    except ItemError as error:
        return error


def _fields_of(form: type[AnswerForm]) -> str:
    fields = "\n".join(f"- {name}: {info.description}" for name, info in form.model_fields.items())
    return f"Answer with one JSON object of these fields and nothing else:\n{fields}"


def language_name(code: str) -> str:
    """The English name of a language; what is no code is taken for a name."""
    from whisperx.utils import LANGUAGES

    name: str = LANGUAGES.get(code, code)
    return name.title()


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
