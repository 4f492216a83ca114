"""A server of the S3 protocol on this machine, which can be told to be slow, to fail, and to say what it was asked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Answer = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
EXPIRED = b"<Error><Code>InvalidToken</Code><Message>The provided token is malformed or expired.</Message></Error>"


class ObjectStore:
    """The server.

    Attributes:
        url: Its address.
        asked: Method and address of each request.
        at_once: The largest number of requests that were under way at the same time.
        seconds: Time that each request takes longer.
        fails: Whether the request of a number, method and address fails, as that of a busy server does.
        refuses: Whether it is refused, as with a token that is no longer good.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._answer: Answer = DomainDispatcherApplication(create_backend_app)
        self._lock, self._under_way = threading.Lock(), 0
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.calm()
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def calm(self) -> None:
        """Forget what was asked, be quick, and fail at nothing."""
        self.asked: list[tuple[str, str]] = []
        self.at_once = 0
        self.seconds = 0.0
        self.fails: Callable[[int, str, str], bool] = lambda number, method, address: False
        self.refuses: Callable[[int, str, str], bool] = lambda number, method, address: False

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        address = environ["PATH_INFO"] + "?" + environ.get("QUERY_STRING", "")
        self.asked.append((method, address))
        with self._lock:
            self._under_way += 1
            self.at_once = max(self.at_once, self._under_way)
        time.sleep(self.seconds)
        with self._lock:
            self._under_way -= 1
        for asked, status, text in ((self.fails, "503 Slow Down", BUSY), (self.refuses, "400 Bad Request", EXPIRED)):
            if asked(len(self.asked), method, address):
                start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
                return [text]
        return self._answer(environ, start)

    def read(self) -> list[str]:
        """Addresses of the objects that were read."""
        return [address for method, address in self.asked if method == "GET" and "list-type" not in address]

    def stop(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
