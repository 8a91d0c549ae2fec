"""The page of a session: what the robot does and waits for, live, and the operator's keys. For this machine only."""

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from .session import KEYS_HEARD, Session

_HTML = Path(__file__).with_name("session.html")
_HOSTS = ["127.0.0.1", "localhost", "[::1]", "testserver"]


def make_page(session: Session, token: str) -> Starlette:
    """The page as an ASGI application; `token` is in the page, and what a key must come with.

    Other sites that a browser shows can send requests here, and cannot read the token; nor do they pass for this
    machine by a name of their own, as the host's name is checked.
    """

    async def page(_: Request) -> Response:
        html = _HTML.read_text(encoding="utf-8").replace("{{token}}", token)
        return HTMLResponse(html, headers={"Cache-Control": "no-store", "X-Frame-Options": "DENY"})

    async def state(_: Request) -> Response:
        return JSONResponse(session.state(), headers={"Cache-Control": "no-store"})

    async def view(request: Request) -> Response:
        picture = session.pictures.get(request.path_params["name"])
        if picture is None:
            return JSONResponse({"error": "there is no picture of such a view yet"}, 404)
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    async def key(request: Request) -> Response:
        if not secrets.compare_digest(request.headers.get("x-session-token", "").encode(), token.encode()):
            return JSONResponse({"error": "no token, or a wrong one; load the page again"}, 403)
        try:
            found = (await request.json())["key"]
        except (ValueError, KeyError, TypeError):
            found = None
        if found not in KEYS_HEARD:
            return JSONResponse({"error": f'expected {{"key": ...}} with one of {", ".join(KEYS_HEARD)}'}, 422)
        session.press(found)
        return Response(status_code=204)

    routes = [
        Route("/", page),
        Route("/state", state),
        Route("/view/{name}.jpg", view),
        Route("/key", key, methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)])


@contextlib.contextmanager
def served(session: Session, port: int) -> Iterator[str]:
    """While this lasts, the page is at the address returned; 0 for a port that is free."""
    app = make_page(session, secrets.token_urlsafe(16))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, name="page", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        found = server.servers[0].sockets[0].getsockname()[1] if server.started else port
        yield f"http://127.0.0.1:{found}"
    finally:
        server.should_exit = True
        thread.join(timeout=5)
