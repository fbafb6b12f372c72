"""Images: which image files a folder holds, and which subject and session a name gives."""

import errno
import itertools
import json
import os
import re
import unicodedata
from collections import Counter
from contextlib import suppress
from pathlib import Path

from nilatent.errors import CohortError

ENDINGS = (".nii.gz", ".nii")
ENTITY = re.compile(r"(?:^|_)(sub|ses)-([^_]+)")
# Names of files hold at most 255 bytes on every usual disk; those of a prepared scan add some 130 to subject and session.
MAX_LABEL = 50
# More than 640 x 640 x 640 voxels of 16 bytes is no scan; a file may claim to be longer than the disk.
MAX_IMAGE_BYTES = 5 * 2**30
# Folders that link to one another can be reached over endlessly many ways.
MAX_WAYS = 64
# Spellings tried for a name with letters that can be written in two ways: six such folders.
MAX_SPELLINGS = 64
MAX_DESCRIPTION_BYTES = 2**20


def nifti_files(folder: Path, *, unlisted: list[str] | None = None) -> list[Path]:
    """Every NIfTI file of a folder, sorted by path.

    Parameters
    ----------
    folder : Path
        Symbolic links are followed; ``sourcedata``, hidden folders and results of nilatent inside it are passed over.
    unlisted : list[str], optional
        Receives a line for every folder inside it that cannot be looked into.

    Raises
    ------
    CohortError
        When links lead to one folder over more than :data:`MAX_WAYS` ways.

    Examples
    --------
    >>> nifti_files(Path("no/such/folder"))
    []
    """
    files: list[Path] = []
    ways: Counter[tuple[int, int]] = Counter()
    # The folder itself and those above it, so that a link that leads back to any of them is known.
    known = {place: _identity(place) for place in (folder, *folder.absolute().parents)} if folder.is_dir() else {}

    def note(error: OSError) -> None:
        if unlisted is not None and Path(str(error.filename)) != folder:
            unlisted.append(f"{error.filename} cannot be looked into: {error.strerror}")

    # Subjects are often symbolic links to another disk, which Path.rglob does not enter.
    for place, folders, names in os.walk(folder, followlinks=True, onerror=note):
        here = Path(place)
        own = known[here] = _identity(here)
        if here != folder and any(known.get(above) == own for above in (*here.parents, *folder.absolute().parents)):
            folders[:] = []
            continue
        ways[own] += 1
        if ways[own] > MAX_WAYS:
            raise CohortError(
                f"{here} is reached over more than {MAX_WAYS} ways through symbolic links of {folder}. Remove the links "
                "that lead back, or name the images in a table of paths."
            )
        # Results may lie inside their own source: the second run must not take the first one's maps for scans.
        passed_over = (name.startswith(".") or name == "sourcedata" or _is_ours(here / name) for name in folders)
        folders[:] = sorted(name for name, over in zip(folders, list(passed_over), strict=True) if not over)
        files += [here / name for name in names if name.lower().endswith(ENDINGS) and not name.startswith(".")]
    return sorted(files)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_ours(folder: Path) -> bool:
    """Whether :func:`nilatent.preprocess.recipe.prepare` filled the folder."""
    path = folder / "dataset_description.json"
    try:
        if path.stat().st_size > MAX_DESCRIPTION_BYTES:
            return False
        described = json.loads(path.read_text(encoding="utf-8-sig"))
        return any(made["Name"] == "nilatent" for made in described["GeneratedBy"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def stem_of(name: str) -> str:
    """A file name without the ending of an image, whatever points it has.

    Examples
    --------
    >>> stem_of("sub-01_acq-1.5T_T1w.NII.gz")
    'sub-01_acq-1.5T_T1w'
    """
    return re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)


def entities(name: str) -> dict[str, str]:
    """Subject and session as the name of a file or folder gives them, also in capitals.

    Examples
    --------
    >>> entities("SUB-01_SES-2_T1w.nii")
    {'sub': '01', 'ses': '2'}
    """
    return {entity.lower(): label for entity, label in re.findall(ENTITY.pattern, name, flags=re.IGNORECASE)}


def bare_label(entity: str, value: str) -> str:
    """An identifier without the prefix of its entity, and 7 for the 7.0 of a spreadsheet; accents in one spelling."""
    whole = unicodedata.normalize("NFC", str(value).strip())
    return re.sub(r"^(\d+)\.0+$", r"\1", re.sub(rf"^{entity}-", "", whole, flags=re.IGNORECASE))


def bids_label(entity: str, value: str) -> str:
    """A BIDS label; empty when no letter or digit is left."""
    bare = re.sub(r"[^A-Za-z0-9]", "", bare_label(entity, value))
    return f"{entity}-{bare}" if bare else ""


def is_file(path: Path) -> bool:
    """Whether there is such a file, also for words of a table that are no path at all."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a cell that is too long for a file name, or holds a zero byte
        return False


def spelled(path: Path) -> Path:
    """A path as the disk spells it.

    Parameters
    ----------
    path : Path
        May begin with ``~``, and may write letters with accents in another way than the disk: in one piece, as most
        systems do, or as letter and accent, as those of macOS do.

    Returns
    -------
    Path
        The path itself when it is there, or when no spelling of it is.
    """
    if os.path.lexists(path):
        return path
    with suppress(RuntimeError):  # ~somebody, whom the system does not know
        path = path.expanduser()
    written = [
        tuple(dict.fromkeys((part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))))
        for part in path.parts
    ]
    ways = itertools.islice(itertools.product(*written), MAX_SPELLINGS)
    return next((found for found in (Path(*parts) for parts in ways) if os.path.lexists(found)), path)


def name_fault(path: Path) -> str:
    """Why a path cannot stand in a table of ours, and what to do; ``""`` when it can."""
    text = str(path)
    if re.search(r"[\r\n]", text):
        return f"{text!r} has a line break in its name. Rename it."
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        return f"{shown} has bytes in its name that are no UTF-8. Rename it, such as with convmv."
    return ""


def how_to_fetch(path: Path) -> str:
    """What to do about a link whose file is not on this disk, as git-annex leaves it; ``""`` for anything else."""
    try:
        path.stat()
    except ValueError:  # a zero byte
        return ""
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "It is a link that leads to itself: put the file in its place."
        if os.path.islink(path):  # noqa: PTH114  (Path.is_symlink raises where a cell is too long for a file name)
            return f"It is a link to a file that is not here: run `datalad get {path.name}` in its folder."
    return ""
