"""The routes of the inspector: every page, its `.json` twin, and media. State is the address; `POST /marks` alone writes."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pipeline.ask.query_box import ask_sql
from pipeline.inspector import measures_view, pages
from pipeline.inspector.charts import histogram_spec
from pipeline.inspector.guard import Access, Guard
from pipeline.inspector.media import PICTURE, SOUND, Blob, MediaShelf, packed_blob
from pipeline.inspector.session import ID, RunView, Session, UnknownIdError
from pipeline.inspector.shown import FILTERS, query
from schemas.errors import LedgerError, MediaError, NavaError
from schemas.files import sha256_of
from schemas.ids import digest

HERE = Path(__file__).parent
PATIENCE_S = 0.3
"""How long a cut is waited for before the answer is that it is being made."""
POSTER_PATIENCE_S = 30.0
PAGES_AT_ONCE = 2
"""Pages whose data are being made: each holds some columns of all clips."""
MOST_CSV_ROWS = 1_000_000
LONGEST_BODY = 4_096
"""Bytes of a mark."""
Maker = Callable[[Session, RunView, Request], dict[str, Any]]
PAGES: dict[str, tuple[str, Maker]] = {
    "/": ("overview", lambda session, view, request: pages.overview(session, view)),
    "/measures": ("measures", lambda session, view, request: measures_view.measures(session, view, _given(request))),
    "/clips": ("clips", lambda session, view, request: pages.clips(session, view, _given(request))),
    "/clips/{id}": (
        "one_clip",
        lambda session, view, request: pages.one_clip(session, view, request.path_params["id"], _given(request)),
    ),
    "/sources": ("sources", lambda session, view, request: pages.sources(session, view, _given(request))),
    "/sources/{id}": (
        "one_source",
        lambda session, view, request: pages.one_source(session, view, request.path_params["id"]),
    ),
    "/shards": ("shards", lambda session, view, request: pages.shards(session, view)),
    "/shards/{name}": (
        "one_shard",
        lambda session, view, request: pages.one_shard(session, view, request.path_params["name"]),
    ),
    "/compare": ("compare", lambda session, view, request: pages.comparison(session, view, _given(request))),
    "/training": ("training", lambda session, view, request: pages.training(session, view)),
    "/query": ("query", lambda session, view, request: _asked(session, view, _given(request))),
}
"""Path -> (template, what makes its data)."""


def _given(request: Request) -> Mapping[str, str]:
    return {name: value for name, value in request.query_params.items() if name != "format"}


def _asked(session: Session, view: RunView, given: Mapping[str, str]) -> dict[str, Any]:
    """The page of the query box."""
    answer: dict[str, Any] = {**pages.head(session, view), "sql": given.get("sql", ""), "answer": None, "error": None}
    fields = [name for name in view.lists.rows.collect_schema() if not name.endswith(".hash")]
    answer["fields"] = fields
    if answer["sql"].strip():
        try:
            found = ask_sql(view.lists, answer["sql"], session.folder)
        except LedgerError as error:
            answer["error"] = str(error)
        else:
            answer["answer"] = {"columns": found.columns, "rows": found.rows, "is_cut": found.is_cut}
    return answer


class Inspector:
    """One session served: its templates, its media, and the routes over both."""

    def __init__(self, session: Session, access: Access) -> None:
        self.session, self.access = session, access
        self._pages = ThreadPoolExecutor(PAGES_AT_ONCE, thread_name_prefix="pages")
        self.shelf = MediaShelf(session.folder / "media")
        self.templates = Environment(
            loader=PackageLoader("pipeline.inspector"), autoescape=select_autoescape(default=True), trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self.templates.filters.update(FILTERS)
        self.templates.globals.update(query=query, token=access.token, version=_build())

    def app(self) -> Starlette:
        """The ASGI application."""

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            self.shelf.close()
            self._pages.shutdown(wait=False, cancel_futures=True)

        middleware = [Middleware(Guard, access=self.access)]
        handlers = {404: self._lost, NavaError: self._failed}
        return Starlette(
            routes=list(self._routes()), middleware=middleware, exception_handlers=handlers, lifespan=lifespan
        )

    def _routes(self) -> Iterable[Route | Mount]:
        for path, (template, make) in PAGES.items():
            twin = "/overview.json" if path == "/" else f"{path}.json"
            yield Route(twin, self._twin(make), methods=["GET"])
            yield Route(path, self._page(template, make), methods=["GET"])
        yield Route("/measures/recipe", self._recipe, methods=["GET"])
        yield Route("/marks", self._mark, methods=["POST"])
        yield Route("/media/{id}.{member}", self._media, methods=["GET"])
        yield Route("/posters/{id}.jpg", self._poster, methods=["GET"])
        yield Route("/peaks/{id}.json", self._peaks, methods=["GET"])
        yield Route("/words/{id}.vtt", self._words, methods=["GET"])
        yield Mount(f"/static/{_build()}", _Static(directory=HERE / "static"))

    # --- pages

    def _page(self, template: str, make: Maker) -> Callable[[Request], Any]:
        def answer(request: Request) -> Response:
            view = self.session.refresh() if template == "overview" else self.session.view
            data = make(self.session, view, request)
            if request.query_params.get("format") == "csv":
                return _as_csv(view, template, data, _given(request))
            if template == "measures":
                data["spec"] = histogram_spec()
            text = self.templates.get_template(f"{template}.html").render(page=template, **data)
            return HTMLResponse(text)

        return self._in_turn(answer)

    def _twin(self, make: Maker) -> Callable[[Request], Any]:
        def answer(request: Request) -> Response:
            view = self.session.refresh() if request.url.path == "/overview.json" else self.session.view
            text = json.dumps(make(self.session, view, request), allow_nan=False, default=str, separators=(",", ":"))
            etag = f'"{digest(text)}"'
            if request.headers.get("if-none-match") == etag:
                return Response(status_code=304, headers={"etag": etag})
            return Response(text, media_type="application/json", headers={"etag": etag, "cache-control": "no-cache"})

        return self._in_turn(answer)

    def _in_turn(self, answer: Callable[[Request], Response]) -> Callable[[Request], Any]:
        """The same on one of a few threads: each that ever held columns of all clips keeps some of their memory."""

        async def answered(request: Request) -> Response:
            return await asyncio.get_running_loop().run_in_executor(self._pages, answer, request)

        return answered

    def _recipe(self, request: Request) -> Response:
        """The recipe with the bounds asked about, to be saved and run."""
        view = self.session.view
        text = measures_view.recipe_yaml(view.run, measures_view.bounds_of(_given(request)))
        name = re.sub(r"\W+", "_", view.run.recipe.name) or "recipe"
        headers = {"content-disposition": f'attachment; filename="{name}.yaml"'}
        return PlainTextResponse(text, media_type="application/yaml", headers=headers)

    def _failed(self, request: Request, error: Exception) -> Response:
        """What the house raises on purpose: said in its words, 404 for an id that is not there."""
        status = 404 if isinstance(error, UnknownIdError) or "/shards/" in request.url.path else 400
        return self._said(request, status, error)

    def _lost(self, request: Request, error: Exception) -> Response:
        return self._said(request, 404, LedgerError("there is no such page.", remedy="Go on from the overview."))

    def _said(self, request: Request, status: int, error: Exception) -> Response:
        assert isinstance(error, NavaError)
        near = getattr(error, "near", [])
        told = {"schema": pages.SCHEMA, "error": error.message, "remedy": error.remedy, "near": near}
        if re.search(r"\.(?:json|jpg|mp4|flac|vtt)$", request.url.path):
            return JSONResponse(told, status)
        text = self.templates.get_template("error.html").render(
            page="error", status=status, **{**pages.head(self.session, self.session.view), **told}
        )
        return HTMLResponse(text, status)

    # --- marks

    async def _mark(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LONGEST_BODY:
                return JSONResponse({"schema": pages.SCHEMA, "error": "a mark is shorter than that"}, 413)
        try:
            told = json.loads(body)
            clip_id, opinion, note = str(told["clip_id"]), str(told["opinion"]), str(told.get("note", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return JSONResponse({"schema": pages.SCHEMA, "error": "expected clip_id, opinion and note"}, 400)
        await run_in_threadpool(self.session.view.clip, clip_id)
        mark = await run_in_threadpool(self.session.marks.add, clip_id, opinion, note)
        return JSONResponse({"schema": pages.SCHEMA, "clip_id": clip_id, "opinion": mark.opinion, "note": mark.note})

    # --- media

    async def _media(self, request: Request) -> Response:
        """A packed clip's bytes where they lie; of others, or `?as=measured`, a cut: 202 while it is being made."""
        clip_id, member, view = request.path_params["id"], request.path_params["member"], self.session.view
        if not ID.fullmatch(clip_id) or member not in (PICTURE, SOUND):
            raise UnknownIdError(clip_id, [])
        blob = None
        if request.query_params.get("as") != "measured":
            blob = await run_in_threadpool(packed_blob, view, clip_id, member)
        if blob is None:
            clip = await run_in_threadpool(view.clip, clip_id)
            job = self.shelf.cut(clip, member, view)
            made = await self._waited(job, PATIENCE_S)
            if isinstance(made, Response):
                return made
            blob = self.shelf.blob(made)
        return ranged(request, blob)

    async def _poster(self, request: Request) -> Response:
        view = self.session.view
        clip = await run_in_threadpool(view.clip, request.path_params["id"])
        made = await self._waited(self.shelf.poster(clip, view), POSTER_PATIENCE_S)
        return made if isinstance(made, Response) else ranged(request, self.shelf.blob(made))

    async def _peaks(self, request: Request) -> Response:
        view = self.session.view
        clip = await run_in_threadpool(view.clip, request.path_params["id"])
        made = await self._waited(self.shelf.peaks(clip, view), POSTER_PATIENCE_S)
        if isinstance(made, Response):
            return made
        return Response(
            made.read_bytes(), media_type="application/json", headers={"cache-control": "private, no-cache"}
        )

    async def _waited(self, job: Future[Path], seconds: float) -> Path | Response:
        """What a job makes, or the answer that it is at it, or why it cannot."""
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(job)), seconds)
        except TimeoutError:
            told = {"schema": pages.SCHEMA, "state": "cutting"}
            return JSONResponse(told, 202, headers={"retry-after": "1"})
        except MediaError as error:
            told = {"schema": pages.SCHEMA, "error": error.message, "reason": error.reason, "remedy": error.remedy}
            return JSONResponse(told, 404)

    def _words(self, request: Request) -> Response:
        """What is said, word by word, as WebVTT."""
        clip = self.session.view.clip(request.path_params["id"])
        lines = ["WEBVTT", ""]
        for span in clip.own["spans"] or ():
            for word in span["words"] or ():
                text = (
                    re.sub(r"[\r\n]+", " ", word["text"])
                    .replace("&", "&amp;")
                    .replace("<", "&lt;")
                    .replace(">", "&gt;")
                )
                lines += [f"{_vtt(word['start_s'])} --> {_vtt(word['end_s'])}", text, ""]
        return PlainTextResponse("\n".join(lines), media_type="text/vtt")


class _Static(StaticFiles):
    """Files of the package; their folder is named after the build, so that they may be kept."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        answer = super().file_response(*args, **kwargs)
        answer.headers["cache-control"] = "public, max-age=31536000, immutable"
        return answer


def ranged(request: Request, blob: Blob) -> Response:
    """The bytes that a single `Range` asks for: 206, or 416 beyond the end; all of them for any other request."""
    headers = {"accept-ranges": "bytes", "etag": f'"{blob.etag}"', "cache-control": "private, max-age=3600"}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    try:
        wanted = stretch(request.headers.get("range", ""), blob.num_bytes)
    except ValueError:
        return Response(status_code=416, headers={**headers, "content-range": f"bytes */{blob.num_bytes}"})
    start, end = wanted or (0, blob.num_bytes)
    status = 206 if wanted else 200
    if wanted:
        headers["content-range"] = f"bytes {start}-{end - 1}/{blob.num_bytes}"
    headers["content-length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=blob.kind)
    return StreamingResponse(blob.read(start, end), status, headers, blob.kind)


def stretch(header: str, num_bytes: int) -> tuple[int, int] | None:
    """[start, end) of a Range header; None for no, several or senseless ranges, which are passed over.

    Raises ValueError where nothing lies in it.
    """
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", header)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, last = max(0, num_bytes - int(found[2])), num_bytes - 1
    else:
        start, last = int(found[1]), int(found[2]) if found[2] else num_bytes - 1
        if found[2] and last < start:
            return None
    if start >= num_bytes:
        raise ValueError(f"{num_bytes} bytes end before {start}")
    return start, min(last + 1, num_bytes)


def _vtt(seconds: float) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"


def _as_csv(view: RunView, template: str, data: dict[str, Any], given: Mapping[str, str]) -> Response:
    """A list as CSV: all pages of clips, what a page holds of anything else."""
    if template == "clips":
        rows = pages.all_clips(view, given, MOST_CSV_ROWS)
    elif template == "query" and data["answer"]:
        rows = [dict(zip(data["answer"]["columns"], row, strict=True)) for row in data["answer"]["rows"]]
    else:
        rows = data.get("rows") or data.get("flips") or []
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    headers = {"content-disposition": f'attachment; filename="{template}.csv"'}
    return PlainTextResponse(out.getvalue(), media_type="text/csv", headers=headers)


def _build() -> str:
    """A name for the scripts and styles of this version."""
    files = sorted(path for path in (HERE / "static").rglob("*") if path.suffix in (".js", ".css"))
    return digest(*(sha256_of(path)[0] for path in files))[:8]
