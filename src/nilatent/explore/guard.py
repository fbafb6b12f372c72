"""Who may ask the explorer: only a page that it served, in a browser that knows the token, under a name of this machine."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from urllib.parse import parse_qs

__all__ = ["HEADERS", "TOKEN_HEADER", "Door", "RefusedError"]

NAMES = ("127.0.0.1", "localhost")
TOKEN_BYTES = 32
TOKEN_HEADER = "X-Nilatent-Token"
DATA = "/api/"
"""Where addresses begin that tell anything of a run."""
OWN = ("same-origin", "none")
HEADERS: Mapping[str, str] = {
    # Plotly writes styles into the page; scripts come from this server alone, and nothing goes anywhere else.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self'; worker-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class RefusedError(Exception):
    """A request that is not answered.

    Parameters
    ----------
    status : HTTPStatus
        Why, as a number.
    words : str
        Why, in words that name nothing of this machine.
    """

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


@dataclass(frozen=True)
class Door:
    """Address and token of a server.

    Parameters
    ----------
    port : int
        At which it listens, on the loopback only.
    token : str
        What a request for anything of the run must know, in the header :data:`TOKEN_HEADER`.
    pass_word : str
        What opens the empty page and its scripts, in a cookie. A browser sends the cookies of one port of this machine to
        servers at all others, so it must be worth nothing there.
    """

    port: int
    token: str
    pass_word: str

    @staticmethod
    def at(port: int) -> "Door":
        """A door with a new token."""
        return Door(port, secrets.token_urlsafe(TOKEN_BYTES), secrets.token_urlsafe(TOKEN_BYTES))

    @property
    def address(self) -> str:
        """Where to begin, token included."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """The header that gives a browser the pass-word; cookies know no ports, so the name does."""
        return f"{self._cookie_name}={self.pass_word}; Path=/; HttpOnly; SameSite=Strict"

    @property
    def _cookie_name(self) -> str:
        return f"nilatent_{self.port}"

    def check(self, headers: Message, path: str, query: str) -> None:
        """Let a request in, or say why not.

        Parameters
        ----------
        headers : Message
            Of the request.
        path, query : str
            What is asked for; the token may stand in the query of the first page alone.

        Raises
        ------
        RefusedError
            When the host or the origin is foreign, or the token is missing or wrong.
        """
        hosts = [f"{name}:{self.port}" for name in NAMES]
        given = headers.get_all("Host", [])
        # A foreign name that was made to point here (DNS rebinding) shows in the Host header.
        if len(given) != 1 or given[0].lower() not in hosts:
            raise RefusedError(HTTPStatus.FORBIDDEN, "This server answers under 127.0.0.1 and localhost only.")
        origins = headers.get_all("Origin", [])
        if any(origin.lower() != f"http://{given[0].lower()}" for origin in origins):
            raise RefusedError(HTTPStatus.FORBIDDEN, "Another page asked; only the explorer's own page may.")
        is_first = path == "/" and _same(parse_qs(query).get("token", []), self.token)
        if not is_first and headers.get("Sec-Fetch-Site", "none") not in OWN:
            raise RefusedError(HTTPStatus.FORBIDDEN, "Another page asked; only the explorer's own page may.")
        if path.startswith(DATA):
            is_known = _same(headers.get_all(TOKEN_HEADER, []), self.token)
        else:
            is_known = is_first or _same(self._in_cookies(headers), self.pass_word)
        if not is_known:
            raise RefusedError(
                HTTPStatus.FORBIDDEN, "The token is missing or wrong. Open the address that nilatent explore printed."
            )

    def _in_cookies(self, headers: Message) -> list[str]:
        # By hand: the parser of the standard library stops at the first odd cookie of any other server of this machine.
        pairs = [pair.strip().partition("=") for line in headers.get_all("Cookie", []) for pair in line.split(";")]
        return [value for name, _, value in pairs if name == self._cookie_name]


def _same(given: list[str], secret: str) -> bool:
    return len(given) == 1 and secrets.compare_digest(given[0].encode(errors="replace"), secret.encode())
