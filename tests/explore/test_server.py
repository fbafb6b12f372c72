import http.client
import json
import socket
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import quote

import numpy as np
import pytest
from tests.explore.made import HOSTILE, SHAPE, Asking, Made, make

from nilatent.explore.answers import Answers
from nilatent.explore.drawing import Drawer
from nilatent.explore.server import MAX_BODY, MAX_OPEN, Server

HEADER = 352


def values(body: bytes) -> np.ndarray:
    """(x, y, z) of an exact NIfTI file."""
    return np.frombuffer(body[HEADER:], dtype="<f4").reshape(SHAPE, order="F")


def test_volumes_come_as_they_are_drawn(made: Made, ask: Asking) -> None:
    row, slides = 6, {one.direction.name: number for number, one in enumerate(made.study.slides)}
    scan = str(made.study.space.scans[row])
    status, body, headers = ask("GET", f"/api/scan?scan={scan}&kind=reconstruction&exact=true")
    assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
    drawn = made.volume(made.decode(made.study.space.values[row]))
    assert np.allclose(values(body), drawn, atol=1e-6)
    step = 0.25 * made.study.slides[slides["z001"]].direction.step
    moves = {str(slides["z001"]): 0.25}
    _, body, headers = ask("POST", "/api/decode", {"scan": scan, "moves": moves, "show": "change", "exact": True})
    assert np.allclose(values(body), made.volume(step @ made.weights), atol=1e-6)
    assert headers["X-Nilatent-Beyond"] == ""
    first, second = ([str(one) for one in made.study.space.scans[at]] for at in (slice(0, 3), slice(3, 8)))
    _, body, headers = ask(
        "POST", "/api/mean", {"scans": first, "minus": second, "of": "reconstructions", "exact": True}
    )
    weights = np.array([1, 1, 2, 0, 0, 0, 0, 0]) / 4 - np.array([0, 0, 0, 2, 1, 1, 1, 1]) / 6
    assert np.allclose(values(body), made.volume(weights @ made.study.space.values[:8] @ made.weights), atol=1e-5)
    assert headers["X-Nilatent-Counts"] == "3,2,5,3"


def test_the_overview_names_every_scan_and_nothing_of_the_machine(made: Made, ask: Asking) -> None:
    _, body, _ = ask("GET", "/api/study")
    found = json.loads(body)
    assert [scan for scan, _ in found["scans"]] == list(made.study.space.scans)
    assert b"secret" not in body
    assert [json.loads(ask("GET", f"/api/axis?number={n}")[1])["label"] for n in range(2)] == found["axes"][:2]
    status, body, _ = ask("GET", f"/api/scan?scan={quote(HOSTILE)}&exact=true")
    assert status == 200
    row = list(made.study.pools.volumes.scans.index).index(HOSTILE)
    assert np.array_equal(values(body), made.study.pools.volumes.data[row].astype(np.float32))


def test_only_who_knows_the_token_is_answered(ask: Asking, server: Server) -> None:
    token, (name, _, pass_word) = server.door.token, ask.cookie.partition("=")
    assert len(token) >= 43
    assert token != pass_word
    for path in ("/", "/?token=wrong", f"/?token={token}&token={token}", "/?token=%C3%A9", f"/?token={pass_word}"):
        assert ask("GET", path, known=False)[0] == 403
    for path in ("/api/study", f"/api/study?token={token}", "/explore.js", "/plotly.js", "/nothing"):
        assert ask("GET", path, known=False)[0] == 403
        assert ask("GET", path, known=False, Cookie=f"{name}={token}")[0] == 403
    # What is in the cookie goes to every server of this machine: it opens the empty page and nothing of the run.
    assert ask("GET", "/explore.js", known=False, Cookie=ask.cookie)[0] == 200
    assert ask("GET", "/explore.js", known=False, Cookie=f"{name}={pass_word[:-1]}")[0] == 403
    for headers in ({}, {"X_Nilatent_Token": token[:-1]}, {"X_Nilatent_Token": pass_word}, {"X_Nilatent_Token": "é"}):
        assert ask("GET", "/api/study", known=False, Cookie=ask.cookie, **headers)[0] == 403
        assert ask("POST", "/api/decode", {}, known=False, Cookie=ask.cookie, **headers)[0] == 403
    assert ask("GET", "/api/study", known=False, X_Nilatent_Token=token)[0] == 200
    # Cookies of other servers of this machine come along, odd ones too.
    assert ask("GET", "/explore.js", known=False, Cookie=f'x="a[b]; y={{"z":1}}; {ask.cookie}')[0] == 200
    status, body, headers = ask("GET", f"/?token={token}", known=False)
    assert status == 200
    assert token.encode() not in body
    assert token not in headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict"} < set(headers["Set-Cookie"].split("; "))


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Host": "127.0.0.1.evil.example:{port}"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:{port}"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
    ids=str,
)
def test_foreign_names_and_pages_are_refused_whatever_they_know(ask: Asking, headers: dict[str, str]) -> None:
    sent = {name: value.format(port=ask.port) for name, value in headers.items()}
    assert ask("GET", "/api/study", **sent)[0] == 403
    assert ask("POST", "/api/decode", {}, **sent)[0] == 403


def test_its_own_page_is_let_in_under_both_names(ask: Asking) -> None:
    for host in (f"127.0.0.1:{ask.port}", f"localhost:{ask.port}"):
        sent = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
        assert ask("POST", "/api/decode", {}, **sent)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
        "/templates/explore.js",
        "/api/scan/../../secret",
        "/api/scan?scan=../../../../etc/passwd",
        "/api/scan?scan=/secret/place.nii.gz",
        "/api/scan?scan=%00",
        "/api/scan?scan=sub-99",
        "/api/scan?scan=",
        "/api/scan",
        "/api/axis?number=-1",
        "/api/axis?number=99999",
        "/api/axis?number=1e1",
        "/api/column?number=%D9%A1",
    ],
)
def test_nothing_else_is_found(ask: Asking, path: str) -> None:
    status, body, headers = ask("GET", path)
    assert (status, headers["Content-Type"]) == (404, "application/json")
    assert set(json.loads(body)) == {"error"}
    assert b"/" not in body


SCAN = "sub-03_ses-0"
REFUSED = [
    (b"{", 400),
    (b'{"moves": {"0": NaN}}', 400),
    (b'{"moves": {"0": Infinity}}', 400),
    (b'{"moves": {"0": 1e999}}', 400),
    (b"[" * 100_000, 400),
    (b'"text"', 400),
    (b"\xff", 400),
    ({"moves": {"0": "1"}}, 400),
    ({"moves": {"0": True}}, 400),
    ({"moves": {"0": 3.2}}, 400),
    ({"moves": {"0": -300}}, 400),
    ({"moves": {"0": 10**400}}, 400),
    ({"moves": [1, 2]}, 400),
    ({"moves": {"999": 1}}, 404),
    ({"moves": {"-1": 1}}, 404),
    ({"moves": {"²": 1}}, 404),
    ({"scan": "nobody"}, 404),
    ({"scan": ["a"]}, 404),
    ({"scan": 3}, 404),
    ({"show": "all"}, 400),
    ({"path": "/etc"}, 400),
]


@pytest.mark.parametrize(("body", "expected"), REFUSED, ids=lambda one: repr(one)[:30])
def test_a_question_that_is_wrong_is_refused_in_words(ask: Asking, body: object, expected: int) -> None:
    status, answer, _ = ask("POST", "/api/decode", body)
    assert status == expected
    assert "Traceback" not in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"scans": []}, 400),
        ({}, 400),
        ({"scans": "sub"}, 400),
        ({"scans": [SCAN, SCAN]}, 400),
        ({"scans": [SCAN, None]}, 400),
        ({"scans": [SCAN, "nobody"]}, 404),
        ({"scans": [SCAN], "minus": []}, 400),
        ({"scans": [SCAN], "of": "files"}, 400),
        ({"scans": ["x"] * 501, "of": "reconstructions"}, 400),
    ],
    ids=lambda one: repr(one)[:30],
)
def test_a_mean_of_nobody_knows_whom_is_refused(ask: Asking, body: object, expected: int) -> None:
    assert ask("POST", "/api/mean", body)[0] == expected


def test_methods_types_and_sizes(ask: Asking, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "PATCH"):
        assert ask(method, "/api/study")[0] == 405
    assert ask("POST", "/api/study", {})[0] == 405
    assert ask("GET", "/api/decode")[0] == 405
    assert ask("GET", "/api/study", {"a": 1})[0] == 400
    assert ask("GET", "/api/study?scan=a&scan=b")[0] == 400
    assert ask("GET", "/api/study?more=1")[0] == 400
    assert ask("GET", "/" + "a" * 5000)[0] == 414
    assert ask("POST", "/api/decode", b"{}", Content_Type="text/plain")[0] == 415
    assert ask("POST", "/api/decode", b"{}", Content_Type="application/x-www-form-urlencoded")[0] == 415
    assert ask("POST", "/api/decode", b" " * MAX_BODY)[0] == 400
    with socket.create_connection(("127.0.0.1", ask.port), timeout=10) as link:
        # Said to be too large: refused before a byte of it is read, and the connection ends.
        head = f"POST /api/decode HTTP/1.1\r\nHost: 127.0.0.1:{ask.port}\r\nX-Nilatent-Token: {server.door.token}\r\n"
        link.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n".encode())
        assert link.makefile("rb").read().startswith(b"HTTP/1.1 413")
    for wrong in ("Transfer-Encoding: chunked", "Content-Length: -1", "X: y", "Content-Length: 2\r\nContent-Length: 3"):
        with socket.create_connection(("127.0.0.1", ask.port), timeout=10) as link:
            link.sendall(f"{head}Content-Type: application/json\r\n{wrong}\r\n\r\n".encode())
            assert link.makefile("rb").read().startswith(b"HTTP/1.1 411")
    for nonsense in (b"nonsense\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n", b"GET /\r\n", b"\x00\xff\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", ask.port), timeout=10) as link:
            link.sendall(nonsense)
            link.shutdown(socket.SHUT_WR)
            assert b'{"error"' in link.makefile("rb").read()
    assert capsys.readouterr().err == ""


def test_a_question_that_comes_in_drops_is_ended_and_holds_up_nobody(
    ask: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_connection(("127.0.0.1", ask.port), timeout=10) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert ask("GET", "/api/study")[0] == 200
        monkeypatch.setattr("nilatent.explore.server.IDLE_SECONDS", 0.2)
        assert drip_seconds(slow, at_most=10) < 5


def drip_seconds(link: socket.socket, *, at_most: float) -> float:
    """How long a connection takes in one byte after another."""
    begin = time.monotonic()
    with suppress(OSError):
        while time.monotonic() < begin + at_most:
            link.sendall(b"x")
            time.sleep(0.01)
    return time.monotonic() - begin


def test_a_question_that_is_being_answered_may_take_its_time(ask: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nilatent.explore.server.IDLE_SECONDS", 0.1)
    monkeypatch.setattr("nilatent.explore.answers.scan_volume", lambda *_: time.sleep(0.4) or np.zeros(SHAPE))
    assert ask("GET", f"/api/scan?scan={SCAN}")[0] == 200


def test_of_too_many_connections_the_one_that_waits_longest_makes_room(ask: Asking) -> None:
    held = [socket.create_connection(("127.0.0.1", ask.port), timeout=10) for _ in range(MAX_OPEN + 1)]
    assert held[0].recv(1) == b""
    assert ask("GET", "/api/study")[0] == 200
    assert threading.active_count() < MAX_OPEN + 20
    for link in held:
        link.close()


def test_every_answer_shuts_the_browser_in(ask: Asking) -> None:
    for known in (True, False):
        headers = ask("GET", "/explore.js", known=known)[2]
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "Python" not in headers["Server"]
        assert "Access-Control-Allow-Origin" not in headers


def test_it_listens_on_this_machine_alone_and_keeps_connections(ask: Asking, server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    link = http.client.HTTPConnection("127.0.0.1", ask.port, timeout=10)
    for path, expected in (("/api/study", 200), ("/api/places", 200), ("/api/study", 200)):
        link.request("GET", path, headers={"X-Nilatent-Token": server.door.token})
        before = link.sock
        answer = link.getresponse()
        answer.read()
        assert answer.status == expected
        assert link.sock is before is not None
    link.close()


def test_two_clients_at_once_get_their_own_answers(made: Made, ask: Asking) -> None:
    number = next(number for number, one in enumerate(made.study.slides) if one.direction.name == "z002")
    barrier = threading.Barrier(2)

    def client(sign: int) -> list[bool]:
        barrier.wait()
        right = []
        for turn in range(1, 9):
            units = sign * turn / 10
            _, body, _ = ask("POST", "/api/decode", {"moves": {str(number): units}, "exact": True})
            place = made.study.usual + units * made.study.slides[number].direction.step
            right.append(np.allclose(values(body), made.volume(made.decode(place)), atol=1e-6))
        return right

    with ThreadPoolExecutor(2) as pool:
        assert all(all(right) for right in pool.map(client, (1, -1)))


def test_what_breaks_is_told_to_the_terminal_and_not_to_the_page(
    made: Made, ask: Asking, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("/secret/place.nii.gz is gone")

    monkeypatch.setattr("nilatent.explore.answers.scan_volume", broken)
    status, body, _ = ask("GET", f"/api/scan?scan={SCAN}")
    assert status == 500
    assert b"secret" not in body
    assert "/secret/place.nii.gz is gone" in capsys.readouterr().err


def test_five_thousand_scans_are_a_short_list_and_come_one_by_one(rng: np.random.Generator) -> None:
    study = make(rng, n=5000).study
    drawer = Drawer(study)
    answers = Answers(study, drawer)
    assert len(answers.get["/api/study"]({}).body) < 300_000
    assert len(answers.get["/api/axis"]({"number": "0"}).body) < 100_000
    scan = str(study.space.scans[4000])
    tracemalloc.start()
    for number in range(5):
        answers.get["/api/scan"]({"scan": str(study.space.scans[number]), "kind": "error"})
    answers.post["/api/mean"]({"scans": list(study.rows), "minus": [scan]})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    drawer.close()
    # A mean of 5000 takes what a batch takes; all of them in single precision are 66 MB.
    assert peak < 10e6


def test_every_slider_goes_to_its_ends(made: Made, ask: Asking) -> None:
    sliders = json.loads(ask("GET", "/api/study")[1])["sliders"]
    assert len(sliders) == len(made.study.slides)
    for number, slider in enumerate(sliders):
        for end in ("low", "high"):
            status, _, _ = ask("POST", "/api/decode", {"scan": None, "moves": {str(number): slider[end]}})
            assert status == 200, (slider["name"], end)
