"""The explorer's server: this machine only, reading only, and every refusal in a few words of JSON."""

import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from nilatent.errors import NilatentError
from nilatent.explore.answers import Answer, Answers
from nilatent.explore.guard import HEADERS, Door, RefusedError

__all__ = ["Server"]

MAX_BODY = 2**20
"""Bytes of a question: the names of thousands of scans fit, a volume does not."""
MAX_ADDRESS = 4096
IDLE_SECONDS = 60.0
"""A connection that has not asked a whole question for so long is ended, however many pieces came of it."""
MAX_OPEN = 64
"""Connections at a time; a browser opens six. Beyond them the one that has waited longest makes room."""
GONE = (BrokenPipeError, ConnectionResetError, TimeoutError)


class Server(ThreadingHTTPServer):
    """Answers on the loopback of this machine.

    Parameters
    ----------
    answers : Answers
        What is answered.
    port : int
        0 takes a free one.

    Attributes
    ----------
    door : Door
        Address and token.

    Raises
    ------
    OSError
        When the port is taken.
    """

    daemon_threads = True
    # Under another server's port a browser would send this one's cookie to it.
    allow_reuse_address = sys.platform != "win32"

    def __init__(self, answers: Answers, *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answers, self.door = answers, Door.at(self.server_address[1])
        self._waiting: dict[Any, float] = {}
        self._guard = threading.Lock()

    def waits(self, link: Any) -> None:
        """Note that a connection has nothing to be answered from now on; the last to come stands last."""
        with self._guard:
            self._waiting.pop(link, None)
            self._waiting[link] = time.monotonic()

    def is_answered(self, link: Any) -> None:
        """Note that a connection has asked a whole question, or is no more."""
        with self._guard:
            self._waiting.pop(link, None)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection in, in a thread of its own."""
        self.waits(request)
        self._end(oldest=len(self._waiting) - MAX_OPEN)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Let go of a connection."""
        self.is_answered(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End what has waited too long: a time-out of the socket begins anew with every piece that comes."""
        super().service_actions()
        self._end(oldest=0)

    def _end(self, *, oldest: int) -> None:
        with self._guard:
            late = time.monotonic() - IDLE_SECONDS
            ended = [
                link for number, (link, since) in enumerate(self._waiting.items()) if number < oldest or since < late
            ]
            for link in ended:
                del self._waiting[link]
                # Its thread reads the end of the connection, and goes.
                with suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say on the terminal what went wrong, unless it is a browser that went away."""
        if not isinstance(sys.exception(), GONE):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    # Two writes to a loopback socket would otherwise wait for one another.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answered(self.server.answers.get, self.server.answers.post, self._query)

    def do_POST(self) -> None:
        self._answered(self.server.answers.post, self.server.answers.get, self._body)

    def version_string(self) -> str:
        """Nothing of versions."""
        return "nilatent"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (named by the standard library)
        """Nothing: addresses may hold the token, and bodies the names of participants."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Refuse what the standard library could not read, in JSON too."""
        self.close_connection = True
        status = HTTPStatus(code)
        if status == HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self._refuse(RefusedError(status, "This is no question that the explorer answers."))

    def _answered(
        self,
        mine: Mapping[str, Callable[[Mapping[str, Any]], Answer]],
        others: Mapping[str, Any],
        question: Callable[[], Mapping[str, Any]],
    ) -> None:
        is_read = False
        try:
            if len(self.path) > MAX_ADDRESS:
                raise RefusedError(HTTPStatus.REQUEST_URI_TOO_LONG, "The address is too long.")
            address = self._address()
            self.server.door.check(self.headers, address.path, address.query)
            if address.path not in mine:
                known = address.path in others
                status = HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND
                raise RefusedError(status, "This address is asked otherwise." if known else "There is nothing here.")
            asked = question()
            is_read = True
            self.server.is_answered(self.connection)
            answer = mine[address.path](asked)
            cookie = {"Set-Cookie": self.server.door.cookie} if address.path == "/" else {}
            self._send(HTTPStatus.OK, answer.body, answer.kind, {**answer.headers, **cookie})
        except RefusedError as error:
            # What was not read of a refused question would be taken for the next one.
            self.close_connection = self.close_connection or not is_read
            self._refuse(error)
        except GONE:
            self.close_connection = True
        except (NilatentError, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            # What is wrong may name files of this machine: it is for its terminal, not for the page.
            traceback.print_exception(error)
            self.close_connection = True
            words = "This could not be answered; the terminal that runs nilatent explore says why."
            self._refuse(RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, words))
        finally:
            self.server.waits(self.connection)

    def _address(self) -> SplitResult:
        try:
            return urlsplit(self.path)
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The address cannot be read.") from error

    def _query(self) -> Mapping[str, Any]:
        if self.headers.get("Content-Length", "0").strip() != "0" or "Transfer-Encoding" in self.headers:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "A GET has no body.")
        try:
            found = parse_qs(urlsplit(self.path).query, keep_blank_values=True, max_num_fields=8, errors="strict")
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The query cannot be read.") from error
        if any(len(values) > 1 for values in found.values()):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The query names something twice.")
        return {name: values[0] for name, values in found.items()}

    def _body(self) -> Mapping[str, Any]:
        if "Transfer-Encoding" in self.headers:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "Say how long the question is.")
        given = self.headers.get_all("Content-Length", [])
        if len(given) != 1 or not (given[0].isascii() and given[0].isdigit()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "Say how long the question is.")
        if len(given[0]) > 12 or int(given[0]) > MAX_BODY:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A question has at most {MAX_BODY} bytes.")
        # A plain form of another page cannot send this type without asking first.
        if self.headers.get_content_type() != "application/json":
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "A question is application/json.")
        body = self.rfile.read(int(given[0]))
        try:
            asked = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The question is not JSON.") from error
        if not isinstance(asked, dict):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The question is an object.")
        return asked

    def _refuse(self, error: RefusedError) -> None:
        body = json.dumps({"error": error.words}).encode()
        try:
            self._send(error.status, body, "application/json", {})
        except GONE:
            self.close_connection = True

    def _send(self, status: HTTPStatus, body: bytes, kind: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        own = {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS, **headers}
        if self.close_connection:
            own["Connection"] = "close"
        for name, value in own.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
