"""The server behind the page: a few addresses on this machine, each of which asks for a token.

Nothing that a request names is ever a path: pictures are known by their keys, and drawn anew as small pictures.
"""

from __future__ import annotations

import json
import math
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any, NoReturn

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pipeline.errors import ConfigError, TlpipeError
from pipeline.labelling.marks import OvertakenError
from pipeline.labelling.session import Session
from pipeline.labelling.tabs import TABS
from pipeline.pages.write import label_page
from pipeline.util import log

GRID_SIDE, SIDE = 160, 640  # pixels of pictures in a grid, and of one alone
MOST_AT_ONCE = 100  # pictures that are shown
MOST_BODY = 1_000_000  # bytes of a request
MOST_WINDOW = 40  # characters of what a window calls itself

NOT_UNDERSTOOD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)  # what strange JSON leads to
Handler = Callable[[Request], Awaitable[Response]]


class BadRequestError(Exception):
    """A request that can't be understood."""


class Desk:
    """What the server answers from: a session, or how far its preparation has come.

    Attributes:
        token: What a request must name.
        session: None until the features are there.
        doing: What is being prepared, how much of it is done, and how much there is.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self.session: Session | None = None
        self.doing: tuple[str, int, int] = ("Opening the data", 0, 0)


def application(desk: Desk, hosts: list[str]) -> Starlette:
    """The web application of a labelling.

    Args:
        desk: What it answers from.
        hosts: Names, without port, under which it may be asked.
    """
    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/state", _state),
            Route("/show", _show, methods=["POST"]),
            Route("/answer", _answer, methods=["POST"]),
            Route("/undo", _undo, methods=["POST"]),
            Route("/class", _name_class, methods=["POST"]),
            Route("/picture/{key:str}", _picture),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
            Middleware(BaseHTTPMiddleware, dispatch=_guard),
        ],
        exception_handlers={TlpipeError: _in_words, BadRequestError: _bad_request},
    )
    app.state.desk = desk
    return app


@contextmanager
def serving(app: Starlette, host: str, port: int) -> Iterator[int]:
    """Serve an application in a thread, and tell at which port.

    Raises:
        ConfigError: If the port is taken, or there is no such host.
    """
    try:
        bound = socket.create_server((host, port))
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} can't be served: {error.strerror}; give another --host, or --port 0 for any that is free"
        ) from error
    # Connections inherit it. Without it the body of an answer waits some 40 ms, until its head is acknowledged; asyncio
    # sets it only on sockets that name their protocol.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="serving", daemon=True)
    thread.start()
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=5)
        bound.close()


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _session(request: Request) -> Session:
    session = _desk(request).session
    if session is None:
        raise BadRequestError("the features are not there yet")
    return session


def _window(request: Request) -> str:
    """Which window of the page asks, by a name that it has given itself."""
    return request.headers.get("x-window", "")[:MOST_WINDOW]


@contextmanager
def _understood() -> Iterator[None]:
    """A block that reads what a request says, and does nothing else.

    Raises:
        BadRequestError: If that is something strange.
    """
    try:
        yield
    except NOT_UNDERSTOOD as error:
        raise BadRequestError(str(error)) from error


async def _page(request: Request) -> Response:
    text, policy = label_page(_desk(request).token)
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


async def _state(request: Request) -> Response:
    desk = _desk(request)
    if desk.session is None:
        what, done, total = desk.doing
        return JSONResponse({"ready": False, "doing": what, "done": done, "total": total})
    return JSONResponse({"ready": True, **await run_in_threadpool(desk.session.state, _window(request))})


async def _show(request: Request) -> Response:
    session, asked = _session(request), await _object(request)
    with _understood():
        n = max(0, min(int(asked.get("n", 1)), MOST_AT_ONCE))
        names = {name: str(asked.get(name, "")) for name in ("name", "key")}
        skip = [str(one) for one in asked.get("skip", [])]
    found = await run_in_threadpool(partial(session.show, str(asked.get("tab")), n, skip=skip, **names))
    return JSONResponse({"pictures": [asdict(one) for one in found]})


async def _answer(request: Request) -> Response:
    session, asked = _session(request), await _object(request)
    with _understood():
        answers = [(str(key), str(label)) for key, label in asked["answers"]]
        saw = {str(key): str(label) for key, label in asked.get("saw", {}).items()}
        shown = _how_shown(asked.get("shown", {}), session)
    await run_in_threadpool(partial(session.answer, answers, shown, saw=saw, window=_window(request)))
    return JSONResponse({"saved": len(answers)})


def _how_shown(told: dict[str, Any], session: Session) -> dict[str, str | float]:
    """What is kept of how pictures were shown: as it stands in each answer, nothing that is long."""
    tab, seen, probability = (told.get(name) for name in ("tab", "seen", "probability"))
    found: dict[str, str | float] = {}
    if tab in TABS:
        found["tab"] = tab
    if seen in session.classes:
        found["seen"] = seen
    if isinstance(probability, (int, float)) and 0 <= probability <= 1:
        found["probability"] = float(probability)  # of 1.0, JSON makes 1
    return found


async def _undo(request: Request) -> Response:
    found = await run_in_threadpool(_session(request).undo, _window(request))
    return JSONResponse({"pictures": [asdict(one) for one in found]})


async def _name_class(request: Request) -> Response:
    session, asked = _session(request), await _object(request)
    await run_in_threadpool(session.name_class, str(asked.get("name", "")))
    return JSONResponse({"saved": 1})


async def _picture(request: Request) -> Response:
    session, side = _session(request), request.query_params.get("side", "")
    row = session.row(request.path_params["key"])
    drawn = {str(GRID_SIDE): session.pictures.webp, str(SIDE): session.pictures.whole}.get(side)
    if row is None or drawn is None:
        return PlainTextResponse("There is no such picture", 404)
    data = await run_in_threadpool(drawn, row, int(side))
    if data is None:
        return PlainTextResponse("It can't be read any more", 404)
    return Response(data, media_type="image/webp", headers={"Cache-Control": "private, max-age=86400, immutable"})


async def _object(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        BadRequestError: If it is something else, or too long.
    """
    if request.headers.get("content-type") != "application/json":
        raise BadRequestError("its content type is not application/json")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MOST_BODY:
            raise BadRequestError("it is too long")
    found = None
    with _understood(), suppress(RecursionError):
        found = json.loads(data, parse_constant=_no_number, parse_float=_finite)
    if not isinstance(found, dict):
        raise BadRequestError("it is no JSON object")
    return found


async def _guard(request: Request, call: Handler) -> Response:
    """Let in who knows the token and comes from the page itself, and tell browsers to guess nothing."""
    token = request.headers.get("x-token") or request.query_params.get("token", "")
    origin = request.headers.get("origin")
    own = f"{request.url.scheme}://{request.headers.get('host', '')}"
    if not secrets.compare_digest(token.encode(), _desk(request).token.encode()) or origin not in (None, own):
        response: Response = PlainTextResponse("Open the address that tlpipe label has printed.", 403)
    else:
        try:
            response = await call(request)
        except Exception:
            log.exception("%s can't be answered", request.url.path)
            response = JSONResponse({"error": "tlpipe label has failed; its terminal tells how"}, 500)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


async def _in_words(_: Request, error: Exception) -> Response:
    overtaken = {"labels": error.labels} if isinstance(error, OvertakenError) else {}
    return JSONResponse({"error": str(error), **overtaken}, 409)


async def _bad_request(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"The request can't be understood: {error}"}, 400)
