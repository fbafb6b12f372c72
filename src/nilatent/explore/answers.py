"""What the explorer answers: each address a function from what was asked to bytes. Nothing is written, and no path is taken."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from http import HTTPStatus
from importlib import resources
from typing import Any

import numpy as np

from nilatent.explore.drawing import KINDS, Drawer, scan_volume
from nilatent.explore.guard import RefusedError
from nilatent.explore.nifti import nifti_bytes
from nilatent.explore.study import Explored, Slide
from nilatent.plots import style
from nilatent.plots.reconstruction import ERROR_MAP
from nilatent.report.viewer import UNITS, colours
from nilatent.travel.files import MARK, NOT_SCANS

__all__ = ["MAX_DECODED", "Answer", "Answers"]

MAX_DECODED = 500
"""Reconstructions that a mean is taken of at most: a decoder takes a tenth of a second for each."""
JSON, NIFTI = "application/json", "application/octet-stream"
FILES = {
    "/": ("explore.html", "text/html; charset=utf-8"),
    "/explore.js": ("explore.js", "text/javascript; charset=utf-8"),
    "/explore_panels.js": ("explore_panels.js", "text/javascript; charset=utf-8"),
    "/explore.css": ("explore.css", "text/css; charset=utf-8"),
    "/report.js": ("report.js", "text/javascript; charset=utf-8"),
    "/report.css": ("report.css", "text/css; charset=utf-8"),
    "/plotly.js": ("plotly-basic.min.js", "text/javascript; charset=utf-8"),
    "/niivue.js": ("niivue.umd.js", "text/javascript; charset=utf-8"),
}
Asked = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What is sent back.

    Parameters
    ----------
    body : bytes
        The content.
    kind : str
        Its media type.
    headers : Mapping[str, str]
        Further headers; numbers and words of ours only, never text from data.
    """

    body: bytes
    kind: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class Answers:
    """The addresses of an explorer.

    Parameters
    ----------
    study : Explored
        The run.
    drawer : Drawer
        Its decoder.
    """

    def __init__(self, study: Explored, drawer: Drawer) -> None:
        self._study, self._drawer = study, drawer
        self.get: Mapping[str, Callable[[Asked], Answer]] = {
            **{path: partial(_file, *what) for path, what in FILES.items()},
            "/api/study": self._overview,
            "/api/axis": self._axis,
            "/api/column": self._column,
            "/api/places": self._places,
            "/api/scan": self._scan,
        }
        self.post: Mapping[str, Callable[[Asked], Answer]] = {"/api/decode": self._decode, "/api/mean": self._mean}

    def _overview(self, asked: Asked) -> Answer:
        _only(asked)
        study, space = self._study, self._study.space
        grid, target = study.pools.volumes.grid, study.pools.config.recipe.target
        scatter = study.scatter
        known = zip(scatter["scan"], space.training.tolist(), space.unseen.tolist(), strict=True)
        return _json(
            {
                "title": ", ".join(sorted(map(str, study.pools.prepared.scans["dataset"].unique()))),
                "n_subjects": len(set(space.subjects)),
                "n_training": int(space.training.sum()),
                "spacing_mm": grid.spacing_mm,
                "shape": list(grid.shape),
                "unit": UNITS.get(target, target),
                "limits": [float(f"{one:.3g}") for one in study.limits],
                "amount_colours": colours(style.SCAN_MAP),
                # An odd number of steps has one for zero.
                "signed_colours": colours(ERROR_MAP, n_steps=33),
                "scans": [[scan, 2 if unseen else 1 if training else 0] for scan, training, unseen in known],
                "axes": [axis["label"] for axis in scatter["axes"]],
                "columns": [column["name"] for column in scatter["columns"]],
                "sliders": [_slider(one) for one in study.slides],
                "notes": _notes(study),
                "max_decoded": MAX_DECODED,
            }
        )

    def _axis(self, asked: Asked) -> Answer:
        return _json(self._study.scatter["axes"][_number(asked, len(self._study.scatter["axes"]))])

    def _column(self, asked: Asked) -> Answer:
        return _json(self._study.scatter["columns"][_number(asked, len(self._study.scatter["columns"]))])

    def _places(self, asked: Asked) -> Answer:
        _only(asked, "scan")
        return _json({"places": self._study.places(self._row(asked.get("scan")))})

    def _scan(self, asked: Asked) -> Answer:
        _only(asked, "scan", "kind", "exact")
        row, kind = self._row(asked.get("scan")), asked.get("kind", "scan")
        if row is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "No scan was named.")
        if kind not in KINDS:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"The kind is one of {', '.join(KINDS)}.")
        draw = {"reconstruction": self._drawer.reconstruction, "error": self._drawer.error}
        if kind == "scan":
            return self._volume(scan_volume(self._study, row), asked, description="prepared map (nilatent)")
        return self._volume(draw[kind](row), asked, description=f"{kind}, {MARK}")

    def _decode(self, asked: Asked) -> Answer:
        _only(asked, "scan", "moves", "show", "exact")
        row, moves, show = self._row(asked.get("scan")), asked.get("moves", {}), asked.get("show", "image")
        if show not in ("image", "change"):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "What is shown is 'image' or 'change'.")
        moved = self._drawer.moved(row, self._moves(moves, row))
        volume = moved.image if show == "image" else moved.image - moved.start
        headers = {"X-Nilatent-Beyond": ",".join(map(str, moved.beyond))}
        return self._volume(volume, asked, description=f"{show} at moved latents, {MARK}", headers=headers)

    def _mean(self, asked: Asked) -> Answer:
        _only(asked, "scans", "minus", "of", "exact")
        of = asked.get("of", "scans")
        if of not in ("scans", "reconstructions"):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "A mean is of 'scans' or of 'reconstructions'.")
        first = self._rows(asked.get("scans"), of=of)
        volume, counts = self._drawer.mean(first, of), self._counted(first)
        if asked.get("minus") is not None:
            second = self._rows(asked["minus"], of=of)
            volume, counts = volume - self._drawer.mean(second, of), f"{counts},{self._counted(second)}"
        made = "mean of scans (nilatent)" if of == "scans" else f"mean of reconstructions, {MARK}"
        return self._volume(volume, asked, description=made, headers={"X-Nilatent-Counts": counts})

    def _counted(self, rows: list[int]) -> str:
        return f"{len(rows)},{len(set(self._study.space.subjects[rows]))}"

    def _volume(
        self, volume: np.ndarray, asked: Asked, *, description: str, headers: Mapping[str, str] | None = None
    ) -> Answer:
        exact = asked.get("exact") in (True, "true")
        grid = self._study.pools.volumes.grid
        return Answer(nifti_bytes(volume, grid, description=description, exact=exact), NIFTI, headers or {})

    def _row(self, scan: object) -> int | None:
        """Number of a scan by its id; None for no scan."""
        if scan is None:
            return None
        row = self._study.rows.get(scan) if isinstance(scan, str) else None
        if row is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "There is no such scan in this run.")
        return row

    def _rows(self, scans: object, *, of: str) -> list[int]:
        if not (isinstance(scans, list) and scans):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "A mean needs a list of at least one scan.")
        if of == "reconstructions" and len(scans) > MAX_DECODED:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST,
                f"{len(scans)} reconstructions would take minutes; choose at most {MAX_DECODED} scans, or the mean of scans.",
            )
        rows = [row for scan in scans if (row := self._row(scan)) is not None]
        if len(set(rows)) != len(scans):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "A scan is named twice, or one is not a name.")
        return rows

    def _moves(self, moves: object, row: int | None) -> dict[int, float]:
        """Slider to units, each within what the slider can be pushed from where the scan is."""
        if not isinstance(moves, dict):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Moves are an object of slider to number.")
        places, found = self._study.places(row), dict[int, float]()
        for name, units in moves.items():
            number = int(name) if name.isascii() and name.isdigit() and len(name) < 6 else -1
            if not 0 <= number < len(places):
                raise RefusedError(HTTPStatus.NOT_FOUND, "There is no such slider.")
            if isinstance(units, bool) or not isinstance(units, int | float):
                raise RefusedError(HTTPStatus.BAD_REQUEST, "A slider is moved by a number.")
            one, place = self._study.slides[number], places[number]
            slack = 1e-6 * (one.high - one.low)
            # A scan may lie beyond the ends; its slider is as long as it needs. What is no number lies nowhere.
            if not min(one.low - place, 0) - slack <= units <= max(one.high - place, 0) + slack:
                raise RefusedError(
                    HTTPStatus.BAD_REQUEST, f"Slider {number} goes from {one.low:.3g} to {one.high:.3g} units."
                )
            found[number] = float(units)
        return found


def _slider(one: Slide) -> dict[str, Any]:
    direction = one.direction
    return {
        "name": direction.name,
        "kind": direction.kind,
        "unit": direction.unit,
        "low": one.low,
        "high": one.high,
        "is_place": one.is_place,
        "levels": list(direction.levels),
        "n_subjects": direction.n_subjects,
        "held": list(direction.held),
    }


def _notes(study: Explored) -> list[str]:
    """What must not be concluded from what is shown."""
    label, told = study.pools.latents.attrs.get("supervised"), study.space.told
    notes = [
        NOT_SCANS,
        "A direction of a column is a difference between people, not a cause and not a forecast; nothing is tested here, and a "
        "selection made by eye is no group of a study.",
        "Reconstructions are by the study’s own model: better of scans it was trained on than of people it has not seen.",
    ]
    if label:
        notes.append(f"The values of '{label}' shaped the latents of training scans, so they are no evidence of it.")
    if told:
        notes.append(
            f"The decoder is told {', '.join(told)} of every scan; sliders leave what it is told as it is, and the mean brain is "
            "drawn as of the average training scan."
        )
    return notes


def _only(asked: Asked, *names: str) -> None:
    if set(asked) - set(names):
        raise RefusedError(
            HTTPStatus.BAD_REQUEST, f"The question may hold {', '.join(names) or 'nothing'}, and holds more."
        )


def _number(asked: Asked, n: int) -> int:
    _only(asked, "number")
    given = str(asked.get("number", ""))
    number = int(given) if given.isascii() and given.isdigit() and len(given) < 6 else -1
    if not 0 <= number < n:
        raise RefusedError(HTTPStatus.NOT_FOUND, f"The number is a whole one from 0 to {n - 1}.")
    return number


def _json(values: Mapping[str, Any]) -> Answer:
    return Answer(json.dumps(values, allow_nan=False, separators=(",", ":")).encode())


@cache
def _text(name: str) -> bytes:
    return resources.files("nilatent").joinpath("templates", name).read_bytes()


def _file(name: str, kind: str, asked: Asked) -> Answer:
    # The token may stand in the first address, and is nobody's business here.
    _only(asked, "token")
    return Answer(_text(name), kind)
