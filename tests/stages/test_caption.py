"""Captions: every line exactly once, whoever writes; the endpoint is a real server on this machine."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import EngineError, MediaError, RecipeError
from schemas.lines import lines_in, plain_line
from schemas.spans import Hearing, SpeechSpan
from stages.base import Context
from stages.caption.openai import OpenaiConfig
from stages.caption.server import ServerConfig, Valve
from stages.caption.stage import Caption, CaptionConfig, describe
from tests.rows import clip_row, span_of_file, speech_span, struct_of


def span(text: str, speaker: str | None = "A", is_overlap: bool = False) -> SpeechSpan:
    return speech_span(text, speaker=speaker, is_overlap=is_overlap)


def row_of(spans: list[SpeechSpan], **more: Any) -> dict[str, Any]:
    return clip_row(spans=spans, **{"picture": None, "audio": None, "sync": None} | more)


def written(row: dict[str, Any], context: Any, **config: Any) -> Any:
    stage = Caption(CaptionConfig(**config))
    stage.setup(context)
    (found,) = stage.process([row])
    if isinstance(found, Exception):
        raise found
    return found


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
    known = {"engine": "template", "language": "en", "text": "Nobody speaks.", "num_lines": 0}
    assert written(row_of([]), context) == struct_of("caption", **known)


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
    """Answers with the statuses and texts of `script`, in turn, the last one for ever; keeps what it was asked.

    Nobody is answered before `gathers` were asking at once.
    """

    def __init__(self, script: list[tuple[int, str]], gathers: int = 1) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.gathers = list(script), [], gathers  # type: ignore[var-annotated]
        self.lock, self.at_once, self.most_at_once = threading.Condition(), 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def next_answer(self) -> tuple[int, str]:
        return self.script[0] if len(self.script) == 1 else self.script.pop(0)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers), body))
            status, text = self.server.next_answer()
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
            self.server.lock.notify_all()
            self.server.lock.wait_for(lambda: self.server.most_at_once >= self.server.gathers, timeout=60)
        usage = {"prompt_tokens": 1000, "completion_tokens": 100}
        answer = {"choices": [{"message": {"content": text}}], "usage": usage} if status == 200 else {"error": text}
        data = json.dumps(answer).encode()
        with self.server.lock:
            self.server.at_once -= 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(script: list[tuple[int, str]], gathers: int = 1) -> Server:
        servers.append(Server(script, gathers))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.demo.clips import ball_clip

    return ball_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", duration_s=3.0).path


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """One decoder for all that is asked."""
    lent = Context(tmp_path_factory.mktemp("scratch"))
    yield lent
    lent.media.close()


SAID = [span("Hello there."), span("Hi!", "B")]


def second_of(path: Path, worker: Context, spans: list[SpeechSpan] = SAID) -> dict[str, Any]:
    """The second second of a file as a clip with two lines."""
    probe = worker.media.probe(path)
    return clip_row(path, span_of_file(probe, 1, 2), spans, probe=probe, picture=None, audio=None, sync=None)


def config_for(server: Server, **more: Any) -> dict[str, Any]:
    return {"engine": "openai", "openai": OpenaiConfig(base_url=server.url, model="m", wait_s=0.0, **more)}


SEEN = {"picture": "A bright room.", "change": "She turns,\n he follows.", "camera": "It stands still."}
HEARD = {"speech": "A woman says <S>Hello there.<E>\nand a man <S>Hi!<E>", "sound": "A fan hums."}
GOOD = json.dumps(SEEN | HEARD)
TEXT = "A bright room. She turns, he follows. It stands still. A woman says <S>Hello there.<E> and a man <S>Hi!<E> A fan hums."


def texts_of(server: Server) -> list[str]:
    """The words of each message a server was sent."""
    return [body["messages"][0]["content"][0]["text"] for _, _, body in server.asked]


def kinds_of(server: Server) -> list[list[str]]:
    return [[part["type"] for part in body["messages"][0]["content"]] for _, _, body in server.asked]


def test_one_model_is_sent_frames_sound_and_lines_and_writes_all_fields(
    serve: Callable[..., Server], clip_file: Path, worker: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    monkeypatch.setenv("CAPTION_TEST_KEY", "secret-1")
    server = serve([(200, f"<think>{{what?}}</think>```json\n{GOOD}\n```")])
    prices = {"usd_per_million_prompt": 2.0, "usd_per_million_completion": 10.0}
    found = written(
        second_of(clip_file, worker), worker,
        **config_for(server, api_key_env="CAPTION_TEST_KEY", num_frames=3, long_side_px=128, **prices),
    )  # fmt: skip
    assert (found["engine"], found["model"], found["text"], found["num_lines"]) == ("openai", "m", TEXT, 2)
    assert (found["picture"], found["change"]) == ("A bright room.", "She turns, he follows.")
    bill = {"requests": 1, "prompt_tokens": 1000, "completion_tokens": 100, "cost_usd": 0.003}
    assert {name: found[name] for name in bill} == bill
    assert found["agreement"] is None
    assert pa.array([found], type=Caption.adds).to_pylist() == [found], "every field, and no other"
    ((path, headers, body),) = server.asked
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret-1")
    assert kinds_of(server) == [["text", "text", "image_url", "image_url", "image_url", "input_audio"]]
    schema = body["response_format"]["json_schema"]["schema"]
    assert (set(schema["required"]), schema["additionalProperties"]) == ({*SEEN, *HEARD}, False)
    parts = body["messages"][0]["content"]
    assert "1. <S>Hello there.<E>\n2. <S>Hi!<E>" in parts[0]["text"]
    assert parts[1]["text"].startswith("Pictures of 0.0, 0.")
    jpeg = base64.b64decode(parts[2]["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
    assert max(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape) == 128
    with wave.open(io.BytesIO(base64.b64decode(parts[5]["input_audio"]["data"]))) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (16000, 16000)


def test_two_models_are_asked_apart_a_third_joins_them_and_a_fourth_checks(
    serve: Callable[..., Server], clip_file: Path, worker: Context
) -> None:
    seeing, hearing = serve([(200, json.dumps(SEEN))]), serve([(200, json.dumps(HEARD))])
    fusing = serve([(200, json.dumps(SEEN | HEARD | {"sound": "A fan in view hums."}))])
    claims = [{"claim": "a bright room", "is_true": True}, {"claim": "a fan", "is_true": False}]
    checking = serve([(200, json.dumps({"claims": claims}))])
    hears, fuses, checks = (
        ServerConfig(base_url=server.url, model=name)
        for server, name in ((hearing, "h"), (fusing, "f"), (checking, "c"))
    )
    row = second_of(clip_file, worker)
    joined = written(row, worker, **config_for(seeing, num_frames=1, hearing=hears))
    assert joined["text"] == TEXT
    assert (kinds_of(seeing), kinds_of(hearing)) == ([["text", "text", "image_url"]], [["text", "input_audio"]])
    found = written(row, worker, **config_for(seeing, num_frames=1, hearing=hears, fusing=fuses, checking=checks))
    assert found["sound"] == "A fan in view hums."
    assert "She turns, he follows." in texts_of(fusing)[0]
    assert kinds_of(fusing) == [["text"]], "what was written is joined, not what was seen"
    assert found["text"] in texts_of(checking)[0]
    checked = {"check_model": "c", "num_claims": 2, "agreement": 0.5, "untrue": ["a fan"], "requests": 4}
    assert {name: found[name] for name in checked} == checked
    with pytest.raises(RecipeError, match="writes the captions too"):
        written(row, worker, **config_for(seeing, checking=ServerConfig(base_url=seeing.url, model="m")))


def test_busy_servers_and_answers_that_do_not_fit_are_asked_again(
    serve: Callable[..., Server], clip_file: Path, worker: Context
) -> None:
    lost = json.dumps(SEEN | HEARD | {"speech": "She says <S>Hello.<E>"})
    spaced = json.dumps(SEEN | HEARD | {"speech": "<S>Hello there. <E> <S>Hi!<E>"})
    script = [(503, ""), (429, ""), (200, lost), (200, "A bright room."), (200, spaced)]
    server = serve(script)
    found = written(second_of(clip_file, worker), worker, **config_for(server, tries=5))
    assert lines_in(found["text"]) == ["Hello there. ", "Hi!"]
    assert (len(server.asked), found["requests"], found["prompt_tokens"]) == (5, 5, 3000)
    assert found["cost_usd"] is None, "nobody said what tokens cost"


CHINESE = {"picture": "明亮的房间", "change": "她转身", "camera": "固定镜头", "sound": "风扇声"}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([(200, json.dumps(SEEN | HEARD | {"speech": "<S>Hi!<E> <S>Hello there.<E>"}))], "caption_spans_lost"),
        ([(200, json.dumps(SEEN | HEARD | {"sound": "<S>Hi!<E>"}))], "caption_spans_lost"),
        ([(200, json.dumps(SEEN))], "caption_not_structured"),
        ([(200, json.dumps(SEEN | HEARD | {"camera": " "}))], "caption_not_structured"),
        ([(200, json.dumps(HEARD | CHINESE))], "caption_wrong_language"),
        ([(500, "oops")], "caption_unreachable"),
        ([(401, "bad key secret-2")], "caption_refused"),
    ],
)
def test_what_goes_wrong_is_an_error_without_the_key(
    script: list[tuple[int, str]],
    reason: str,
    serve: Callable[..., Server],
    clip_file: Path,
    worker: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CAPTION_TEST_KEY", "secret-2")
    config = config_for(serve(script), api_key_env="CAPTION_TEST_KEY", tries=2, num_frames=1)
    with pytest.raises(EngineError) as caught:
        written(second_of(clip_file, worker), worker, **config)
    assert caught.value.reason == reason
    assert not re.search("secret", str(caught.value) + repr(caught.value))


def test_a_caption_in_chinese_keeps_english_lines(
    serve: Callable[..., Server], clip_file: Path, worker: Context
) -> None:
    speech = "一位女士说<S>Hello there.<E>，一位男士说<S>Hi!<E>"
    server = serve([(200, GOOD), (200, json.dumps(CHINESE | {"speech": speech}, ensure_ascii=False))])
    found = written(second_of(clip_file, worker), worker, **config_for(server, language="zh", num_frames=1))
    assert found["text"] == f"明亮的房间 她转身 固定镜头 {speech} 风扇声"
    assert (found["language"], found["requests"]) == ("zh", 2)
    assert "Write in Chinese." in texts_of(server)[0]


def test_several_clips_are_asked_about_at_once(serve: Callable[..., Server], clip_file: Path, worker: Context) -> None:
    rows = [second_of(clip_file, worker, []) for _ in range(6)]
    rows[2]["download"] |= {"path": str(clip_file.with_name("gone.mp4"))}
    quiet = json.dumps(SEEN | HEARD | {"speech": ""})
    server = serve([(429, ""), (200, quiet)], gathers=3)
    stage = Caption(CaptionConfig(**config_for(server, num_frames=1, in_flight=3)))
    stage.setup(worker)
    found = stage.process(rows)
    assert [isinstance(each, MediaError) for each in found] == [index == 2 for index in range(6)]
    assert [each["num_lines"] for each in found if not isinstance(each, MediaError)] == [0] * 5
    assert (server.most_at_once, len(server.asked)) == (3, 6)


def test_a_busy_server_is_asked_less_at_a_time() -> None:
    valve = Valve(4)

    def at_once() -> int:
        """How many of five requests are under way before any has ended."""
        under_way: list[int] = []
        ends = threading.Event()

        def one(number: int) -> None:
            with valve.request():
                under_way.append(number)
                ends.wait()

        threads = [threading.Thread(target=one, args=[number]) for number in range(5)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        found = len(under_way)
        ends.set()
        for thread in threads:
            thread.join()
        return found

    assert at_once() == 4
    valve.busy(None)
    assert at_once() == 2
    valve.good()
    valve.good()
    assert at_once() == 2, "not yet as many good ones as there are at once, of the three it is going for"
    valve.good()
    assert at_once() == 3


def test_retries_run_out_for_a_server_that_fails_most_requests(
    serve: Callable[..., Server], clip_file: Path, worker: Context
) -> None:
    server = serve([(500, "")])
    stage = Caption(CaptionConfig(**config_for(server, num_frames=1, in_flight=1, tries=11, retry_ratio=0.0)))
    stage.setup(worker)
    found = stage.process([second_of(clip_file, worker, [])] * 4)
    assert [each.reason for each in found if isinstance(each, EngineError)] == ["caption_unreachable"] * 4
    assert "used up" in str(found[3])
    assert len(server.asked) == 11 + 10 + 1 + 1, "twenty failures are paid for, and each clip is asked about once"


@pytest.mark.slow
def test_no_server_and_no_key(clip_file: Path, worker: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = {"engine": "openai", "openai": OpenaiConfig(base_url="http://127.0.0.1:9/v1", tries=2, wait_s=0.0)}
    with pytest.raises(EngineError) as caught:
        written(second_of(clip_file, worker), worker, **nobody)
    assert caught.value.reason == "caption_unreachable"
    monkeypatch.delenv("CAPTION_TEST_KEY", raising=False)
    with pytest.raises(RecipeError, match="CAPTION_TEST_KEY"):
        written(row_of([]), worker, engine="openai", openai=OpenaiConfig(api_key_env="CAPTION_TEST_KEY"))
