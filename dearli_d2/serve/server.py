"""The page and its questions over HTTP, on 127.0.0.1 alone, by Python's own server.

What keeps other web pages and other machines out:

- The socket is bound to the loopback.
- The header Host must name this machine, else a name of a stranger could be made to lead here (DNS rebinding).
- The header Origin, which browsers send with every question of a script, must be the page itself.
- No path of a question is a path of a file. The page may load nothing from elsewhere (Content-Security-Policy).
"""

from __future__ import annotations

import errno
import json
import logging
import secrets
import socket
import socketserver
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ..errors import ConfigError, DearliError
from ..reporting import is_out_of_memory
from .desk import MAX_BYTES, BusyError, Desk, GoneError

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
_OWN_NAMES = ("127.0.0.1", "localhost")
_PAGE = Path(__file__).parents[1] / "assets" / "serve.html"
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_STATUS: dict[type[DearliError], HTTPStatus] = {
    BusyError: HTTPStatus.SERVICE_UNAVAILABLE,
    GoneError: HTTPStatus.GONE,
}
_DRAINED = 4 * MAX_BYTES  # of a refused body, so that the sender reads the answer


class _RefusedError(Exception):
    """A question that no page of ours asks."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """The server of a desk.

    Args:
        port: 0 = a free one.

    Raises:
        ConfigError: the port cannot be had.
    """

    daemon_threads = True
    desk: Desk

    def __init__(self, port: int) -> None:
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise ConfigError(
                f"port {port} cannot be used: {error.strerror}; choose another with --port, or 0 for a free one"
            ) from error

    def server_bind(self) -> None:
        """Binds without a look for the name of the machine, which the base class does and which may ask a name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def run(self, desk: Desk) -> None:
        """Answers until Ctrl-C."""
        self.desk = desk
        with suppress(KeyboardInterrupt):
            self.serve_forever()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that has gone is no error."""
        logger.debug("the connection of %s ended early", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30  # seconds without a byte
    server_version, sys_version = "dearli", ""

    # ------------------------------------------------------------------------------------------ questions

    def do_GET(self) -> None:
        """The page, facts about the model, or a file of the last prediction."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A picture."""
        self._answer(self._post)

    def _get(self) -> None:
        path = urlsplit(self.path).path
        if path == "/":
            nonce = secrets.token_urlsafe(16)
            page = _PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode(), nonce)
        elif path == "/model":
            self._send_json(HTTPStatus.OK, self.server.desk.facts())
        elif path == "/file":
            asked = self._arguments()
            self._send(HTTPStatus.OK, "image/png", self.server.desk.file(asked.get("key", ""), asked.get("kind", "")))
        else:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self) -> None:
        if urlsplit(self.path).path != "/predict":
            raise _RefusedError(HTTPStatus.NOT_FOUND, "there is no such page")
        asked, content = self._arguments(), self._body()
        found = self.server.desk.segment(
            asked.get("name", ""), content, asked.get("words", ""), asked.get("caption", "")
        )
        self._send_json(HTTPStatus.OK, found)

    def _arguments(self) -> dict[str, str]:
        try:
            return dict(parse_qsl(urlsplit(self.path).query, errors="strict", max_num_fields=10))
        except ValueError as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"the address cannot be read: {error}") from error

    def _body(self) -> bytes:
        length = self._length()
        if length > MAX_BYTES:
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the file has {length / 2**20:.0f} MB; this page takes up to {MAX_BYTES // 2**20}. Make it smaller, or use "
                "dearli predict",
            )
        content = self.rfile.read(length)
        if len(content) < length:
            raise ConnectionError("the sender has gone")
        return content

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdigit()):
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "a picture comes with a Content-Length")
        return int(text)

    def _check_sender(self) -> None:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        # another port is that of a tunnel (ssh -L)
        if host.partition(":")[0] not in _OWN_NAMES:
            raise _RefusedError(
                HTTPStatus.FORBIDDEN, f"this page is for this machine alone: open {self.server.url}, not {host[:100]!r}"
            )
        if origin is not None and origin != f"http://{host}":
            raise _RefusedError(HTTPStatus.FORBIDDEN, "another web page may not use this one")

    # ------------------------------------------------------------------------------------------ answers

    def _answer(self, question: Callable[[], None]) -> None:
        try:
            self._check_sender()
            question()
        except _RefusedError as error:
            self._send_json(error.status, {"error": str(error)})
            self._drain()
        except DearliError as error:
            self._send_json(_STATUS.get(type(error), HTTPStatus.BAD_REQUEST), {"error": str(error)})
        except OSError:  # the reader has gone, or sends nothing
            self.close_connection = True
        except Exception as error:
            if is_out_of_memory(error):
                message = "out of memory; use a smaller picture, or --device cpu"
            else:
                logger.exception("error of the program")
                message = f"error of the program: {type(error).__name__}: {error}"
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": message})

    def _send_json(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes, nonce: str = "") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": _POLICY.format(nonce=nonce) if nonce else "default-src 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what the base class refuses, in the form of the other errors."""
        with suppress(OSError):
            self._send_json(HTTPStatus(code), {"error": message or HTTPStatus(code).phrase})
        self.close_connection = True

    def _drain(self) -> None:
        """Reads what is left of a refused body, since a connection that ends before would hide the answer."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(2)
            left = _DRAINED
            while left > 0 and (chunk := self.rfile.read1(2**16)):
                left -= len(chunk)

    def log_message(self, format: str, *arguments: Any) -> None:
        """The console stays quiet."""
        logger.debug(format, *arguments)
