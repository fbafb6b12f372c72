"""nilatent: latent representations of 3D brain MRI, and honest statistics on what they know.

Importing the package gives the nouns; verbs are reached in their modules (``from nilatent.encode import encode``).
"""

from nilatent.atlas import Atlas, load_atlas
from nilatent.cohort import Cohort, read_cohort, split
from nilatent.finding import Finding
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
