"""Images: which image files a folder holds, and which subject and session a name gives."""

import json
import os
import re
from pathlib import Path

ENDINGS = (".nii.gz", ".nii")
ENTITY = re.compile(r"(?:^|_)(sub|ses)-([^_]+)")


def nifti_files(folder: Path) -> list[Path]:
    """Every NIfTI file of a folder, sorted by path.

    Parameters
    ----------
    folder : Path
        Symbolic links are followed; ``sourcedata``, hidden folders and results of nilatent inside it are passed over.

    Examples
    --------
    >>> nifti_files(Path("no/such/folder"))
    []
    """
    files: list[Path] = []
    # Subjects are often symbolic links to another disk, which Path.rglob does not enter.
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        loop = here != folder and here.resolve() in {parent.resolve() for parent in here.parents}
        folders[:] = [] if loop else [name for name in folders if not name.startswith(".") and name != "sourcedata"]
        # Results may lie inside their own source: the second run must not take the first one's maps for scans.
        folders[:] = [name for name in folders if not _is_ours(here / name)]
        files += [here / name for name in names if name.endswith(ENDINGS) and not name.startswith(".")]
    return sorted(files)


def _is_ours(folder: Path) -> bool:
    """Whether :func:`nilatent.preprocess.recipe.prepare` filled the folder."""
    try:
        described = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8-sig"))
        return any(made["Name"] == "nilatent" for made in described["GeneratedBy"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def bare_label(entity: str, value: str) -> str:
    """An identifier without the prefix of its entity, and 7 for the 7.0 of a spreadsheet."""
    return re.sub(r"^(\d+)\.0+$", r"\1", re.sub(rf"^{entity}-", "", str(value).strip(), flags=re.IGNORECASE))


def bids_label(entity: str, value: str) -> str:
    """A BIDS label; empty when no letter or digit is left."""
    bare = re.sub(r"[^A-Za-z0-9]", "", bare_label(entity, value))
    return f"{entity}-{bare}" if bare else ""


def is_file(path: Path) -> bool:
    """Whether there is such a file, also for words of a table that are no path at all."""
    try:
        return path.is_file()
    except OSError:  # a cell that is too long for a file name
        return False


def how_to_fetch(path: Path) -> str:
    """What to do about a link whose file is not on this disk, as git-annex leaves it; ``""`` for anything else."""
    try:
        gone = path.is_symlink() and not path.exists()
    except OSError:  # a cell that is too long for a file name
        return ""
    return f"It is a link to a file that is not here: run `datalad get {path.name}` in its folder." if gone else ""
