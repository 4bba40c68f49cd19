"""An S3 server on this machine's loopback that fails by a seeded plan: refused requests, cut bodies, lost answers.

moto answers, in a process of its own (`python -m tests.pipeline.flaky_store`); what stands before it decides by a request's
method, key and range what goes wrong, and how often in a row, so that whoever asks again gets through.
"""

from __future__ import annotations

import json
import logging
import random
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import Any
from urllib.request import urlopen

BUCKET, KEY_ID = "bucket", "loopback"
REFUSED, DENIED, CUT, LOST = "refused", "denied", "cut", "lost"
"""Not carried out, answered by 503 or 403; carried out, and half of the answer's body sent, or nothing."""
MOST_IN_A_ROW = 2
"""Faults on one request. botocore and object_store, which all clients here are made of, ask more often."""
RANDOM_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
COMMIT = re.compile(r"PUT /.*/_delta_log/\d+\.json")
CONTROL = "/~control"
ANSWERS = {REFUSED: ("503 Service Unavailable", "SlowDown"), DENIED: ("403 Forbidden", "AccessDenied")}


@dataclass(frozen=True)
class Faults:
    """What goes wrong."""

    seed: int = 0
    share: float = 0.0
    """Part of the requests that fail once or twice."""
    loses: str = "$^"
    """Pattern of `METHOD /bucket/key`: the first answer to each such request is lost."""
    denies: str = "$^"
    """Pattern of requests that the credentials do not allow."""


@dataclass
class Seen:
    """What happened since the faults were chosen."""

    num_requests: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    """Requests that were not signed with the key of the environment."""
    blind_commits: list[str] = field(default_factory=list)
    """Commits of Delta logs that were put without the condition that nobody else has."""


class FlakyApp:
    """A WSGI application that hands requests on to `app`, or fails them."""

    def __init__(self, app: Callable[[dict[str, Any], Any], Iterable[bytes]]) -> None:
        self._app = app
        self._chosen, self._seen, self._asked = Faults(), Seen(), Counter[str]()
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        with self._lock:
            if environ["PATH_INFO"] == CONTROL:
                return self._control(body, start_response)
            fault = self._fault(environ)
            if fault in ANSWERS:
                status, code = ANSWERS[fault]
                start_response(status, [("Content-Type", "application/xml")])
                said = f"<Error><Code>{code}</Code><Message>not this time</Message></Error>".encode()
                return [] if environ["REQUEST_METHOD"] == "HEAD" else [said]
            heads: list[Any] = []
            request = environ | {"wsgi.input": BytesIO(body)}
            answer = b"".join(self._app(request, lambda *head: heads.append(head[:2])))
        if fault == LOST:
            raise _hung_up(environ)
        start_response(*heads[0])
        return _half(answer, environ) if fault == CUT else [answer]

    def _control(self, body: bytes, start_response: Any) -> Iterable[bytes]:
        """What was seen; with a body also begins anew with the faults that it names."""
        told = json.dumps(asdict(self._seen)).encode()
        if body:
            self._chosen, self._seen, self._asked = Faults(**json.loads(body)), Seen(), Counter[str]()
        start_response("200 OK", [])
        return [told]

    def _fault(self, environ: dict[str, Any]) -> str | None:
        """What happens to this request: the n-th of its name, query and range has the n-th fault that was drawn for it."""
        name = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        asked = f"{name} {environ['QUERY_STRING']} {environ.get('HTTP_RANGE', '')}"
        draw = random.Random(f"{self._chosen.seed} {RANDOM_NAME.sub('', asked)}")
        num_planned = draw.randint(1, MOST_IN_A_ROW) if draw.random() < self._chosen.share else 0
        kinds = (REFUSED, LOST, CUT) if name.startswith("GET") else (REFUSED, LOST)
        planned = [draw.choice(kinds) for _ in range(num_planned)]
        if re.fullmatch(self._chosen.loses, name):
            planned = [LOST]
        if re.fullmatch(self._chosen.denies, name):
            return DENIED
        at = self._asked[asked]
        self._asked[asked] += 1
        self._seen.num_requests += 1
        if f"Credential={KEY_ID}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            self._seen.strangers.append(asked)
        if COMMIT.fullmatch(name) and environ.get("HTTP_IF_NONE_MATCH") != "*":
            self._seen.blind_commits.append(name)
        if at >= len(planned):
            return None
        self._seen.faults[planned[at]] = self._seen.faults.get(planned[at], 0) + 1
        return planned[at]


def _half(answer: bytes, environ: dict[str, Any]) -> Iterator[bytes]:
    yield answer[: len(answer) // 2]
    raise _hung_up(environ)


def _hung_up(environ: dict[str, Any]) -> ConnectionError:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return ConnectionAbortedError()


class FlakyStore:
    """The server as tests see it."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self._url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def seen(self) -> Seen:
        """What happened since the faults were chosen."""
        with urlopen(self._url + CONTROL) as answer:
            return Seen(**json.load(answer))

    def choose(self, faults: Faults) -> Seen:
        """Fails as `faults` say from here on; what happened before."""
        with urlopen(self._url + CONTROL, json.dumps(asdict(faults)).encode()) as answer:
            return Seen(**json.load(answer))


@contextmanager
def flaky_store() -> Iterator[FlakyStore]:
    """A server of its own, with an empty bucket, that behaves until told otherwise."""
    process = subprocess.Popen([sys.executable, "-m", "tests.pipeline.flaky_store"], stdout=subprocess.PIPE, text=True)
    try:
        yield FlakyStore(int(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


def serve() -> None:
    """Prints the port and answers until it is killed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, FlakyApp(app), threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()
