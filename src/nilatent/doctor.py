"""Doctor: what is installed, what the machine has, and what to do where something is off."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from joblib import cpu_count
from packaging.requirements import Requirement

from nilatent.atlas import load_atlas
from nilatent.errors import NilatentError
from nilatent.extras import EXTRAS, absent
from nilatent.lock import locked
from nilatent.preprocess.workers import BYTES_PER_PROCESS, _free_bytes, fitting_processes
from nilatent.provenance import versions

MIN_FREE_GB = 5.0
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Check:
    """One line of the doctor: what was looked at, what was found, and the mend (empty when all is well)."""

    subject: str
    found: str
    mend: str = ""


def examine(folder: Path) -> list[Check]:
    """Look at everything a run needs.

    Parameters
    ----------
    folder : Path
        Where results would be written. It is not created; a file is written beside it and removed again.

    Returns
    -------
    list[Check]
        In the order in which trouble usually comes.
    """
    # A folder that a run is still to make lies on the disk of the nearest one that is there.
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return [
        _python(),
        *_packages(),
        *_out_of_range(),
        _torch(),
        _torchvision(),
        *_extras(),
        _atlas(),
        _cores(),
        *_threads(),
        _memory(),
        *_disks(there),
        _writable(there),
        _browser(),
    ]


def _python() -> Check:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("Python", platform.python_version(), "" if supported else "Use Python 3.11, 3.12 or 3.13.")


def _packages() -> list[Check]:
    return [Check(name, version) for name, version in versions().items() if name != "python"]


def _out_of_range() -> list[Check]:
    """Packages of any extra whose installed version is not one that nilatent asks for."""
    checks = []
    for line in importlib.metadata.requires("nilatent") or []:
        wanted = Requirement(line)
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            found = f"{version}, and nilatent asks for {wanted.specifier}"
            checks.append(Check(wanted.name, found, f"pip install '{wanted.name}{wanted.specifier}'"))
    return checks


def _torch() -> Check:
    import torch

    threads = f"{torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        named = ", ".join(f"{card.name} with {card.total_memory / 1e9:.0f} GB" for card in cards)
        return Check("devices", f"{named}; {threads}")
    if not NVIDIA.exists():
        return Check("devices", f"CPU only, {threads}")
    if torch.version.cuda is None:
        mend = (
            "This torch is built for CPUs. For the GPU, install the CUDA build that pytorch.org names for the driver."
        )
    else:
        mend = (
            f"This torch is built for CUDA {torch.version.cuda}: update the driver, and look at CUDA_VISIBLE_DEVICES."
        )
    return Check("devices", f"an NVIDIA driver, and no GPU that torch can use; {threads}", mend)


def _torchvision() -> Check:
    if importlib.util.find_spec("torchvision") is None:
        return Check("torchvision", "absent, as it should be")
    version = importlib.metadata.version("torchvision")
    return Check(
        "torchvision", version, "It can break torch's companions when its build differs: pip uninstall torchvision"
    )


def _extras() -> list[Check]:
    checks = []
    for extra in EXTRAS:
        lacking = absent(extra)
        mend = f"pip install 'nilatent[{extra}]'" if lacking else ""
        checks.append(Check(f"extra '{extra}'", f"lacks {', '.join(lacking)}" if lacking else "installed", mend))
    return checks


def _atlas() -> Check:
    try:
        return Check("AAL2 atlas", f"{len(load_atlas('aal2').table)} regions")
    except (NilatentError, OSError) as error:
        return Check("AAL2 atlas", "cannot be read", str(error))


def _cores() -> Check:
    return Check(
        "cores", f"{cpu_count()}; with the memory that is free, {fitting_processes()} scans are prepared at once"
    )


def _threads() -> list[Check]:
    checks = []
    for name in THREADS:
        if (given := os.environ.get(name)) is None:
            continue
        if not given.isdecimal() or int(given) < 1:
            checks.append(Check(name, given, f"It is no number of threads: export {name}={cpu_count()}, or unset it."))
        else:
            mend = f"More threads than cores wait for one another: export {name}={cpu_count()}, or unset it."
            checks.append(Check(name, given, mend if int(given) > cpu_count() else ""))
    return checks


def _memory() -> Check:
    free = _free_bytes()
    mend = f"Preparing a head wants {BYTES_PER_PROCESS / 1e9:.0f} GB: close other programs, or ask for more in the batch job."
    return Check("free memory", f"{free / 1e9:.1f} GB", mend if free < BYTES_PER_PROCESS else "")


def _disks(there: Path) -> list[Check]:
    checks = []
    for subject, place in (("free disk here", there), ("free temporary disk", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free / 1e9
        mend = f"Preparation wants {MIN_FREE_GB:g} GB: free some, or set TMPDIR." if free < MIN_FREE_GB else ""
        checks.append(Check(subject, f"{free:.0f} GB", mend))
    return checks


def _writable(there: Path) -> Check:
    """Whether files can be written and locked where results would go; permissions alone do not tell on every disk."""
    try:
        with tempfile.TemporaryDirectory(prefix=".nilatent-", dir=there) as place, locked(Path(place)):
            return Check("writing here", "works")
    except (NilatentError, OSError) as error:
        return Check("writing here", str(error), f"Name another folder than {there}, or mend its permissions.")


def _browser() -> Check:
    try:
        webbrowser.get()
    except webbrowser.Error:
        return Check(
            "browser", "none on this machine: reports are single files, and `nilatent explore` prints an address"
        )
    return Check("browser", "there is one for `nilatent explore`")
