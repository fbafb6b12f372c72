"""Doctor: what is installed, what the machine has, and what to do where something is off."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nilatent.atlas import load_atlas
from nilatent.errors import NilatentError
from nilatent.provenance import versions

EXTRAS = {
    "prepare": ("ants", "deepbet"),
    "embed": ("openTSNE", "umap"),
    "explain": ("shap",),
    "report": ("jinja2", "matplotlib", "plotly"),
    "search": ("optuna",),
    "cluster": ("distributed",),
}
MIN_FREE_GB = 5.0


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
        Where results would be written.

    Returns
    -------
    list[Check]
        In the order in which trouble usually comes.
    """
    return [_python(), *_packages(), _torch(), _torchvision(), *_extras(), _atlas(), _cores(), *_disks(folder)]


def _python() -> Check:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("Python", platform.python_version(), "" if supported else "Use Python 3.11, 3.12 or 3.13.")


def _packages() -> list[Check]:
    return [Check(name, version) for name, version in versions().items() if name != "python"]


def _torch() -> Check:
    import torch

    device = f"{torch.cuda.device_count()} GPU(s)" if torch.cuda.is_available() else "CPU only"
    return Check("devices", f"{device}, {torch.get_num_threads()} threads")


def _torchvision() -> Check:
    if importlib.util.find_spec("torchvision") is None:
        return Check("torchvision", "absent, as it should be")
    version = importlib.metadata.version("torchvision")
    return Check(
        "torchvision", version, "It can break torch's companions when its build differs: pip uninstall torchvision"
    )


def _extras() -> list[Check]:
    checks = []
    for extra, modules in EXTRAS.items():
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        mend = f"pip install 'nilatent[{extra}]'" if absent else ""
        checks.append(Check(f"extra '{extra}'", f"lacks {', '.join(absent)}" if absent else "installed", mend))
    return checks


def _atlas() -> Check:
    try:
        return Check("AAL2 atlas", f"{len(load_atlas('aal2').table)} regions")
    except (NilatentError, OSError) as error:
        return Check("AAL2 atlas", "cannot be read", str(error))


def _cores() -> Check:
    return Check("cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))


def _disks(folder: Path) -> list[Check]:
    checks = []
    # A folder that a run is still to make lies on the disk of the nearest one that is there.
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    for subject, place in (("free disk here", there), ("free temporary disk", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free / 1e9
        mend = f"Preparation wants {MIN_FREE_GB:g} GB: free some, or set TMPDIR." if free < MIN_FREE_GB else ""
        checks.append(Check(subject, f"{free:.0f} GB", mend))
    return checks
