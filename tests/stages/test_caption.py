"""Captions: every line exactly once, whoever writes; the endpoint is a real server on this machine."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import EngineError, RecipeError
from schemas.lines import lines_in, plain_line
from schemas.spans import Hearing, SpeechSpan
from stages.caption.openai import OpenaiConfig
from stages.caption.stage import Caption, CaptionConfig, describe
from tests.rows import clip_row, span_of_file, speech_span, struct_of


def span(text: str, speaker: str | None = "A", is_overlap: bool = False) -> SpeechSpan:
    return speech_span(text, speaker=speaker, is_overlap=is_overlap)


def row_of(spans: list[SpeechSpan], **more: Any) -> dict[str, Any]:
    return clip_row(spans=spans, **{"picture": None, "audio": None, "sync": None} | more)


def written(row: dict[str, Any], context: Any, **config: Any) -> Any:
    stage = Caption(CaptionConfig(**config))
    stage.setup(context)
    return stage.measure(row)


def test_a_dialogue_reads_well(context: Any) -> None:
    row = row_of(
        [span("Hello there."), span("Hi!", "B"), span("Who is it?", "B"), span("Wait", "A", True)],
        picture=struct_of("picture", brightness=0.8, motion=0.0),
        audio=struct_of("audio", loudness_lufs=-40.0),
        sync=struct_of(
            "sync",
            active=[{"span_index": 0, "status": "on_screen"}, {"span_index": 1, "status": "off_screen"}],
        ),
    )
    assert written(row, context)["text"] == (
        "A still, bright shot. Two people speak. The first speaker, on screen, says: <S>Hello there.<E> "
        "The second speaker, off screen, says: <S>Hi!<E> The second speaker goes on: <S>Who is it?<E> "
        "The first speaker says over the other voice: <S>Wait<E> The sound is quiet."
    )


def test_what_is_said_in_another_language_is_called_so(context: Any) -> None:
    spans = [replace(span(text), hearing=Hearing(language=code)) for text, code in (("Hola.", "es"), ("Hi.", "en"))]
    assert written(row_of(spans), context)["text"] == (
        "The speaker says in Spanish: <S>Hola.<E> The speaker goes on: <S>Hi.<E>"
    )


def test_nobody_speaks_and_nothing_measured(context: Any) -> None:
    assert written(row_of([]), context) == {
        "engine": "template",
        "model": None,
        "text": "Nobody speaks.",
        "num_lines": 0,
    }


@given(
    st.lists(
        st.tuples(
            st.text(max_size=20) | st.sampled_from(["<S>", "a<E>b", "<extra_id_2>"]),
            st.sampled_from([None, *"ABCDEFG"]),
        )
    )
)
def test_as_many_lines_as_spans_whatever_they_hold(drawn: list[tuple[str, str | None]]) -> None:
    spans = [span(text, speaker) for text, speaker in drawn]
    text = describe(spans, {}, [None] * len(spans))
    assert lines_in(text) == [plain_line(s.text) for s in spans]
    assert text.count("<") == 2 * len(spans)


# --- a real server ---------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Answers with the statuses and texts of `script`, in turn, the last one for ever; keeps what it was asked."""

    def __init__(self, script: list[tuple[int, str]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked = list(script), []  # type: ignore[var-annotated]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        status, text = self.server.script[0] if len(self.server.script) == 1 else self.server.script.pop(0)
        answer = {"choices": [{"message": {"content": text}}]} if status == 200 else {"error": text}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[list[tuple[int, str]]], Server]]:
    servers: list[Server] = []

    def start(script: list[tuple[int, str]]) -> Server:
        servers.append(Server(script))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.demo.clips import talking_clip

    return talking_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", duration_s=3.0).path


def second_of(path: Path, context: Any) -> dict[str, Any]:
    """The second second of a file as a clip with two lines."""
    probe = context.media.probe(path)
    said = [span("Hello there."), span("Hi!", "B")]
    return clip_row(path, span_of_file(probe, 1, 2), said, probe=probe, picture=None, audio=None, sync=None)


def config_for(server: Server, **more: Any) -> dict[str, Any]:
    address = f"http://127.0.0.1:{server.server_port}/v1"
    return {"engine": "openai", "openai": OpenaiConfig(base_url=address, model="m", wait_s=0.0, **more)}


GOOD = "A woman says <S>Hello there.<E>\nand a man <S>Hi!<E> indoors."


def test_frames_sound_and_lines_are_sent(
    serve: Callable[..., Server], clip_file: Path, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    monkeypatch.setenv("CAPTION_TEST_KEY", "secret-1")
    server = serve([(200, GOOD)])
    found = written(
        second_of(clip_file, context), context,
        **config_for(server, api_key_env="CAPTION_TEST_KEY", num_frames=3, long_side_px=128),
    )  # fmt: skip
    assert found == {"engine": "openai", "model": "m", "text": " ".join(GOOD.split()), "num_lines": 2}
    ((path, headers, body),) = server.asked
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret-1")
    parts = body["messages"][0]["content"]
    kinds = [part["type"] for part in parts]
    assert kinds == ["text", "image_url", "image_url", "image_url", "input_audio"]
    assert "1. <S>Hello there.<E>\n2. <S>Hi!<E>" in parts[0]["text"]
    jpeg = base64.b64decode(parts[1]["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
    assert max(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape) == 128
    with wave.open(io.BytesIO(base64.b64decode(parts[4]["input_audio"]["data"]))) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (16000, 16000)
    context.media.close()


def test_busy_servers_and_lost_lines_are_tried_again(
    serve: Callable[..., Server], clip_file: Path, context: Any
) -> None:
    server = serve([(503, ""), (429, ""), (200, "She says <S>Hello.<E>"), (200, "<S>Hello there. <E> <S>Hi!<E>")])
    found = written(second_of(clip_file, context), context, **config_for(server))
    assert lines_in(found["text"]) == ["Hello there. ", "Hi!"]
    assert len(server.asked) == 4
    context.media.close()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([(200, "<S>Hi!<E> <S>Hello there.<E>")], "caption_spans_lost"),
        ([(200, GOOD + " <S>extra<E>")], "caption_spans_lost"),
        ([(500, "oops")], "caption_unreachable"),
        ([(401, "bad key secret-2")], "caption_refused"),
    ],
)
def test_what_goes_wrong_is_an_error_without_the_key(
    script: list[tuple[int, str]],
    reason: str,
    serve: Callable[..., Server],
    clip_file: Path,
    context: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CAPTION_TEST_KEY", "secret-2")
    config = config_for(serve(script), api_key_env="CAPTION_TEST_KEY", tries=2)
    with pytest.raises(EngineError) as caught:
        written(second_of(clip_file, context), context, **config)
    assert caught.value.reason == reason
    assert not re.search("secret", str(caught.value) + repr(caught.value))
    context.media.close()


def test_no_server_and_no_key(clip_file: Path, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = {"engine": "openai", "openai": OpenaiConfig(base_url="http://127.0.0.1:9/v1", tries=2, wait_s=0.0)}
    with pytest.raises(EngineError) as caught:
        written(second_of(clip_file, context), context, **nobody)
    assert caught.value.reason == "caption_unreachable"
    monkeypatch.delenv("CAPTION_TEST_KEY", raising=False)
    with pytest.raises(RecipeError, match="CAPTION_TEST_KEY"):
        written(row_of([]), context, engine="openai", openai=OpenaiConfig(api_key_env="CAPTION_TEST_KEY"))
    context.media.close()
