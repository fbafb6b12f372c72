"""nilatent: latent representations of 3D brain MRI, and honest statistics on what they know.

Importing the package gives the nouns; verbs are reached in their modules (``from nilatent.encode import encode``).
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nilatent.atlas import Atlas, load_atlas
    from nilatent.cohort import Cohort, read_cohort
    from nilatent.finding import Finding
    from nilatent.parts import split
    from nilatent.volumes import Grid, Volumes, open_volumes, pack

__version__ = "0.1.0"

__all__ = [
    "Atlas",
    "Cohort",
    "Finding",
    "Grid",
    "Volumes",
    "__version__",
    "load_atlas",
    "open_volumes",
    "pack",
    "read_cohort",
    "split",
]

# Loaded when first asked for, because the command line imports this package too and must show its help at once.
_ROOMS = {
    "Atlas": "atlas",
    "load_atlas": "atlas",
    "Cohort": "cohort",
    "read_cohort": "cohort",
    "split": "parts",
    "Finding": "finding",
    "Grid": "volumes",
    "Volumes": "volumes",
    "open_volumes": "volumes",
    "pack": "volumes",
}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module 'nilatent' has no attribute '{name}'")
    return getattr(importlib.import_module(f"nilatent.{_ROOMS[name]}"), name)
