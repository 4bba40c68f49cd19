"""What stands between the page and everybody else: who may ask, and what browsers may do with the answers.

On loopback anybody of this machine may read, and only the page's own scripts may write. On any other address a token made at
the start is needed for everything: it comes once in the address that is printed, and stays in a cookie.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "nava_token"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Scripts are strict. Styles may stand in elements because the waveform's library writes its own into its shadow root."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Where the page is served, and the secret of this start."""

    host: str
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can ask."""
        return self.host in LOOPBACK

    @property
    def address(self) -> str:
        """What to open in a browser, with the token where one is needed."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/" + ("" if self.is_local else f"?token={self.token}")

    def allows_host(self, header: str) -> bool:
        """Whether a Host header names this server: a name that an attacker made point here does not."""
        name = urlsplit(f"//{header}").hostname or ""
        return name in (*LOOPBACK, self.host) or (self.host in ("0.0.0.0", "::") and _is_address(name))

    def allows_token(self, given: str | None) -> bool:
        """Whether this is the secret of this start."""
        return given is not None and secrets.compare_digest(given.encode(), self.token.encode())


def _is_address(name: str) -> bool:
    """Whether a host is a number, which nobody can make point elsewhere."""
    return name.replace(".", "").isdigit() or ":" in name


class Guard:
    """ASGI middleware that turns away who may not ask, and puts `HEADERS` on every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        answer = self._refusal(scope) or self.app
        await answer(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        """What is answered instead of the page; None lets the request through."""
        headers = Headers(scope=scope)
        if not self.access.allows_host(headers.get("host", "")):
            return PlainTextResponse("This server does not go by that name.", 400)
        if not self.access.is_local and not self.access.allows_token(_cookie(headers)):
            return self._admission(scope)
        is_mark = scope["path"] == "/marks" and scope["method"] == "POST"
        if scope["method"] not in ("GET", "HEAD") and not is_mark:
            return PlainTextResponse("Only GET and HEAD are answered here.", 405)
        if is_mark and not self._is_ours(headers):
            return PlainTextResponse("Marks are taken from this page alone.", 403)
        return None

    def _is_ours(self, headers: Headers) -> bool:
        """Whether a request comes from a script of a page that was served here."""
        origin = urlsplit(headers.get("origin", ""))
        return (
            origin.scheme == "http"
            and origin.netloc == headers.get("host")
            and self.access.allows_token(headers.get("x-nava-token"))
        )

    def _admission(self, scope: Scope) -> ASGIApp:
        """Who brings the token in the address gets it as a cookie, and the address without it."""
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if not self.access.allows_token(query.pop("token", None)):
            return PlainTextResponse("Open the address that was printed where the inspector was started.", 403)
        rest = urlencode(query)
        place = "/" + scope["path"].lstrip("/")
        answer = RedirectResponse(place + (f"?{rest}" if rest else ""), 303)
        answer.set_cookie(COOKIE, self.access.token, httponly=True, samesite="strict")
        return answer


def _cookie(headers: Headers) -> str | None:
    found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    return None if found is None else found.value
