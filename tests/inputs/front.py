"""The front of a run on scans small enough to be made for every test: sources, checks, preparation, packed volumes."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.cohort import Cohort, load_cohort, write_cohort
from nilatent.config import read_config
from nilatent.preprocess.recipe import prepare
from nilatent.river import River
from nilatent.volumes import Grid, Volumes, pack, template

GRID = Grid.mni(6.0)
SMALL = {"recipe.name": "gm", "recipe.spacing_mm": 6.0, "recipe.fwhm_mm": 0.0}


@cache
def grey() -> npt.NDArray[np.float32]:
    """The template's grey matter on 31 x 29 x 27 voxels of 6 mm."""
    return template("gm", GRID).get_fdata(dtype=np.float32)[:31, :29, :27]


def map_bytes(number: int) -> bytes:
    """A NIfTI file that no other number gives."""
    image = nib.Nifti1Image(grey() * np.float32(1 - number / 5000), GRID.affine)
    image.set_sform(GRID.affine, 4)
    return image.to_bytes()


def write_map(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(map_bytes(number))
    return path


@dataclass(frozen=True, eq=False)
class Passed:
    """What went through, and what was left out on the way."""

    cohort: Cohort
    prepared: Cohort
    volumes: Volumes

    @property
    def listed(self) -> pd.Series:
        """Rule by scan of everything that was left out."""
        return self.prepared.excluded.set_index("scan_id")["rule"]


def front(sources: list[Path], out: Path, *, page: bool = False, **study: object) -> Passed:
    """Sources to packed volumes as `nilatent run` does it, every step read back from disk; the quality page if asked for."""
    config = read_config(overrides=SMALL | {f"study.{name}": value for name, value in study.items()})
    river = River(out, config)
    river.cohort(sources)
    cohort = load_cohort(river.out / "cohort")
    if page:
        prepared = river.prepared(cohort, n_procs=1, scheduler="")
        volumes = river.volumes(prepared)
    else:
        write_cohort(prepare(cohort, river.out / "prepared", config.recipe), river.out / "prepared")
        prepared = load_cohort(river.out / "prepared")
        volumes = pack(prepared, GRID, river.out / "volumes")
    assert list(volumes.scans.index) == list(prepared.scans.index)
    assert {*cohort.scans.index} == {*prepared.scans.index} | {
        *prepared.excluded.query("stage == 'prepare'")["scan_id"]
    }
    assert np.isfinite(np.asarray(volumes.data, dtype=np.float32)).all()
    return Passed(cohort, prepared, volumes)
