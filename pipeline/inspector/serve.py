"""Serves the inspector until it is stopped: what `nava-curate inspect` does."""

from __future__ import annotations

import socket
from collections.abc import Callable

from pipeline.inspector.guard import Access
from pipeline.inspector.session import Session
from schemas.errors import RecipeError

DEFAULT_PORT = 8470
TRIED_PORTS = 20


def bound(host: str, port: int | None) -> socket.socket:
    """A listening socket: on `port`, or where none is given on the first free one. Raises RecipeError."""
    wanted = range(DEFAULT_PORT, DEFAULT_PORT + TRIED_PORTS) if port is None else [port]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    problem: OSError | None = None
    for number in wanted:
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((host, number))
        except OSError as error:
            opened.close()
            problem = error
        else:
            opened.listen(128)
            return opened
    where = f"{host}:{wanted[0]}"
    raise RecipeError(f"nothing can be served at {where} ({problem}).", remedy="Give another --port or --host.")


def serve(session: Session, host: str, port: int | None, say: Callable[[str], None]) -> None:
    """Answers until the process is interrupted; `say` is told the address."""
    import uvicorn

    from pipeline.inspector.app import Inspector

    opened = bound(host, port)
    access = Access(host, opened.getsockname()[1])
    app = Inspector(session, access).app()
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="on")
    say(f"{session.view.run.dir.uri} is shown at {access.address}")
    say("only this machine can open it; stop it with ctrl-c" if access.is_local else "stop it with ctrl-c")
    uvicorn.Server(config).run(sockets=[opened])
