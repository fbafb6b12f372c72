"""What a model was made from, and whom it has seen, so written that a folder which is passed on names nobody."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.volumes import Volumes

N_DIGITS = 16
PARTS = ("train", "validation")
# Fewer values than this are not summarised: a mean over two people tells the age of each to the other.
MIN_TOLD = 10
N_NAMED = 5
# Each was trained from the one before it.
MOST_MODELS = 64


@dataclass(frozen=True, eq=False)
class Origin:
    """What a model was made from.

    Parameters
    ----------
    volumes : Volumes
        The scans.
    parts : DataFrame
        Index ``scan_id``, columns ``subject_id`` and ``part``.
    scans : DataFrame, optional
        Index ``scan_id``: columns ``age`` and ``sex`` are summarised where they exist.
    preparation : Mapping, optional
        Plain values that say how the scans were made; see :mod:`nilatent.training.preparation`.
    before : Seen, optional
        What the model that this one started from has seen.
    """

    volumes: Volumes
    parts: pd.DataFrame
    scans: pd.DataFrame | None = None
    preparation: Mapping[str, Any] | None = None
    before: "Seen | None" = None


@dataclass(frozen=True)
class Seen:
    """Subjects and scans that moved a model's weights or chose its epoch, as salted hashes.

    A hash keeps a name out of sight and no more: whoever can guess a name can try it.

    Parameters
    ----------
    salt : str
        Hashed with everything, another one for every model, so that two models cannot be matched by their lists.
    subjects, scans : Mapping[str, str]
        Hash to part, ``"train"`` or ``"validation"``: of the subjects' names and of the scans' values.
    before : Seen, optional
        What the model that this one started from has seen, under a salt of its own.
    """

    salt: str
    subjects: Mapping[str, str]
    scans: Mapping[str, str]
    before: "Seen | None" = None

    def knows_subject(self, subject: str, dataset: str = "") -> bool:
        """Whether a subject of this name, with or without its data set in front, was seen."""
        return any(hashed(one.salt, name) in one.subjects for one in self.chain for name in _names(subject, dataset))

    def knows_scan(self, values: npt.NDArray[np.float16]) -> bool:
        """Whether a scan with exactly these values was seen, under whatever name."""
        return any(bool(one.scans) and _hashed_values(one.salt, values) in one.scans for one in self.chain)

    @property
    def chain(self) -> "list[Seen]":
        """Itself, and what came before it."""
        return [self, *([] if self.before is None else self.before.chain)]

    def only(self, part: str) -> "Seen":
        """What was seen in one part: those who moved the weights, or those who chose the epoch."""
        kept = [{key: of for key, of in known.items() if of == part} for known in (self.subjects, self.scans)]
        return Seen(self.salt, kept[0], kept[1], None if self.before is None else self.before.only(part))

    def to_table(self) -> pd.DataFrame:
        """One row per hash: columns ``salt``, ``kind``, ``part`` and ``hash``, in an order that tells nothing."""
        rows = []
        for one in self.chain:
            known = {"subject": one.subjects, "scan": one.scans}
            rows += sorted((one.salt, kind, part, key) for kind, of in known.items() for key, part in of.items())
        return pd.DataFrame(rows, columns=["salt", "kind", "part", "hash"])

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> "Seen":
        """Read what :meth:`to_table` made; the model's own rows come first.

        Raises
        ------
        ValueError
            When a kind or part is unknown.
        """
        for column, allowed in (("kind", {"subject", "scan"}), ("part", set(PARTS))):
            unknown = sorted(set(table[column]) - allowed)
            if unknown:
                raise ValueError(f"a row has the {column} '{unknown[0]}'")
        if table["salt"].nunique() > MOST_MODELS:
            raise ValueError(
                f"subjects.tsv speaks of {table['salt'].nunique()} models, at most {MOST_MODELS} follow one another"
            )
        seen = None
        for salt in table["salt"].unique()[::-1]:
            of_kind = {kind: table[(table["salt"] == salt) & (table["kind"] == kind)] for kind in ("subject", "scan")}
            known = {kind: dict(zip(rows["hash"], rows["part"], strict=True)) for kind, rows in of_kind.items()}
            seen = cls(str(salt), known["subject"], known["scan"], seen)
        if seen is None:
            raise ValueError("subjects.tsv has no row")
        return seen


def seen_by(salt: str, subjects: pd.DataFrame, origin: Origin | None = None) -> Seen:
    """Hash the subjects and scans that a training used.

    Parameters
    ----------
    salt : str
        Of the model.
    subjects : DataFrame
        Columns ``subject_id`` and ``part``.
    origin : Origin, optional
        Gives the scans themselves; without it only subjects are known.
    """
    pairs = list(zip(subjects["subject_id"].astype(str), subjects["part"], strict=True))
    known = {hashed(salt, name): str(part) for name, part in pairs}
    scans: dict[str, str] = {}
    if origin is not None:
        rows = _used(origin)
        for row, scan in rows.iterrows():
            known |= {hashed(salt, name): str(scan["part"]) for name in _names(scan["subject_id"], scan["dataset"])}
            scans[_hashed_values(salt, origin.volumes.data[origin.volumes.rows([str(row)])[0]])] = str(scan["part"])
    return Seen(salt, known, scans, None if origin is None else origin.before)


def summary(origin: Origin) -> dict[str, Any]:
    """Count what a model was made from, part by part, without a name.

    Returns
    -------
    dict
        For ``train`` and ``validation``: ``n_scans``, ``n_subjects`` and ``n_datasets``; where ten or more scans have them,
        ``age_mean``, ``age_sd`` (years) and the number of scans per ``sex``.
    """
    rows, told = _used(origin), {}
    for part in PARTS:
        mine = rows[rows["part"] == part]
        told[part] = {
            "n_scans": len(mine),
            "n_subjects": int(mine["subject_id"].nunique()),
            "n_datasets": int(mine["dataset"].nunique()),
        } | ({} if origin.scans is None else _people(origin.scans.reindex(mine.index)))
    return told


def _people(scans: pd.DataFrame) -> dict[str, Any]:
    told: dict[str, Any] = {}
    age = pd.to_numeric(scans["age"], errors="coerce").dropna() if "age" in scans else pd.Series(dtype=float)
    if len(age) >= MIN_TOLD:
        told |= {"age_mean": round(float(age.mean()), 1), "age_sd": round(float(age.std()), 1)}
    sex = scans["sex"].dropna().astype(str) if "sex" in scans else pd.Series(dtype=str)
    if len(sex) >= MIN_TOLD:
        told["sex"] = {str(value): int(count) for value, count in sex.value_counts().sort_index().items()}
    return told


def recognise(seen: Seen, volumes: Volumes, subjects: "pd.Series[str]") -> tuple[npt.NDArray[np.bool_], str]:
    """Find the subjects of a cohort that a model has seen, by their names and by the values of their scans.

    Parameters
    ----------
    seen : Seen
        Of the model.
    volumes : Volumes
        The cohort's scans.
    subjects : Series
        Subject of each of them, in the order of `volumes`.

    Returns
    -------
    marks : ndarray
        (scan,) true for every scan of a subject of which the name **or** one scan is known. A later session of a known
        subject is marked, and so is a stranger who has the name of one: better too many than one too few.
    words : str
        How many, and where the two ways disagree.
    """
    names = subjects.astype(str).to_numpy()
    by_name = np.array(
        [seen.knows_subject(*pair) for pair in zip(names, volumes.scans["dataset"].astype(str), strict=True)],
        dtype=bool,
    )
    by_scan = np.array([seen.knows_scan(values) for values in volumes.data], dtype=bool)
    known = pd.DataFrame({"name": by_name, "scan": by_scan}).groupby(names).any()
    marks = known.any(axis=1).reindex(names).to_numpy(bool)
    words = [f"{int(marks.sum())} of {len(marks)} scans are of subjects the model has seen."]
    renamed, alike = known.index[known["scan"] & ~known["name"]], known.index[known["name"] & ~known["scan"]]
    if len(renamed):
        words.append(f"A scan of {_listed(renamed)} was seen under another name.")
    if len(alike) and all(one.scans for one in seen.chain):
        words.append(
            f"Of {_listed(alike)} only the name is known and none of these scans: later sessions, scans that were prepared "
            "otherwise, or other people of the same name. All count as seen."
        )
    if not all(one.scans for one in seen.chain):
        words.append(
            "The model does not say of all it has seen which scans they were: these were compared by name only."
        )
    return marks, " ".join(words)


def hashed(salt: str, name: str) -> str:
    """Hash a name with the salt, as 16 hexadecimal digits."""
    return hashlib.sha256(f"{salt}:{name}".encode()).hexdigest()[:N_DIGITS]


def _hashed_values(salt: str, values: npt.NDArray[np.float16]) -> str:
    content = np.ascontiguousarray(values, dtype="<f2").tobytes()
    return hashlib.sha256(f"{salt}:".encode() + content).hexdigest()[:N_DIGITS]


def _names(subject: str, dataset: str) -> set[str]:
    # A cohort of several data sets has their names in front of its subjects, a cohort of one has not.
    return {subject, f"{dataset}_{subject.removeprefix(f'{dataset}_')}"} if dataset else {subject}


def _used(origin: Origin) -> pd.DataFrame:
    used = origin.parts[origin.parts["part"].isin(PARTS)]
    return origin.volumes.scans.loc[used.index, ["subject_id", "dataset"]].assign(part=used["part"])


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - N_NAMED} more" if len(listed) > N_NAMED else ""
    return f"{', '.join(listed[:N_NAMED])}{more} ({len(listed)} subjects)" if len(listed) > 1 else str(listed[0])
