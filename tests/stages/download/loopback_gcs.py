"""The part of Google's storage API (JSON, version 1) that reading needs, on this machine's loopback."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/(?P<bucket>[^/]+)/o(?:/(?P<name>.+))?")


class Bucket(http.server.BaseHTTPRequestHandler):
    """Lists objects, says what is known of one, and gives its bytes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        asked, query = OBJECT.fullmatch(parts.path), {key: value[0] for key, value in parse_qs(parts.query).items()}
        if asked is None:
            self.answer(404, b"{}")
        elif asked["name"] is None:
            self.answer(200, json.dumps(self.listed(asked["bucket"], query)).encode())
        elif (name := unquote(asked["name"])) not in self.server.objects:  # type: ignore[attr-defined]
            self.answer(404, b'{"error": {"code": 404, "message": "No such object"}}')
        elif query.get("alt") == "media":
            self.body(self.server.objects[name])  # type: ignore[attr-defined]
        else:
            self.answer(200, json.dumps(self.told(asked["bucket"], name)).encode())

    def told(self, bucket: str, name: str) -> dict[str, str]:
        size = str(len(self.server.objects[name]))  # type: ignore[attr-defined]
        return {"kind": "storage#object", "name": name, "bucket": bucket, "size": size, "generation": "1",
                "updated": "2026-01-01T00:00:00Z", "timeCreated": "2026-01-01T00:00:00Z"}  # fmt: skip

    def listed(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        prefix, mark = query.get("prefix", ""), query.get("delimiter")
        names = [name for name in sorted(self.server.objects) if name.startswith(prefix)]  # type: ignore[attr-defined]
        below = {name[: name.index(mark, len(prefix)) + 1] for name in names if mark and mark in name[len(prefix) :]}
        items = [name for name in names if not (mark and mark in name[len(prefix) :])]
        return {
            "kind": "storage#objects",
            "items": [self.told(bucket, name) for name in items],
            "prefixes": sorted(below),
        }

    def body(self, content: bytes) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found is None:
            self.answer(200, content)
            return
        start, end = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
        self.answer(206, content[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(content)}"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def loopback_gcs(objects: dict[str, bytes]) -> Iterator[str]:
    """The URL of a server on which every bucket holds `objects`, for STORAGE_EMULATOR_HOST."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        server.objects = objects  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
