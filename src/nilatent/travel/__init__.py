"""Ways through the latent space of a run, written as volumes and pictures: along a direction, between scans, to another age.

Each reads the study's own model; nothing is fitted but directions, on its training scans. A folder is filled whole or not at
all, and what is in one is never overwritten.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.counterfactual.shift import is_amount, is_number, shift
from nilatent.analysis.directions import Direction, fitted_directions
from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import SettingError
from nilatent.latents import read_latents
from nilatent.pools import Pools, open_pools
from nilatent.provenance import content_hash, plain
from nilatent.spaces import head_size, study_space
from nilatent.travel.between import between, between_notes
from nilatent.travel.expected import expected_change, expected_of
from nilatent.travel.files import Journey, is_done, side_car, write_journey

SPACES = ("model", "subject")
MIN_STEPS, MAX_STEPS = 2, 25
RANGE_SD, RANGE_GROUP = 2.0, 1.0
UNIT = re.compile(r"(\d+(?:\.\d+)?) (\S.*)")


def traverse(
    run: Path,
    out: Path,
    *,
    direction: str,
    n_steps: int = 5,
    range_units: float | None = None,
    scan: str = "",
    space: str = "model",
) -> Path:
    """Brains along a direction of the latent space.

    Parameters
    ----------
    run : Path
        Folder of the run.
    out : Path
        Receives the files of :func:`nilatent.travel.files.write_journey`.
    direction : str
        Name of a direction: ``"z003"``, ``"pc1"``, ``"age"``, ``"pls:age"``, ``"group:patient:control"``; ``"group"`` and
        ``"discriminant"`` stand for those of the first contrast.
    n_steps : int
        Images, 2 to 25, at even distances; an odd number has the unmoved one in the middle.
    range_units : float, optional
        So many units of the direction to either side, above 0. Left out: 2, and 1 for the difference of two groups.
    scan : str
        Move this scan; empty moves the mean of the training scans.
    space : str
        ``"model"``: volumes on the grid of the model; ``"subject"``: on the voxels of the moved scan's own file.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    SettingError
        When a name does not exist (the nearest is named) or a number is out of range, or `out` holds something else.
    """
    pools = open_pools(run)
    asked = _asked(
        pools, "traverse", direction=direction, n_steps=n_steps, range_units=range_units, scan=scan, space=space
    )
    if is_done(Path(out), asked):
        return Path(out)
    room = study_space(pools)
    row = _row(room, pools, scan, space=space) if scan or space == "subject" else None
    one = _direction(room, pools, direction)
    reach = _range(one) if range_units is None else float(range_units)
    if not (np.isfinite(reach) and reach > 0):
        raise SettingError(f"--range is {reach:g} units to either side; it is above 0. Usual are 1 to 3.")
    units = np.linspace(-reach, reach, n_steps)
    steps = units[:, None] * one.step
    if row is None:
        usual = room.coordinates[room.training].mean(axis=0)
        images, places = room.draw(usual + steps), usual + steps
        centre = "the mean of the training scans"
    else:
        rows = np.full(n_steps, row)
        images, places = room.moved(rows, steps, _told(room, pools, rows)), room.coordinates[row] + steps
        centre = f"scan {scan}"
    title = f"{centre[0].upper()}{centre[1:]} along {_in_words(one)}"
    beyond = _beyond(room, one.step, places)
    journey = Journey(
        title=title,
        labels=tuple(_label(number, one) for number in units),
        images=np.concatenate(list(images)),
        compared=(0, n_steps - 1),
        reference=int(np.abs(units).argmin()),
        notes=(*_seen(room, row), *_shaped(pools), *_far(beyond, n_steps), *_kind_notes(one)),
        asked=asked,
        found={
            "direction": {"name": one.name, "kind": one.kind, "unit": one.unit, "step": one.step.tolist()},
            "units": units.tolist(),
            "beyond_training": beyond.tolist(),
            "n_subjects": one.n_subjects,
        },
        scan=scan,
        expected=expected_of(room, pools, one, 2 * reach),
    )
    return write_journey(journey, pools, out)


def interpolate(run: Path, out: Path, scan_a: str, scan_b: str, *, n_steps: int = 5, space: str = "model") -> Path:
    """Brains on the straight line between two scans in the latent space, beside cross-fades.

    ``between.tsv`` holds each step against the cross-fade of the two scans voxel by voxel and against that of their
    reconstructions, which is as smooth as a drawing: how far apart they are, and how far each is from the nearest scan of
    others that the model has not seen.

    Parameters
    ----------
    run, out, n_steps, space
        As in :func:`traverse`; the subject's space is that of `scan_a`. The ends are reconstructions.
    scan_a, scan_b : str
        Where the line begins and ends.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    SettingError
        As in :func:`traverse`, and when both are one scan.
    """
    pools = open_pools(run)
    asked = _asked(pools, "interpolate", scan_a=scan_a, scan_b=scan_b, n_steps=n_steps, space=space)
    if is_done(Path(out), asked):
        return Path(out)
    if scan_a == scan_b:
        raise SettingError(f"Between {scan_a} and itself there is no way. Name two scans.")
    room = study_space(pools)
    a, b = _row(room, pools, scan_a, space=space), _row(room, pools, scan_b, space="model")
    share = np.linspace(0.0, 1.0, n_steps)
    latents = (1 - share)[:, None] * room.values[a] + share[:, None] * room.values[b]
    told = _told_between(room, pools, (a, b), share)
    images = np.concatenate(list(room.draw_latents(latents.astype(np.float64), told)))
    table = between(room, pools.volumes, images, (a, b), share)
    norms = np.linalg.norm(latents.astype(np.float64), axis=1)
    journey = Journey(
        title=f"From scan {scan_a} to scan {scan_b}",
        labels=tuple(scan_a if one == 0 else scan_b if one == 1 else f"{100 * one:.0f} % {scan_b}" for one in share),
        images=images,
        compared=(0, n_steps - 1),
        reference=0,
        notes=(*_seen(room, a), *_seen(room, b), *between_notes(room, table, norms)),
        asked=asked,
        found={"latent_norms": norms.tolist()},
        scan=scan_a,
        tables={"between": table},
    )
    return write_journey(journey, pools, out)


def counterfactual(
    run: Path, out: Path, *, scan: str, changes: Mapping[str, str], n_steps: int = 5, space: str = "model"
) -> Path:
    """A scan as the model expects it with other values of columns, such as ten years older.

    Parameters
    ----------
    run, out, space
        As in :func:`traverse`.
    scan : str
        The scan.
    changes : Mapping[str, str]
        Column to its change: ``"+10"`` adds to a number, ``"70"`` sets it, a level replaces a category.
    n_steps : int
        Images on the way, 2 to 25, the first as the scan is and the last changed in full; where the decoder is told a
        category, which has nothing between its levels, it is told the new one at every step but the first.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    SettingError
        As in :func:`traverse`, and when nothing is changed or the training scans do not carry a change.
    """
    pools = open_pools(run)
    asked = _asked(pools, "counterfactual", scan=scan, changes=dict(changes), n_steps=n_steps, space=space)
    if is_done(Path(out), asked):
        return Path(out)
    if not changes:
        raise SettingError("Nothing is to change. Say what with --change, such as --change age=+10.")
    room, scans, study = study_space(pools), pools.prepared.scans, pools.config.study
    row = _row(room, pools, scan, space=space)
    others = _held(pools)
    try:
        step, told = shift(room, scans, np.array([row]), changes, others=others, site=study.site)
    except NotComparableError as error:
        raise SettingError(f"The training scans do not carry this change: {error}. Change another column.") from error
    share = np.linspace(0.0, 1.0, n_steps)
    rows, steps = np.full(n_steps, row), share[:, None] * step
    images = np.concatenate(list(room.moved(rows, steps, _told_on_the_way(room, pools, row, told, share))))
    words = ", ".join(f"{column} {change}" for column, change in changes.items())
    journey = Journey(
        title=f"Scan {scan} with {words}",
        labels=("as it is", *(f"{100 * one:.0f} %" for one in share[1:-1]), words),
        images=images,
        compared=(0, n_steps - 1),
        reference=0,
        notes=(
            *_seen(room, row),
            *_shaped(pools),
            *_outside(room, scans, row, changes),
            "This is what the model expects from differences between people, not a forecast for this person and not a cause.",
        ),
        asked=asked,
        found={"step": step[0].tolist(), "told": list(room.told), "held": others, "shares": share.tolist()},
        scan=scan,
        expected=expected_change(room, pools, row, changes, held=others),
    )
    return write_journey(journey, pools, out)


def _asked(pools: Pools, verb: str, **given: Any) -> dict[str, Any]:
    """What is asked for, checked as far as that needs no model."""
    n_steps, space = given["n_steps"], given["space"]
    if not MIN_STEPS <= n_steps <= MAX_STEPS:
        raise SettingError(f"--n-steps is {n_steps}; it lies between {MIN_STEPS} and {MAX_STEPS}.")
    if space not in SPACES:
        raise SettingError(f"--space is '{space}'; it is one of {', '.join(SPACES)}.")
    model_hash = read_latents(pools.out).attrs["model_hash"]
    study, prepared = pools.config.study, content_hash(pools.out / "prepared" / "provenance.json")
    fitted = {
        "study": plain(study),
        "atlas": plain(pools.config.atlas),
        "held": list(head_size(pools)),
        "prepared": prepared,
    }
    return {"verb": verb, "model_hash": model_hash, "seed": pools.config.seed} | fitted | given


def _row(room: LatentSpace, pools: Pools, scan: str, *, space: str) -> int:
    """Number of a scan; in a subject's space only of one that has a way back."""
    if scan or space != "subject":
        row = int(room.scans.get_indexer(pd.Index([scan]))[0])
        if row < 0:
            raise SettingError(f"There is no scan '{scan}' in this run.{_nearest(scan, room.scans)}")
    if space == "subject":
        side_car(pools, scan)
    return row


def _nearest(name: str, known: Sequence[str] | pd.Index) -> str:
    near = get_close_matches(name, [str(one) for one in known], n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(near)}?" if near else f" There are {', '.join(map(str, known[:5]))} and so on."


def _held(pools: Pools) -> list[str]:
    """Columns that are held when another is changed: covariates and group of the study."""
    study = pools.config.study
    return [
        name for name in (*study.covariates, *head_size(pools), study.group) if name and name in pools.prepared.scans
    ]


def _direction(room: LatentSpace, pools: Pools, name: str) -> Direction:
    study, scans = pools.config.study, pools.prepared.scans
    covariates = (*study.covariates, *head_size(pools))
    found, refused = fitted_directions(
        room, scans, group=study.group, contrast=study.contrast, covariates=covariates, site=study.site
    )
    for one in found:
        if one.name == name or (name == one.kind and name in ("group", "discriminant")):
            return one
    reasons = [f"{key}: {reason}" for key, reason in refused.items() if name in (key, key.partition(":")[0])]
    if reasons:
        told = " Use `nilatent generate counterfactual`." if set(room.told) & {name, name.partition(":")[2]} else ""
        raise SettingError(f"There is no direction '{name}' here ({reasons[0].rstrip('.')}).{told}")
    raise SettingError(f"There is no direction '{name}'.{_nearest(name, [one.name for one in found])}")


def _range(one: Direction) -> float:
    return RANGE_GROUP if one.levels else RANGE_SD


def _in_words(one: Direction) -> str:
    return f"{one.name} ({one.unit})" if one.levels else one.name


def _label(number: float, one: Direction) -> str:
    """``"+20 years"`` for two units of ten years; of groups which of the two it goes towards, and how far."""
    if abs(number) < 1e-9:
        return "unmoved"
    if one.levels:
        return f"{abs(number):.3g} × towards {one.levels[0 if number > 0 else 1]}"
    counted = UNIT.fullmatch(one.unit)
    words = f"{number * float(counted[1]):+.3g} {counted[2]}" if counted else f"{number:+.3g} × ({one.unit})"
    return words.replace("-", "−", 1) if number < 0 else words


def _beyond(room: LatentSpace, step: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(step,) bool: farther along the direction than any training scan."""
    along = room.coordinates[room.training] @ step
    here = places @ step
    slack = 1e-9 * max(float(np.abs(along).max()), 1e-300)
    return np.asarray((here < along.min() - slack) | (here > along.max() + slack))


def _far(beyond: np.ndarray, n_steps: int) -> tuple[str, ...]:
    if not beyond.any():
        return ()
    return (f"{int(beyond.sum())} of {n_steps} steps lie farther along this direction than any training scan.",)


def _kind_notes(one: Direction) -> tuple[str, ...]:
    if one.kind in ("latent", "component"):
        return ("What a single latent or component stands for is read off the pictures; nothing was tested.",)
    held = f" with {', '.join(one.held)} held" if one.held else ""
    return (
        f"The direction is that in which latents of {one.n_subjects} training subjects differ with '{one.column}'{held}: a "
        "difference between people, not a cause, and not tested here.",
    )


def _seen(room: LatentSpace, row: int | None) -> tuple[str, ...]:
    if row is None or room.unseen[row]:
        return ()
    scan = room.scans[row]
    if room.training[row]:
        return (
            f"The model was trained on scan {scan}: it draws it better than it would draw someone it has not seen.",
        )
    return (f"Scan {scan} or its subject had a say in the model's training, as a validation scan or otherwise.",)


def _shaped(pools: Pools) -> tuple[str, ...]:
    label = read_latents(pools.out).attrs.get("supervised")
    return (
        (f"The values of '{label}' shaped the latents of training scans, so they are no evidence of it.",)
        if label
        else ()
    )


def _told(room: LatentSpace, pools: Pools, rows: np.ndarray) -> pd.DataFrame | None:
    return pools.prepared.scans.loc[room.scans[rows], list(room.told)] if room.told else None


def _told_between(room: LatentSpace, pools: Pools, ends: tuple[int, int], share: np.ndarray) -> pd.DataFrame | None:
    """Numbers on the straight line, categories those of the nearer end."""
    told = _told(room, pools, np.asarray(ends))
    return None if told is None else _line(told.iloc[[0]], told.iloc[[1]], share, switch=0.5)


def _told_on_the_way(
    room: LatentSpace, pools: Pools, row: int, told: pd.DataFrame | None, share: np.ndarray
) -> pd.DataFrame | None:
    now = _told(room, pools, np.array([row]))
    return None if now is None or told is None else _line(now, told, share, switch=0.0)


def _line(first: pd.DataFrame, last: pd.DataFrame, share: np.ndarray, *, switch: float) -> pd.DataFrame:
    """Rows from the first to the last; a category is the last one's at shares above `switch`."""
    columns: dict[str, Any] = {}
    for name in first:
        a, b = first[name].iloc[0], last[name].iloc[0]
        if is_number(first[name]):
            columns[str(name)] = (1 - share) * float(a) + share * float(b)
        else:
            columns[str(name)] = [b if one > switch else a for one in share]
    return pd.DataFrame(columns)


def _outside(room: LatentSpace, scans: pd.DataFrame, row: int, changes: Mapping[str, str]) -> tuple[str, ...]:
    """A note for every number that is changed to one beyond the training scans."""
    notes = []
    for column, change in changes.items():
        if not is_number(scans[column]):
            continue
        known, now = scans.loc[room.scans[room.training], column].dropna(), scans[column].to_numpy()
        value = float(change) + (float(now[scans.index.get_loc(room.scans[row])]) if is_amount(change) else 0.0)
        if not np.isfinite(value):
            notes.append(
                f"The {column} of this scan is not known, so whether the new one lies beyond the training scans is not either."
            )
        elif not known.min() <= value <= known.max():
            notes.append(
                f"{column} {value:g} lies outside the training scans ({known.min():g} to {known.max():g}): nothing supports what "
                "the model draws there."
            )
    return tuple(notes)
